"""Checks of the checks: what is meant to find a fault finds one that is made here."""

import asyncio
import json
import pathlib
import random
import sqlite3
import struct
import tempfile

import numpy

import audit
import faults
import flat
import mqtt
import processes
import promises
from proxy import Deliveries

HERE = pathlib.Path(__file__).resolve().parent
# What the recorded series of rss.txt are of.
EVERY = 2
# Samples of a piece of recorded noise, a minute: after half of it two samples know nothing of each other.
PIECE = 30
# Minutes of the shortest window of a run of so many minutes: two thirds of the whole run, or of the part after the centre's last kill.
WINDOWS = {"steady": {10: 6.6, 60: 39.8}, "centre": {10: 4.15, 60: 24.1}}
# Lives that are drawn for a run of so many minutes: an hour's have six times as many pairs of samples.
LIVES = {10: 60, 60: 15}
FAILS = "steady: tests/soak --minutes 10 --seed 2"


class Broken(list):
    """What was broken and found."""

    def check(self, what, found, words=""):
        """That of the promises `found` one names `words`."""
        assert any(words in promise for promise in found), f"{what}: passes for well, {found}"
        self.append(what)


def run():
    """What was broken and found."""
    broken = Broken()
    for case in (growth, packets, deliveries, account, owed, ends, logs):
        case(broken)
    schedule()
    return broken


def recorded():
    """Series of VmRSS in KiB by what they are of."""
    found, name = {}, None
    for line in (HERE / "rss.txt").read_text().splitlines():
        if line.startswith("#"):
            name = line[2:]
        else:
            found.setdefault(name, []).extend(map(int, line.split()))
    return found


def noise(series, process):
    """What is left of the judged part of each life of a process without its slope."""
    for name, values in series.items():
        if name.startswith(process):
            values = numpy.array(values[len(values) // 3 :], float)
            at = numpy.arange(len(values))
            values -= flat.theil_sen(at, values) * at
            yield values - numpy.median(values)


def life(rng, pool, minutes, leak):
    """A life whose last two thirds are `minutes` of recorded noise, a minute from here and one from there, with a leak in KiB a minute."""
    count = int(1.5 * minutes * 60 / EVERY)
    pieces = []
    for _ in range(-(-count // PIECE)):
        values = pool[rng.integers(len(pool))]
        begin = rng.integers(len(values) - PIECE)
        pieces.append(values[begin : begin + PIECE])
    # A long run is sampled less often.
    step = 1 if minutes < 10 else 3
    at = numpy.arange(count)[::step] * EVERY
    return at, 80_000 + numpy.concatenate(pieces)[:count:step] + leak * at / 60


def growth(broken):
    most, series = flat.GROWTH["anon_kib"], recorded()
    for name, values in series.items():
        at = [EVERY * index for index in range(len(values))]
        verdict = flat.judge(at, values, most)
        assert verdict.flat == (name != FAILS), f"{name}: {verdict}"
        assert flat.judge(at, values, None).flat, "what is only shown breaks a promise"
        leak = flat.FOUND[name.split(":")[0]][10]
        assert not flat.judge(at, [value + leak * second / 60 for second, value in zip(at, values)], most).flat, f"{name}: a leak passes"
        if name == FAILS:
            slope = verdict.slope_per_minute
            assert 0.97 < slope / 1024 < 0.99, slope
            assert flat.judge(at, [value - slope * second / 60 for second, value in zip(at, values)], most).flat
    broken.append(f"growth of memory: the recorded life that grew ({FAILS})")
    for process, windows in WINDOWS.items():
        pool = list(noise(series, process))
        for run_minutes, minutes in windows.items():
            assert minutes > flat.SHORTEST["anon_kib"]
            leak, lives = flat.FOUND[process][run_minutes], range(LIVES[run_minutes])
            for seed in lives:
                flat_one, leaking = (flat.judge(*life(numpy.random.default_rng(seed), pool, minutes, more), most) for more in (0, leak))
                assert flat_one.flat, f"{process}: noise of {run_minutes} minutes is taken for a leak, seed {seed}"
                assert not leaking.flat, f"{process}: {leak} KiB a minute pass in {run_minutes} minutes, seed {seed}"
            broken.append(f"growth of memory: {process}, {leak / 1024:.2f} MiB a minute in a run of {run_minutes} minutes, "
                          f"in {len(lives)} lives of recorded noise; without the leak none")
    rng, at = random.Random(1), list(range(0, 600, 2))
    for what in ("fds", "threads"):
        well = [24 + rng.choice([0, 0, 0, 1, 2]) for _ in at]
        assert flat.judge(at, well, flat.GROWTH[what]).flat
        leak = [count + second // 100 for count, second in zip(well, at)]
        assert not flat.judge(at, leak, flat.GROWTH[what]).flat, f"{what}: one every 100 s passes"
        broken.append(f"growth of {what}: one every 100 s")
    assert flat.judge(at[:10], well[:10], 2) is None
    assert flat.judge(at, at, 2, 7).flat and not flat.judge(at, at, 2, 6).flat, "the shortest window is not kept to"


def publish(identity, topic, payload):
    body = struct.pack(">H", len(topic)) + topic + struct.pack(">H", identity) + b"\0" + payload
    length, rest = bytearray(), len(body)
    while True:
        length.append(rest & 0x7F | (0x80 if rest > 0x7F else 0))
        rest >>= 7
        if not rest:
            return bytes([0x32]) + bytes(length) + body


def packets(broken):
    topic, payload = b"p/site/cam/labels", json.dumps({"v": 1, "e": 1 << 63, "q": 7, "t": 9, "n": "gate", "x": "y" * 300}).encode()
    one, ping, puback = publish(513, topic, payload), b"\xc0\0", b"\x40\x02\x02\x01"
    stream = one + ping + puback + one
    for size in (1, 2, 7, len(stream)):
        framer, found = mqtt.Framer(), []
        for at in range(0, len(stream), size):
            found += framer.feed(stream[at : at + size])
        assert found == [one, ping, puback, one], f"packets in pieces of {size}"
    assert mqtt.packet_id(one) == mqtt.packet_id(puback) == 513
    assert mqtt.message(mqtt.again(one)) == (topic.decode(), payload) and mqtt.again(one)[0] == 0x3A
    assert mqtt.under(one, 514) == publish(514, topic, payload)
    key = ("cam", "labels", 1 << 63, 7)
    assert mqtt.label(*mqtt.message(one)) == (key, "gate", 9)
    head = b'{"e":2,"q":3}'
    assert mqtt.label("p/site/cam/frames", struct.pack(">H", len(head)) + head + b"jpeg") == (("cam", "frames", 2, 3), None, None)
    assert mqtt.label("p/site/cam/ack", payload) is None


def deliveries(broken):
    seen = Deliveries()
    for key, payload, captured in [("a", b"1", 5), ("b", b"2", 6), ("a", b"1", 5), ("b", b"3", 6)]:
        seen.see(("cam", "labels", 1, key), payload, "gate", captured)
    assert (seen.sent["cam", "labels"], seen.repeated["cam", "labels"]) == (4, 2)
    assert seen.captured == {("cam", "gate"): [5, 6]}, "a label that comes again counts as another"
    assert seen.changed == [("cam", "labels", 1, "b")]
    broken.append("labels: sent again with other bytes")


def account(broken):
    epoch = (1 << 63) + 5
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "centre.sqlite"
        assert audit.stored(path) is None and audit.sound(path) != "ok"
        database = sqlite3.connect(path)
        for script in sorted((processes.ROOT / "trainer/migrations").glob("*.sql")):
            database.executescript(script.read_text())
        seen = Deliveries()
        signed = epoch - (1 << 64)
        for sequence in range(1, 11):
            seen.see(("cam", "labels", epoch, sequence), b"label %d" % sequence)
            database.execute(
                "INSERT INTO labels (device, epoch, sequence, frame, received_ms, captured_ms, model, instances, kept, wants_frame, "
                "settled, payload) VALUES ('cam', ?, ?, 0, 0, 0, 0, 0, 0, 0, 1, ?)", (signed, sequence, b"label %d" % sequence))
        database.commit()

        def settle(*changes, committed=10, evicted=0):
            """With changes that are taken back afterwards."""
            kept = database.serialize()
            for change in changes:
                database.execute(change)
            database.commit()
            try:
                return audit.settle(path, "cam", epoch, committed, evicted, seen.first)[1]
            finally:
                restore(database, path, kept)

        assert settle() == [], settle()
        assert settle("DELETE FROM labels WHERE sequence IN (4, 5)", evicted=2) == [], "what was evicted is not lost"
        # Whatever the schema forbids is done to a copy without it.
        free = ("CREATE TABLE free AS SELECT * FROM labels", "DROP TABLE labels", "ALTER TABLE free RENAME TO labels")
        for what, changes, counts, words in [
            ("none made", ("DELETE FROM labels",), {"committed": 0}, "no label was made"),
            ("one lost", ("DELETE FROM labels WHERE sequence = 4",), {}, "1 lost"),
            ("one lost at the end", (), {"committed": 11}, "1 lost"),
            ("one stored twice, in a schema that allows it", (*free, "INSERT INTO labels SELECT * FROM labels WHERE sequence = 4"), {},
             "1 labels stored twice"),
            ("one stored under another epoch", ("UPDATE labels SET epoch = 7 WHERE sequence = 1",), {}, "labels of epochs"),
            ("a gap", ("DELETE FROM labels WHERE sequence = 10",), {"evicted": 1}, "there are gaps"),
            ("one not settled", ("UPDATE labels SET settled = 0 WHERE sequence = 4",), {}, "9 settled"),
            ("a frame missing", ("UPDATE labels SET wants_frame = 1 WHERE sequence = 4",), {}, "1 frames announced, 0 stored"),
            ("one arrived again with other bytes", (f"INSERT INTO epochs (device, epoch, conflicts) VALUES ('cam', {signed}, 1)",), {},
             "came again with other bytes"),
            ("one stored that was not sent", ("UPDATE labels SET sequence = 99 WHERE sequence = 3",), {}, "did not send"),
            ("one stored with other bytes", ("UPDATE labels SET payload = x'00' WHERE sequence = 3",), {}, "other bytes than those first"),
        ]:
            broken.check(f"labels: {what}", settle(*changes, **counts), words)
        # Labels that came again leave gaps in the numbers of rows.
        database.execute("UPDATE labels SET id = id + 100 WHERE sequence = 10")
        database.commit()
        database.close()
        assert audit.stored(path) == 10 and audit.sound(path) == "ok"
        torn = bytearray(path.read_bytes())
        torn[100:] = bytes(len(torn) - 100)
        path.write_bytes(torn)
        broken.check("the centre's database: unreadable", [f"{audit.stored(path)}, {audit.sound(path)}"], "None, cannot be read")


def restore(database, path, kept):
    with sqlite3.connect(":memory:") as before:
        before.deserialize(kept)
        before.backup(database)
    before.close()


def owed(broken):
    answers = [(1, True)] * 200
    assert promises.page("cam", answers) == promises.page("cam", [*answers, (2, False)] * 2) == []
    broken.check("page: dead for the rest of one of many lives", promises.page("cam", answers * 5 + [(2, False)] * 6), "in a row")
    broken.check("page: every tenth question unanswered", promises.page("cam", ([(1, True)] * 9 + [(1, False)]) * 10), "of 100")
    said = f"# HELP\n{processes.LABELLED} 7\nomnilabel_camera_up{{camera=\"gate\"}} 1\n"
    assert processes.figures(200, said)[processes.LABELLED] == 7 and processes.illness(200, "ok\n") is None
    assert all(processes.figures(*answer) is None for answer in [(500, said), (200, ""), (200, "omnilabel_x y"), (None, "refused")])
    broken.append("page: metrics that are none")
    for status, text in [(503, "camera gate is away"), (200, "camera gate is away"), (None, "refused")]:
        broken.check(f"health: {status}, {text}", [processes.illness(status, text) or ""], text)
    broken.check("page: never asked", promises.page("cam", []), "never")

    rates = [(at, 1, 12 * at) for at in range(0, 600, 2)]
    assert promises.progress("cam", rates) == ([], 360, 360)
    half = [(at, life, min(count, 3600) + max(0, count - 3600) // 2) for at, life, count in rates]
    assert promises.progress("cam", half)[0] == [], "half the rate, as when something else takes the machine, is taken for a fault"
    still = [(at, life, min(count, 3600) + max(0, count - 3600 - 360)) for at, life, count in rates]
    broken.check("progress: nothing labelled for 30 s", promises.progress("cam", still)[0], "labelled 0 frames")
    slow = [(at, life, at / 2) for at, life, _ in rates]
    broken.check("progress: a frame every 2 s, all the time", promises.progress("cam", slow)[0], "15 frames")
    broken.check("progress: no metrics", promises.progress("cam", [])[0], "has no 30 s")

    hit = promises.Replaced("pipeline killed", 1000.0)
    seen = [ms for ms in range(900_000, 1_100_000, 50)]
    assert promises.live_again("cam", [hit], seen, [999.0]) == ([], [0.0])
    late = [ms for ms in seen if not 999_000 < ms < 1_010_500]
    broken.check("live camera: none of its frames labelled for 10 s", promises.live_again("cam", [hit], late, [])[0], "pipeline killed")
    ended = [ms for ms in seen if ms < 999_000]
    broken.check("live camera: never again", promises.live_again("cam", [hit], ended, [999.0])[0], "within 10 s")
    assert promises.live_again("cam", [hit], late, [1004.0]) == ([], []), "a pipeline whose device was killed owes a frame"


def ends(broken):
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "program.log"

        def process(*command):
            said = []
            one = processes.Process("program", command, log, said.append)
            one.start()
            return one, said

        async def stop(script, seconds):
            one, said = process("sh", "-c", f"{script}; echo ready; while :; do sleep 0.01; done")
            while not one.out.read_text():
                await asyncio.sleep(0.01)
            await one.stop(seconds)
            return said

        one, said = process("false")
        one.child.wait()
        one.check()
        one.kill()
        broken.check("a process: ends by itself", said, "ended by itself with 1")
        assert asyncio.run(stop("trap 'exit 0' TERM", 5)) == []
        broken.check("a process: ends with 3 after SIGTERM", asyncio.run(stop("trap 'exit 3' TERM", 5)), "ended with 3")
        broken.check("a process: does not end", asyncio.run(stop("trap '' TERM", 0.2)), "does not end")
    pipeline = f"gst-launch-1.0 videotestsrc name={processes.MARK}"
    found = {7: (70, "S", pipeline), 8: (1, "S", pipeline), 9: (1, "Z", pipeline), 10: (1, "S", "sh")}
    assert processes.left_over(found, [70, None]) == [8]
    broken.append("a pipeline: outlives its device")


def logs(broken):
    for event in ("rejected", "conflict", "frame_refused", "error"):
        found = audit.refused([{"event": "stored"}, {"event": event}])
        broken.check(f"the centre's events: {event}", [one["event"] for one in found], event)
    assert audit.refused([{"event": "stored"}]) == []
    said = audit.graded("1 WARN a\n2 ERROR b\n3  INFO c\n")
    assert (said["warnings"], said["errors"], said["panics"]) == (1, 1, [])
    broken.check("a log: a panic", audit.graded("thread 'main' panicked at src/main.rs:1:\n")["panics"], "panicked")


def schedule():
    targets = {"killed": "struck", "piped": ["steady", "struck"]}
    first, second = (faults.plan(3, 10, 540, ["steady", "struck", "centre"], targets) for _ in range(2))
    assert first == second and first != faults.plan(4, 10, 540, ["steady", "struck", "centre"], targets)
    assert {fault.kind for fault in first} == {*faults.LINK_FAULTS, *faults.PROCESS_FAULTS, *faults.PIPELINE_FAULTS}
    assert all(fault.at < 10 + 530 * faults.CENTRE_KILLS for fault in first if fault.kind == "centre killed")
    assert not any(fault.target == "steady" for fault in first if fault.kind.startswith("device"))
