"""A label subscriber written from docs/WIRE.md alone: paho-mqtt, cbor2, json. No code of the product is used.

  subscriber.py PORT SITE DOCS

Prints `ready` once it is subscribed, then reads until it gets a number on standard input and has so many labels (for half a minute at
most), and prints one JSON object: every label by device, with
measurements in pixels and shares, every frame's key and size, and what was wrong with any message. Each message is checked against
wire.schema.json (JSON) or wire.cddl (CBOR) in DOCS.
"""

import json
import pathlib
import sys
import threading
import time

import cbor2
import jsonschema
import paho.mqtt.client as mqtt
import pycddl
from paho.mqtt.properties import Properties
from paho.mqtt.packettypes import PacketTypes

PREFIX = "omnilabel/v1"
# Last level of the topic -> name in the JSON Schema, rule in the CDDL.
KINDS = {
    "labels": ("label", "label"),
    "status": ("status", "status"),
    "model": ("model", "model"),
    "histogram": ("histogram", "histogram"),
    "ack": ("ack", "ack"),
}


class Reader:
    def __init__(self, docs):
        self.schema = json.loads((docs / "wire.schema.json").read_text())
        cddl = (docs / "wire.cddl").read_text()
        self.json_rules, self.cbor_rules = {}, {}
        for kind, rule in list(KINDS.values()) + [("frameHeader", "frame-header")]:
            schema = {"$schema": self.schema["$schema"], "$ref": f"#/$defs/{kind}", "$defs": self.schema["$defs"]}
            self.json_rules[kind] = jsonschema.Draft202012Validator(schema)
            self.cbor_rules[kind] = pycddl.Schema(f"start = {rule}\n{cddl}")

    def read(self, kind, payload):
        """The message as a dict; raises when it is not what the documentation says."""
        if payload.lstrip()[:1] == b"{":
            message = json.loads(payload)
            self.json_rules[kind].validate(message)
        else:
            self.cbor_rules[kind].validate_cbor(payload)
            message = cbor2.loads(payload)
        if message["v"] != 1:
            raise ValueError(f"version {message['v']}")
        return message


def label(message):
    """A label with its measurements in pixels and shares."""
    people = []
    for instance in message["i"]:
        people.append(
            {
                "box": [value / 16 for value in instance["b"]],
                "score": instance["s"] / 65535,
                "kept": instance.get("k", False),
                "keypoints": [[k[0] / 16, k[1] / 16, k[2] / 255] for k in instance["p"]],
            }
        )
    return {
        "epoch": message["e"],
        "sequence": message["q"],
        "frame": message["f"],
        "model": message.get("m", 0),
        "size": [message["W"], message["H"]],
        "jpeg": message.get("j", False),
        "people": people,
    }


def main():
    port, site, docs = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    reader = Reader(docs)
    lock = threading.Lock()
    raw, found = {}, {"labels": {}, "frames": {}, "encodings": {}, "kinds": {}, "repeated": 0, "problems": []}

    def take(message):
        device, kind = message.topic.removeprefix(f"{PREFIX}/{site}/").split("/", 1)
        found["kinds"][kind] = found["kinds"].get(kind, 0) + 1
        if kind == "frames":
            length = int.from_bytes(message.payload[:2], "big")
            header = reader.read("frameHeader", message.payload[2 : 2 + length])
            jpeg = message.payload[2 + length :]
            if jpeg[:2] != b"\xff\xd8":
                raise ValueError("a frame that is no JPEG")
            found["frames"].setdefault(device, {})[header["q"]] = len(jpeg)
            return
        if kind not in KINDS or not message.payload:
            return
        content = reader.read(KINDS[kind][0], message.payload)
        if kind != "labels":
            return
        encoding = "json" if message.payload.lstrip()[:1] == b"{" else "cbor"
        found["encodings"].setdefault(device, {}).setdefault(encoding, 0)
        found["encodings"][device][encoding] += 1
        key = (device, content["e"], content["q"])
        if key in raw:
            found["repeated"] += 1
            if raw[key] != message.payload:
                raise ValueError(f"{key} came with other bytes")
            return
        raw[key] = message.payload
        found["labels"].setdefault(device, []).append(label(content))

    def on_message(client, userdata, message):
        with lock:
            try:
                take(message)
            except Exception as error:  # the report names every message that is not as documented
                found["problems"].append(f"{message.topic}: {type(error).__name__}: {error}"[:300])

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="subscriber", protocol=mqtt.MQTTv5)
    client.on_message = on_message
    client.on_connect = lambda c, *_: c.subscribe(f"{PREFIX}/{site}/#", qos=1)
    client.on_subscribe = lambda *_: print("ready", flush=True)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 600
    client.connect("127.0.0.1", port, properties=properties)
    client.loop_start()
    expected, deadline = int(sys.stdin.readline()), time.monotonic() + 30
    while len(raw) < expected and time.monotonic() < deadline:
        time.sleep(0.05)
    client.loop_stop()
    with lock:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
