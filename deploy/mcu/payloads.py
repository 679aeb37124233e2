"""What a broker sends to the subscriber, and what the subscriber has to say of it, for tests/mcu.

    python3 deploy/mcu/payloads.py OUT

Writes OUT/mqtt.bin and OUT/expected.txt. What is expected is computed from the JSON form of each message, on its own: nothing here
is taken from the firmware. Where a malformed message is wrong is the reader's to say: `near byte _`.
"""
import json
import random
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
NOSE, LEFT_WRIST, RIGHT_WRIST = 0, 9, 10  # places in COCO's 17 keypoints
SEEN = 128  # of 255
MAX_LABEL = 32 * 1024  # docs/WIRE.md, "Limits"


def cbor(value):
    """RFC 8949: definite lengths, integers in their shortest form."""

    def head(major, count):
        if count < 24:
            return bytes([major << 5 | count])
        log = next(log for log in range(4) if count < 1 << (8 << log))
        return bytes([major << 5 | 24 + log]) + count.to_bytes(1 << log, "big")

    match value:
        case bool():
            return b"\xf5" if value else b"\xf4"
        case int():
            return head(0, value) if value >= 0 else head(1, -1 - value)
        case str():
            return head(3, len(value.encode())) + value.encode()
        case list():
            return head(4, len(value)) + b"".join(map(cbor, value))
        case dict():
            return head(5, len(value)) + b"".join(cbor(key) + cbor(inner) for key, inner in value.items())
    raise TypeError(value)


def text(value):
    return json.dumps(value, separators=(",", ":")).encode()


def packet(first, body):
    """MQTT 5, §2.1."""
    length, left = b"", len(body)
    while True:
        left, low = divmod(left, 128)
        length += bytes([low | 128 if left else low])
        if not left:
            return bytes([first]) + length + body


def publish(topic, payload, qos=1, properties=b""):
    """MQTT 5, §3.3."""
    name = topic.encode()
    identifier = (7).to_bytes(2, "big") if qos else b""
    return packet(0x30 | qos << 1, len(name).to_bytes(2, "big") + name + identifier + bytes([len(properties)]) + properties + payload)


def says(device, label):
    people = label["i"]
    kept = [(index, person["p"]) for index, person in enumerate(people) if person.get("k", False)]
    yield f"{device}: frame {label['f']}: {len(kept)} of {len(people)} people kept"
    for index, points in kept:
        for side, wrist in (("left", LEFT_WRIST), ("right", RIGHT_WRIST)):
            if wrist < len(points) and points[NOSE][2] >= SEEN and points[wrist][2] >= SEEN and points[wrist][1] < points[NOSE][1]:
                yield f"{device}: frame {label['f']}: person {index} raises the {side} hand"


def person(kept, left, right, nose=200):
    """A person whose nose is 100 px below the frame's upper edge: (y, probability) of each wrist, the nose's probability."""
    points = [[1600, 1600 + 160 * index, 204, 255, 80] for index in range(17)]
    points[NOSE][2] = nose
    points[LEFT_WRIST][1:3], points[RIGHT_WRIST][1:3] = left, right
    return {"b": [800, 1200, 2400, 6400], "s": 60000 if kept else 20000, "k": kept, "p": points}


def label(frame, people, **more):
    return {"v": 1, "e": 2**63 + 5, "q": frame, "f": frame, "t": 1767225600000, "W": 640, "H": 480, "i": people} | more


def messages():
    up, down = [1000, 230], [3000, 230]
    hands = label(2001, [
        person(True, down, up),
        person(True, down, down),
        person(True, [1000, SEEN - 1], [1599, SEEN]),
        person(False, up, up),
        person(True, up, up),
        person(True, up, up, nose=SEEN - 1),
        person(True, [1600, 255], [-1600, 255]),
    ])
    points = [[-(2**31), (-1) ** index * 2**30, 255, 255, -(2**15)] for index in range(32)]
    wide = {"b": [-(2**31)] * 4, "s": 65535, "k": True, "p": points}
    inner = 0
    for _ in range(14):
        inner = [inner]
    yield "hands", hands
    yield "nobody", label(2002, [])
    more = person(True, up, down) | {"more": [1, {"of": "é"}]}
    yield "later", label(2003, [more], later=inner, also='an "unknown" field', neither=False)
    yield "full", label(2**64 - 1, [wide] * 20, m=2**64 - 1, h=2**64 - 1, o=2**32 - 1, j=True)


def main(out):
    example_json = (EXAMPLES / "label.json").read_bytes()
    example_cbor = (EXAMPLES / "label.cbor").read_bytes()
    example = json.loads(example_json)
    assert cbor(example) == example_cbor, "the encoder here writes what docs/examples holds"

    # CONNACK and SUBACK come before the first PUBLISH, PINGRESP between them.
    stream = [packet(0x20, bytes([0, 0, 0])), packet(0x90, bytes([0, 1, 0, 1]))]
    expected = [*says("example-cbor", example), *says("example-json", example)]

    def send(device, payload, *lines, **how):
        stream.append(publish(f"omnilabel/v1/yard/{device}/labels", payload, **how))
        expected.extend(lines)

    def refused(device, payload, why="not a valid message near byte _"):
        send(device, payload, f"{device}: refused {len(payload)} bytes: {why}")

    for name, message in messages():
        for form, payload in ((f"{name}-cbor", cbor(message)), (f"{name}-json", text(message))):
            assert len(payload) <= MAX_LABEL, f"{form}: {len(payload)} bytes"
            send(form, payload, *says(form, message))
    # A message expiry interval of 60 s; QoS 0; the same label once more.
    for how in ({"properties": b"\x02\x00\x00\x00\x3c"}, {"qos": 0}, {}):
        send("again", example_cbor, *says("again", example), **how)
    stream.append(packet(0xD0, b""))
    for topic in ("omnilabel/v1/yard/cam-1/status", "omnilabel/v1/field/cam-1/labels"):
        stream.append(publish(topic, example_cbor))
        expected.append(f"{topic}: not a label")

    refused("newer", cbor(example | {"v": 2}), "message version 2 is newer than 1")
    refused("crowd", cbor(label(1, [person(True, [0, 0], [0, 0])] * 21)))
    refused("deep-cbor", cbor(label(1, []) | {"later": 0})[:-1] + b"\x81" * 20000 + b"\x00")
    refused("deep-json", text(label(1, []))[:-1] + b',"later":' + b"[" * 30000)
    for form, payload in (("cut-cbor", example_cbor), ("cut-json", example_json)):
        for length in range(len(payload)):
            refused(form, payload[:length])
    dice = random.Random(1)
    for _ in range(1000):
        refused("noise", dice.randbytes(dice.randrange(300)))
    for _ in range(1000):
        refused("noise-cbor", example_cbor[:dice.randrange(40)] + dice.randbytes(dice.randrange(200)))
    # The firmware names no Maximum Packet Size here; the link ends.
    stream.append(publish("omnilabel/v1/yard/cam-1/labels", bytes(2 * MAX_LABEL)))
    expected.append(f"link: a packet of {len(stream[-1]) - 4} bytes is too large")

    (out / "mqtt.bin").write_bytes(b"".join(stream))
    (out / "expected.txt").write_text("".join(f"{line}\n" for line in expected))


main(Path(sys.argv[1]))
