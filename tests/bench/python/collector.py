#!/usr/bin/env python3
"""A collector as one writes it with paho-mqtt, cbor2 and sqlite3, or psycopg: labels are stored once in groups, then acknowledged.

    collector.py PORT SITE DATABASE      a file for sqlite3, or the URL of a PostgreSQL

The same promises as the product's: one transaction with one fsync (WAL, synchronous = FULL, or synchronous_commit = on) for what has arrived, at most 256
messages, in PostgreSQL sent together; a label
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


COLUMNS = "device, epoch, sequence, frame, received_ms, captured_ms, model, instances, kept, payload"


def table(key, number, data):
    numbers = "".join(f"{name} {number} NOT NULL, " for name in COLUMNS.split(", ")[1:-1])
    return (f"CREATE TABLE IF NOT EXISTS labels (id {key} PRIMARY KEY, device TEXT NOT NULL, {numbers}payload {data} NOT NULL, "
            "UNIQUE (device, epoch, sequence))")


class Sqlite:
    def __init__(self, database):
        self.db = sqlite3.connect(database, isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute(table("INTEGER", "INTEGER", "BLOB"))

    def store(self, rows):
        self.db.execute("BEGIN IMMEDIATE")
        for row in rows:
            self.db.execute(f"INSERT OR IGNORE INTO labels ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self.db.execute("COMMIT")


class Postgres:
    def __init__(self, url):
        import psycopg

        self.db = psycopg.connect(url)
        self.db.execute("SET synchronous_commit = on")
        self.db.execute(table("BIGSERIAL", "BIGINT", "BYTEA"))
        self.db.commit()

    def store(self, rows):
        # executemany is one round trip (pipeline mode).
        with self.db.cursor() as cursor:
            values = ", ".join(["%s"] * 10)
            cursor.executemany(f"INSERT INTO labels ({COLUMNS}) VALUES ({values}) ON CONFLICT DO NOTHING", rows)
        self.db.commit()


def main():
    port, site, database = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    store = Postgres(database) if database.startswith("postgres") else Sqlite(database)
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
        rows = []
        for message in batch:
            device = message.topic.split("/")[-2]
            label = cbor2.loads(message.payload)
            epoch, sequence = label["e"] - (label["e"] >> 63 << 64), label["q"]
            kept = sum(person.get("k", False) for person in label["i"])
            rows.append((device, epoch, sequence, label["f"], now, label["t"], label["m"], len(label["i"]), kept, message.payload))
            mark, above = marks.setdefault((device, label["e"]), [0, set()])
            if sequence > mark:
                above.add(sequence)
            touched.add((device, label["e"]))
        store.store(rows)
        for key in touched:
            entry = marks[key]
            while entry[0] + 1 in entry[1]:
                entry[0] += 1
                entry[1].discard(entry[0])
            ack = {"v": 1, "c": 1, "e": key[1], "w": entry[0], "r": []}
            client.publish(f"{PREFIX}/{site}/{key[0]}/ack", cbor2.dumps(ack), qos=1, retain=True)


if __name__ == "__main__":
    main()
