"""What a device owes beside its labels: a page that answers, frames labelled all the time, a live camera that comes back.

Facts go in, broken promises come out; no clock, no file and no socket is known here.
"""

import bisect
import dataclasses
import itertools
import statistics

# A life is asked for its metrics from this age on, seconds; the centre's database has to be readable from this age on.
SETTLED = 10
# Of the questions for metrics, this share may stay unanswered, and this many in a row within a life.
UNANSWERED, IN_A_ROW = 0.02, 4
# Seconds in which the device that is never killed has to label something, whatever happens around it: it needs neither broker nor centre.
SPELL = 30
# So many frames, and this share of what the run's median spell had. The rate is the machine's, and what else runs there may take half.
LEAST_FRAMES, LEAST_SHARE = 30, 0.25
# Seconds from a pipeline's replacement to the capture of a frame of its camera that was labelled.
LIVE_AGAIN = 10


def page(name, answers):
    """`answers`: (life, whether it answered), in order."""
    broken, missed = [], sum(not answered for _, answered in answers)
    if not answers:
        return [f"{name} was never asked for its metrics"]
    if missed > UNANSWERED * len(answers):
        broken.append(f"{name} left {missed} of {len(answers)} questions for its metrics unanswered")
    row = max((len(list(group)) for (_, answered), group in itertools.groupby(answers) if not answered), default=0)
    if row > IN_A_ROW:
        broken.append(f"{name} left {row} questions for its metrics in a row unanswered")
    return broken


def spells(rates):
    """(begin, frames labelled in `SPELL` seconds from there), of rows (seconds, life, frames labelled in this life)."""
    found, end = [], 0
    for at, life, count in rates:
        while end < len(rates) and rates[end][0] < at + SPELL:
            end += 1
        if end == len(rates):
            break
        later, same, more = rates[end]
        if same == life:
            found.append((at, (more - count) * SPELL / (later - at)))
    return found


def progress(name, rates):
    """What is broken, and the least and the median of frames labelled in a spell."""
    found = spells(rates)
    if not found:
        return [f"{name} has no {SPELL} s in which its metrics show what it labelled"], None, None
    (at, least), median = min(found, key=lambda spell: spell[1]), statistics.median(count for _, count in found)
    wanted = max(LEAST_FRAMES, LEAST_SHARE * median)
    broken = [f"{name} labelled {least:.0f} frames in {SPELL} s from {at:.0f} s on, at least {wanted:.0f} expected"]
    return broken if least < wanted else [], round(least), round(median)


@dataclasses.dataclass
class Replaced:
    """A pipeline that was hit and has a successor since `at`, seconds since 1970."""
    kind: str
    at: float


def live_again(name, replaced, captured_ms, disturbed):
    """What is broken, and after how many seconds each replaced pipeline gave a frame that was labelled.

    `captured_ms`: when the camera's labelled frames were captured. `disturbed`: when the device was ended or a pipeline of it hit (again);
    what was captured then may never have been committed, and nothing is asked of a pipeline that was disturbed before its time was up.
    """
    captured_ms, broken, delays = sorted(captured_ms), [], []
    for one in replaced:
        index = bisect.bisect_left(captured_ms, one.at * 1000)
        delay = captured_ms[index] / 1000 - one.at if index < len(captured_ms) else float("inf")
        if delay <= LIVE_AGAIN:
            delays.append(round(delay, 1))
        elif not any(one.at <= at < one.at + LIVE_AGAIN for at in disturbed):
            broken.append(f"{name} labelled no frame of its live camera within {LIVE_AGAIN} s of a new pipeline ({one.kind})")
    return broken, delays
