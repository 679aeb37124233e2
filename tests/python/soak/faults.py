"""What goes wrong when: drawn from the seed alone, so that a run can be had again."""

import dataclasses
import random

LINK_FAULTS = ("drop", "delay", "stall", "duplicate", "reorder", "throttle", "one way")
PIPELINE_FAULTS = ("pipeline killed", "pipeline stopped")
PROCESS_FAULTS = ("device killed", "device stopped by SIGTERM", "broker killed", "broker stopped by SIGTERM", "centre killed")
# How often each comes, against the others: kill -9 of a device is what the outbox is for.
WEIGHTS = {"device killed": 3, "centre killed": 2}

# Pauses between two faults, seconds, from and to: of the network, of processes and cameras.
LINK_PAUSE = (3, 9)
PROCESS_PAUSE = (8, 18)
# The centre is killed only in this first part of the time with faults: its last life lasts over half of the run, long enough to tell
# a leak from noise. A device is never killed for the same reason; it suffers everything else.
CENTRE_KILLS = 0.4


@dataclasses.dataclass
class Fault:
    at: float
    kind: str
    target: str
    options: dict


def deck(rng, kinds):
    """Every kind in turn in a drawn order: a short run tries each, too."""
    while True:
        cards = [kind for kind in kinds for _ in range(WEIGHTS.get(kind, 1))]
        rng.shuffle(cards)
        yield from cards


def link_fault(rng, at, kind, targets):
    options = {
        "drop": lambda: {},
        "delay": lambda: {"seconds": rng.uniform(4, 15), "most": rng.uniform(0.2, 2)},
        # Both sides of the keep-alive of 15 s, after which a client gives up.
        "stall": lambda: {"seconds": rng.choice([rng.uniform(2, 8), rng.uniform(18, 30)])},
        "duplicate": lambda: {"seconds": rng.uniform(4, 15)},
        "reorder": lambda: {"seconds": rng.uniform(4, 15)},
        "throttle": lambda: {"seconds": rng.uniform(4, 12), "bytes_per_second": rng.choice([8_000, 32_000, 128_000])},
        "one way": lambda: {"seconds": rng.uniform(1, 6), "way": rng.choice(["up", "down"])},
    }[kind]()
    return Fault(at, kind, rng.choice(targets), options)


def process_fault(rng, at, kind, targets):
    struck, piped = targets["killed"], targets["piped"]
    target = {"device": struck, "broker": "broker", "centre": "centre", "pipeline": rng.choice(piped) if piped else None}[kind.split()[0]]
    pause = rng.uniform(1, 8) if kind.startswith("broker") else rng.uniform(0.1, 4)
    return Fault(at, kind, target, {"pause": pause})


def plan(seed, begin, end, links, targets):
    """Faults from `begin` to `end`, seconds of the run."""
    rng, found = random.Random(seed), []
    cards, at = deck(rng, LINK_FAULTS), begin
    while (at := at + rng.uniform(*LINK_PAUSE)) < end:
        found.append(link_fault(rng, at, next(cards), links))
    kinds = PROCESS_FAULTS + (PIPELINE_FAULTS if targets["piped"] else ())
    early, late = deck(rng, kinds), deck(rng, [kind for kind in kinds if not kind.startswith("centre")])
    at = begin
    while (at := at + rng.uniform(*PROCESS_PAUSE)) < end:
        kind = next(early if at < begin + CENTRE_KILLS * (end - begin) else late)
        found.append(process_fault(rng, at, kind, targets))
    return sorted(found, key=lambda fault: fault.at)
