"""TCP proxies that know MQTT: between each client and the broker, with faults that are switched on and off from outside.

What a proxy does is what a network, or a broker that dies, can do to a client that keeps to the protocol: bytes stop, come late, or
end. Repeated and swapped PUBLISH packets stand for what happens across connections, where QoS 1 delivers again and orders nothing. To
the broker a packet comes again as from a client that had no answer: under its id, with DUP. Clients get the message again under another
id: MQTT 5 forbids a broker to repeat a packet within a connection (MQTT-4.4.0-1), but not to deliver a message twice. The
acknowledgement of a copy is kept back, because its sender sent one packet.
"""

import asyncio
import collections
import hashlib
import random

import mqtt

UP, DOWN = "up", "down"
# Packets that wait in a direction. Beyond it the sender is not read, so that a slow link fills the sender's socket, as a real one does.
WAITING = 256
# A packet that waits for the one it changes places with goes alone after this, seconds.
HELD = 0.25


class Deliveries:
    """What devices sent: of each key the bytes it came with first, as a hash, and how often it came again; of each camera when its
    labelled frames were captured, milliseconds since 1970."""

    def __init__(self):
        self.first = {}
        self.sent = collections.Counter()
        self.repeated = collections.Counter()
        self.changed = []
        self.captured = collections.defaultdict(list)

    def see(self, key, payload, camera=None, captured=None):
        digest = hashlib.blake2b(payload, digest_size=8).digest()
        device, kind = key[:2]
        self.sent[device, kind] += 1
        known = self.first.setdefault(key, digest)
        if known is digest and camera is not None:
            self.captured[device, camera].append(captured)
        if known is not digest:
            self.repeated[device, kind] += 1
            if known != digest:
                self.changed.append(key)


class Link:
    """One client's way to the broker."""

    def __init__(self, name, upstream, seed, deliveries=None):
        self.name, self.upstream, self.deliveries = name, upstream, deliveries
        self.random = random.Random(f"{seed} {name}")
        self.until = {}
        self.options = {}
        self.connections = set()
        self.counts = collections.Counter()
        self.server = None
        self.port = None

    async def open(self):
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def accept(self, reader, writer):
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            self.counts["refused connections"] += 1
            writer.transport.abort()
            return
        self.counts["connections"] += 1
        connection = Connection(self, (reader, writer), (up_reader, up_writer))
        self.connections.add(connection)
        try:
            await connection.run()
        except asyncio.CancelledError:
            # Only at the end of everything, where asyncio would report it as a failure.
            pass
        finally:
            self.connections.discard(connection)

    def begin(self, fault, seconds, **options):
        self.options[fault] = options
        self.until[fault] = asyncio.get_running_loop().time() + seconds

    def has(self, fault):
        return self.until.get(fault, 0) > asyncio.get_running_loop().time()

    def heal(self):
        self.until.clear()

    def end(self, fault):
        self.until.pop(fault, None)

    def drop(self):
        for connection in list(self.connections):
            connection.abort()

    async def close(self):
        if self.server:
            self.server.close()
        self.drop()


class Connection:
    def __init__(self, link, client, broker):
        self.link = link
        self.sides = {UP: (client[0], broker[1]), DOWN: (broker[0], client[1])}
        self.queues = {way: asyncio.Queue(WAITING) for way in self.sides}
        # Per direction and packet id: whether the next acknowledgement that comes back is the client's to see.
        self.expected = {way: collections.defaultdict(collections.deque) for way in self.sides}
        self.tasks = []

    def abort(self):
        for _, writer in self.sides.values():
            writer.transport.abort()
        for task in self.tasks:
            task.cancel()

    async def run(self):
        self.tasks = [asyncio.ensure_future(step(way)) for way in self.sides for step in (self.read, self.write)]
        try:
            await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.abort()
            for result in await asyncio.gather(*self.tasks, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, OSError):
                    # A proxy that fails would pass for a network that does.
                    self.link.counts[f"failed: {result!r}"] += 1

    async def read(self, way):
        reader, framer, due = self.sides[way][0], mqtt.Framer(), 0
        now = asyncio.get_running_loop().time
        while data := await reader.read(1 << 16):
            for packet in framer.feed(data):
                if way == UP and self.link.deliveries and mqtt.kind(packet) == mqtt.PUBLISH:
                    topic, payload = mqtt.message(packet)
                    if label := mqtt.label(topic, payload):
                        key, camera, captured = label
                        self.link.deliveries.see(key, payload, camera, captured)
                late = 0
                if self.link.has("delay"):
                    late = self.link.random.uniform(0.05, self.link.options["delay"]["most"])
                    self.link.counts["packets delayed"] += 1
                due = max(due, now() + late)
                await self.queues[way].put((due, packet))
        await self.queues[way].put((due, None))

    async def write(self, way):
        link, queue, held = self.link, self.queues[way], None
        now = asyncio.get_running_loop().time
        while True:
            try:
                due, packet = await asyncio.wait_for(queue.get(), HELD if held else None)
            except asyncio.TimeoutError:
                await self.put(way, held)
                held = None
                continue
            if packet is None:
                return
            await asyncio.sleep(max(0, due - now()))
            publish = mqtt.kind(packet) == mqtt.PUBLISH
            if held:
                if publish:
                    link.counts["pairs swapped"] += 1
                    await self.put(way, packet)
                    await self.put(way, held)
                else:
                    await self.put(way, held)
                    await self.put(way, packet)
                held = None
            elif publish and link.has("reorder") and link.random.random() < 0.5:
                held = packet
            else:
                await self.put(way, packet)

    async def put(self, way, packet):
        link, back = self.link, DOWN if way == UP else UP
        while link.has("stall"):
            await asyncio.sleep(0.05)
        if link.has("one way") and link.options["one way"]["way"] == way:
            link.counts["packets lost with their connection"] += 1
            return
        copies = [packet]
        if mqtt.kind(packet) == mqtt.PUBLISH:
            identity = mqtt.packet_id(packet)
            if identity:
                self.expected[way][identity].append(True)
            if identity and link.has("duplicate") and link.random.random() < 0.5:
                # Half of all ids away from those that the broker gives now.
                other = identity if way == UP else (identity + 0x7FFF) % 0xFFFF + 1
                copies.append(mqtt.again(packet) if way == UP else mqtt.under(packet, other))
                self.expected[way][other].append(False)
                link.counts["packets duplicated"] += 1
        elif mqtt.kind(packet) == mqtt.PUBACK:
            waiting = self.expected[back].get(mqtt.packet_id(packet))
            if waiting and not waiting.popleft():
                return
        writer = self.sides[way][1]
        for copy in copies:
            if link.has("throttle"):
                await asyncio.sleep(len(copy) / link.options["throttle"]["bytes_per_second"])
                link.counts["packets throttled"] += 1
            writer.write(copy)
            await writer.drain()
