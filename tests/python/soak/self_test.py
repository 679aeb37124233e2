"""Checks of the checks: what is meant to find a fault finds one that is made here."""

import json
import pathlib
import random
import sqlite3
import struct
import tempfile

import audit
import faults
import flat
import mqtt
from proxy import Deliveries


def run():
    growth()
    packets()
    deliveries()
    account()
    schedule()


def life(minutes, every, leak, steps=0.0, seed=1):
    """RSS in KiB as of a device: code that is paged in at first, noise, the hump of an outage every five minutes, a leak per minute."""
    rng, at, values = random.Random(seed), [], []
    for index in range(int(minutes * 60 / every)):
        minute = index * every / 60
        hump = 6000 if minute % 5 < 0.8 else 0
        warm = 20000 * (1 - 0.5 ** (minute / minutes * 20))
        at.append(index * every)
        values.append(40000 + warm + hump + rng.gauss(0, 150) + leak * minute + (steps if minute > minutes * 0.6 else 0))
    return at, values


def growth():
    most = flat.GROWTH["rss_kib"]
    for minutes, every, caught in [(10, 2, 2000), (60, 5, 350)]:
        flat_lives = [life(minutes, every, 0), life(minutes, every, 0, steps=1024), life(minutes, every, -50)]
        assert all(flat.judge(*samples, most).flat for samples in flat_lives), f"no leak in {minutes} minutes is taken for one"
        for seed in range(5):
            assert not flat.judge(*life(minutes, every, caught, seed=seed), most).flat, f"{caught} KiB a minute pass in {minutes} minutes"
    rng, at = random.Random(1), list(range(0, 600, 2))
    well = [24 + rng.choice([0, 0, 0, 1, 2]) for _ in at]
    assert flat.judge(at, well, flat.GROWTH["fds"]).flat
    leak = [count + second // 100 for count, second in zip(well, at)]
    assert not flat.judge(at, leak, flat.GROWTH["fds"]).flat, "a descriptor every 100 s passes"
    assert flat.judge(at[:10], well[:10], 2) is None


def publish(identity, topic, payload):
    body = struct.pack(">H", len(topic)) + topic + struct.pack(">H", identity) + b"\0" + payload
    length, rest = bytearray(), len(body)
    while True:
        length.append(rest & 0x7F | (0x80 if rest > 0x7F else 0))
        rest >>= 7
        if not rest:
            return bytes([0x32]) + bytes(length) + body


def packets():
    topic, payload = b"p/site/cam/labels", json.dumps({"v": 1, "e": 1 << 63, "q": 7, "x": "y" * 300}).encode()
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
    assert mqtt.label_key(*mqtt.message(one)) == ("cam", "labels", 1 << 63, 7)


def deliveries():
    seen = Deliveries()
    for key, payload in [("a", b"1"), ("b", b"2"), ("a", b"1"), ("b", b"3")]:
        seen.see(("cam", "labels", 1, key), payload)
    assert (seen.sent["cam", "labels"], seen.repeated["cam", "labels"]) == (4, 2)
    assert seen.changed == [("cam", "labels", 1, "b")], "other bytes under the same key pass"


def account():
    epoch = (1 << 63) + 5
    migrations = pathlib.Path(__file__).resolve().parents[3] / "trainer/migrations"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "centre.sqlite"
        database = sqlite3.connect(path)
        for script in sorted(migrations.glob("*.sql")):
            database.executescript(script.read_text())
        seen = Deliveries()
        signed = epoch - (1 << 64)
        for sequence in range(1, 11):
            seen.see(("cam", "labels", epoch, sequence), b"label %d" % sequence)
            database.execute(
                "INSERT INTO labels (device, epoch, sequence, frame, received_ms, captured_ms, model, instances, kept, wants_frame, "
                "settled, payload) VALUES ('cam', ?, ?, 0, 0, 0, 0, 0, 0, 0, 1, ?)", (signed, sequence, b"label %d" % sequence))
        database.commit()

        def broken(change, committed=10, evicted=0):
            if change:
                database.execute(change)
            database.commit()
            return audit.settle(path, "cam", epoch, committed, evicted, seen.first)[1]

        assert broken(None) == [], broken(None)
        assert "lost" in broken(None, committed=11)[0]
        assert "other bytes" in broken("UPDATE labels SET payload = x'00' WHERE sequence = 3")[0]
        assert "settled" in broken("UPDATE labels SET settled = 0 WHERE sequence = 4")[0]
        assert "did not send" in broken("UPDATE labels SET sequence = 99 WHERE sequence = 3")[-1]
        assert "lost" in broken("DELETE FROM labels WHERE sequence = 99 OR sequence = 4")[0]
        assert broken(None, evicted=2) == [], "what was evicted is not lost"
        assert "epochs" in " ".join(broken("UPDATE labels SET epoch = 7 WHERE sequence = 1", evicted=2))
        database.close()


def schedule():
    targets = {"killed": "struck", "piped": ["steady", "struck"]}
    first, second = (faults.plan(3, 10, 540, ["steady", "struck", "centre"], targets) for _ in range(2))
    assert first == second and first != faults.plan(4, 10, 540, ["steady", "struck", "centre"], targets)
    assert {fault.kind for fault in first} == {*faults.LINK_FAULTS, *faults.PROCESS_FAULTS, *faults.PIPELINE_FAULTS}
    assert all(fault.at < 10 + 530 * faults.CENTRE_KILLS for fault in first if fault.kind == "centre killed")
    assert not any(fault.target == "steady" for fault in first if fault.kind.startswith("device"))
