"""MQTT 5 packets in a stream of bytes: as much of them as a proxy has to know."""

import json

import cbor2

PUBLISH, PUBACK = 3, 4


class Framer:
    """Cuts a stream into packets, however its bytes arrive."""

    def __init__(self):
        self.buffer = bytearray()

    def feed(self, data):
        self.buffer += data
        packets = []
        while True:
            length, at = varint(self.buffer, 1)
            if length is None or len(self.buffer) < at + length:
                return packets
            packets.append(bytes(self.buffer[: at + length]))
            del self.buffer[: at + length]


def varint(data, at):
    """A variable byte integer and where it ends; None where it is not all there."""
    value = 0
    for index in range(4):
        if at + index >= len(data):
            return None, at
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("no length of an MQTT packet")


def kind(packet):
    return packet[0] >> 4


def again(packet):
    """The same PUBLISH with its DUP flag."""
    return bytes([packet[0] | 0x08]) + packet[1:]


def packet_id(packet):
    """Of a PUBLISH with QoS 1 or 2, or of its acknowledgement; None for QoS 0."""
    _, at = varint(packet, 1)
    if kind(packet) == PUBLISH:
        if not packet[0] & 0x06:
            return None
        at += 2 + int.from_bytes(packet[at : at + 2], "big")
    return int.from_bytes(packet[at : at + 2], "big")


def under(packet, identity):
    """The same PUBLISH under another packet id."""
    _, at = varint(packet, 1)
    at += 2 + int.from_bytes(packet[at : at + 2], "big")
    return packet[:at] + identity.to_bytes(2, "big") + packet[at + 2 :]


def message(packet):
    """Topic and payload of a PUBLISH."""
    _, at = varint(packet, 1)
    end = at + 2 + int.from_bytes(packet[at : at + 2], "big")
    topic = packet[at + 2 : end].decode()
    if packet[0] & 0x06:
        end += 2
    properties, at = varint(packet, end)
    return topic, packet[at + properties :]


def label(topic, payload):
    """((device, kind, epoch, sequence), camera, captured) of a label or a frame, the last two None of a frame; None for other messages."""
    levels = topic.split("/")
    if len(levels) < 2 or levels[-1] not in ("labels", "frames"):
        return None
    if levels[-1] == "frames":
        payload = payload[2 : 2 + int.from_bytes(payload[:2], "big")]
    fields = json.loads(payload) if payload[:1] == b"{" else cbor2.loads(payload)
    key = levels[-2], levels[-1], fields["e"], fields["q"]
    return (key, None, None) if levels[-1] == "frames" else (key, fields.get("n", ""), fields.get("t", 0))
