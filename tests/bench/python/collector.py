#!/usr/bin/env python3
"""A collector as one writes it with paho-mqtt, cbor2 and sqlite3: labels are stored once in groups, then acknowledged.

    collector.py PORT SITE DATABASE

The same promises as the product's: one transaction with one fsync (WAL, synchronous = FULL) for what has arrived, at most 256 messages; a label
is stored once under (device, epoch, sequence); the acknowledgement names the highest sequence up to which nothing is missing, is published
after the commit and retained.
"""
import queue
import sqlite3
import sys
import threading
import time

import cbor2
import paho.mqtt.client as mqtt

PREFIX = "omnilabel/v1"


def main():
    port, site, database = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    store = sqlite3.connect(database, isolation_level=None)
    store.execute("PRAGMA journal_mode = WAL")
    store.execute("PRAGMA synchronous = FULL")
    store.execute(
        "CREATE TABLE IF NOT EXISTS labels (id INTEGER PRIMARY KEY, device TEXT NOT NULL, epoch INTEGER NOT NULL, sequence INTEGER NOT NULL, "
        "frame INTEGER NOT NULL, received_ms INTEGER NOT NULL, captured_ms INTEGER NOT NULL, model INTEGER NOT NULL, instances INTEGER NOT NULL, "
        "kept INTEGER NOT NULL, payload BLOB NOT NULL, UNIQUE (device, epoch, sequence))")
    waiting, marks = queue.Queue(4096), {}
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="collector", protocol=mqtt.MQTTv5)
    client.on_message = lambda c, u, message: waiting.put(message)
    client.on_connect = lambda c, *_: c.subscribe(f"{PREFIX}/{site}/+/labels", qos=1)
    client.on_subscribe = lambda *_: print("ready", flush=True)
    client.connect("127.0.0.1", port)
    client.loop_start()
    while True:
        batch = [waiting.get()]
        while len(batch) < 256:
            try:
                batch.append(waiting.get_nowait())
            except queue.Empty:
                break
        touched, now = set(), time.time_ns() // 1_000_000
        store.execute("BEGIN IMMEDIATE")
        for message in batch:
            device = message.topic.split("/")[-2]
            label = cbor2.loads(message.payload)
            epoch, sequence = label["e"] - (label["e"] >> 63 << 64), label["q"]
            store.execute(
                "INSERT OR IGNORE INTO labels (device, epoch, sequence, frame, received_ms, captured_ms, model, instances, kept, payload) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (device, epoch, sequence, label["f"], now, label["t"], label["m"], len(label["i"]),
                 sum(person.get("k", False) for person in label["i"]), message.payload))
            mark, above = marks.setdefault((device, label["e"]), [0, set()])
            if sequence > mark:
                above.add(sequence)
            touched.add((device, label["e"]))
        store.execute("COMMIT")
        for key in touched:
            entry = marks[key]
            while entry[0] + 1 in entry[1]:
                entry[0] += 1
                entry[1].discard(entry[0])
            ack = {"v": 1, "c": 1, "e": key[1], "w": entry[0], "r": []}
            client.publish(f"{PREFIX}/{site}/{key[0]}/ack", cbor2.dumps(ack), qos=1, retain=True)


if __name__ == "__main__":
    main()
