"""A label subscriber that misses nothing while it is away: MQTT 5, paho-mqtt and cbor2; the messages are in docs/WIRE.md.

  subscriber.py FOLDER

FOLDER is what `deploy/provision --subscriber NAME` made. Prints one JSON object per label until it is stopped (Ctrl-C, SIGTERM). The broker
keeps what comes while this program is not there, up to the limits in docs/SITE.md.
"""

import collections
import json
import pathlib
import signal
import sys
import tomllib

import cbor2
import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

# How long the broker keeps the session of a subscriber that is away, seconds.
SESSION = 7 * 24 * 3600
# Labels that a repetition is recognised among.
REMEMBERED = 100_000


def decode(payload):
    return json.loads(payload) if payload.lstrip()[:1] == b"{" else cbor2.loads(payload)


def people(label):
    """The instances that the device kept, in pixels."""
    for instance in label["i"]:
        if instance.get("k", False):
            keypoints = [[k[0] / 16, k[1] / 16, round(k[2] / 255, 3)] for k in instance["p"]]
            yield {"box": [v / 16 for v in instance["b"]], "score": round(instance["s"] / 65535, 4), "keypoints": keypoints}


def main():
    folder = pathlib.Path(sys.argv[1])
    broker = tomllib.loads((folder / "subscriber.toml").read_text())["broker"]
    tls = {key: str(folder / name) for key, name in broker["tls"].items()}
    # A label may come more than once: QoS 1, and devices repeat what was not acknowledged. A program that stores labels asks its store.
    seen = collections.OrderedDict()

    def on_message(client, userdata, message):
        device = message.topic.split("/")[-2]
        try:
            label = decode(message.payload)
            key = (device, label["e"], label["q"])
            line = {"device": device, "epoch": label["e"], "sequence": label["q"], "frame": label["f"], "people": list(people(label))}
        except (ValueError, KeyError, TypeError, cbor2.CBORDecodeError) as error:
            print(f"{message.topic}: {type(error).__name__}: {error}", file=sys.stderr)
        else:
            if key not in seen:
                print(json.dumps(line), flush=True)
            seen[key] = True
            if len(seen) > REMEMBERED:
                seen.popitem(last=False)
        # Acknowledged once it is printed: what was not comes again.
        client.ack(message.mid, message.qos)

    def on_connect(client, userdata, flags, reason, properties):
        print(f"connected: {reason}", file=sys.stderr)
        client.subscribe(f"{broker['prefix']}/{broker['site']}/+/labels", qos=1)

    # The broker takes the name in the certificate for the client id.
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5, manual_ack=True)
    client.tls_set(tls["ca"], tls["certificate"], tls["key"])
    client.on_connect, client.on_message = on_connect, on_message
    client.on_disconnect = lambda client, userdata, flags, reason, properties: print(f"disconnected: {reason}", file=sys.stderr)
    client.on_connect_fail = lambda client, userdata: print("no connection, trying again", file=sys.stderr)
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = SESSION
    # Without a clean start the broker goes on with the session that it has.
    client.connect_async(broker["host"], broker["port"], clean_start=False, properties=session)
    # Blocked before the client's thread starts, and waited for: a signal handler must not call the client.
    stop = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    client.loop_start()
    signal.sigwait(stop)
    client.disconnect()
    client.loop_stop()


if __name__ == "__main__":
    main()
