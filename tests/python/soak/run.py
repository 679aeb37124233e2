"""One soak: faults by the plan, samples, then quiet until everything has drained, then the account."""

import asyncio
import collections
import json
import signal
import sqlite3
import sys
import time

import audit
import faults
import flat
import processes
import promises
from proxy import Deliveries

# Before the first fault, seconds: devices and centre connect.
BEGIN = 10
# Without faults at the end, while the devices go on: a share of the run, and seconds at least and at most. The least is the longest
# back-off of a connection (30 s) and the time after which a label is sent again that the broker took while the centre was away (15 s).
CALM = (0.1, 45, 60)
# How long the outboxes may take to empty afterwards. A label that was sent and not acknowledged comes again after 120 s at the latest.
DRAIN = 240
# A pipeline that was hit has to be replaced within: its stall time, the longest back-off of 30 s, its start.
REPLACED = processes.STALL + 45
PROGRESS = 10


class Soak:
    def __init__(self, minutes, seed, out):
        self.minutes, self.seed, self.out = minutes, seed, out
        self.deliveries = Deliveries()
        self.broken = []
        self.site = processes.Site(out / "work", seed, self.deliveries, self.breaks)
        self.db = out / "work/centre/centre.sqlite"
        self.begin = time.monotonic()
        self.end_early = asyncio.Event()
        self.counts = collections.Counter()
        self.marks, self.samples, self.rates = [], [], []
        self.lives = {}
        self.figures = {}
        self.stored = 0
        self.busy = collections.Counter()
        self.replaced_after = []
        # By device: pipelines that were replaced, when it was disturbed (seconds since 1970), whether its page answered.
        self.replaced, self.disturbed, self.answers = (collections.defaultdict(list) for _ in range(3))
        self.unread = False

    def now(self):
        return time.monotonic() - self.begin

    def breaks(self, promise):
        self.broken.append(f"{promise} [{self.now():.0f} s]")
        self.say(f"BROKEN: {promise}")

    def say(self, text):
        print(f"{self.now():6.0f} s  {text}", file=sys.stderr, flush=True)

    # The run.

    async def run(self):
        loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self.interrupted)
        watchers = []
        try:
            await self.site.start()
            self.begin = time.monotonic()
            total = self.minutes * 60
            calm = min(max(total * CALM[0], CALM[1]), CALM[2])
            targets = {"killed": "struck", "piped": list(processes.DEVICES) if self.site.piped else []}
            plan = faults.plan(self.seed, BEGIN, total - calm, list(self.site.links), targets)
            self.say(f"{len(plan)} faults in {total / 60:g} minutes, seed {self.seed}" +
                     ("" if self.site.piped else "; no gst-launch-1.0: both cameras are folders, pipelines are not tried"))
            watchers = [asyncio.ensure_future(watch()) for watch in (self.sample, self.progress, self.watch)]
            await self.strike(plan)
            await self.quiet(calm)
            for watcher in watchers:
                if watcher.done():
                    self.breaks(f"the soak looked no more: {watcher.exception()!r}")
                watcher.cancel()
            await self.drain()
            self.settle()
        finally:
            for watcher in watchers:
                watcher.cancel()
            await self.site.close()
        return self.report()

    def interrupted(self):
        if self.end_early.is_set():
            # A second time means now.
            self.task.cancel()
            return
        self.say("interrupted: the faults end, what is under way is drained")
        self.end_early.set()

    async def pause(self, seconds):
        try:
            await asyncio.wait_for(self.end_early.wait(), max(0, seconds))
        except asyncio.TimeoutError:
            pass

    async def strike(self, plan):
        tasks = []
        for fault in plan:
            await self.pause(fault.at - self.now())
            if self.end_early.is_set():
                break
            tasks.append(asyncio.ensure_future(self.hit(fault)))
        # A process that was killed comes back before the quiet begins.
        await asyncio.gather(*tasks)

    async def hit(self, fault):
        self.counts[fault.kind] += 1
        self.marks.append({"at": round(self.now(), 2), "kind": fault.kind, "target": fault.target, **fault.options})
        kind, name = fault.kind, fault.target
        if kind == "drop":
            self.site.links[name].drop()
        elif kind in faults.LINK_FAULTS:
            link, options = self.site.links[name], dict(fault.options)
            seconds = options.pop("seconds")
            if kind != "one way":
                return link.begin(kind, seconds, **options)
            # It ends with the connection and not before: a stream does not go on behind bytes that are lost.
            link.begin(kind, 2 * seconds, **options)
            await self.pause(seconds)
            link.drop()
            link.end(kind)
        elif kind in faults.PIPELINE_FAULTS:
            await self.hit_pipeline(kind, name)
        else:
            await self.hit_process(kind, name, fault.options["pause"])

    async def hit_process(self, kind, name, pause):
        process = self.site.processes[name]
        if self.busy[name]:
            self.counts[kind] -= 1
            self.counts[f"{kind}: was down already"] += 1
            return
        self.busy[name] += 1
        self.disturbed[name].append(time.time())
        try:
            process.check()
            if kind.endswith("SIGTERM"):
                said = await process.stop()
                if name in processes.DEVICES:
                    self.well_ended(name, said)
            else:
                process.kill()
            await asyncio.sleep(pause)
            await self.site.start_broker() if name == "broker" else process.start()
        finally:
            self.busy[name] -= 1
        if name in processes.DEVICES:
            await asyncio.sleep(1)
            self.no_orphans()

    def well_ended(self, name, said):
        if said is None or said["dropped"]:
            self.breaks(f"{name} says of its end: {said}")

    def no_orphans(self):
        if left := self.site.orphans():
            self.breaks(f"{len(left)} pipelines outlive their device")
            for pid in left:
                processes.os.kill(pid, signal.SIGKILL)

    async def hit_pipeline(self, kind, name):
        """Stops or kills a device's pipelines, and waits until it has others. A device that ends meanwhile needs none."""
        process, before = self.site.processes[name], None
        life, began = process.life, self.now()
        while process.life == life and not self.busy[name] and not self.end_early.is_set():
            found = self.site.pipelines(name)
            if before is None and found:
                before, began = found, self.now()
                self.disturbed[name].append(time.time())
                for pid in found:
                    try:
                        processes.os.kill(pid, signal.SIGSTOP if kind == "pipeline stopped" else signal.SIGKILL)
                    except ProcessLookupError:
                        continue
            elif found and before is not None and not set(found) & set(before):
                self.replaced_after.append(round(self.now() - began, 1))
                self.replaced[name].append(promises.Replaced(kind, time.time()))
                return
            if self.now() - began > REPLACED:
                self.breaks(f"{name} has no new pipeline {REPLACED} s after {kind}")
                return
            await asyncio.sleep(0.2)

    async def quiet(self, seconds):
        for link in self.site.links.values():
            link.heal()
        await self.pause(seconds)
        for name in processes.DEVICES:
            said = await self.site.metrics(name) or {}
            self.figures[f"{name} pending after the calm"] = said.get("omnilabel_outbox_pending")
            # Whoever ends the run early leaves no calm to get well in.
            ill = None if self.end_early.is_set() else await self.site.ill(name)
            if ill is not None:
                self.breaks(f"{name} is not well after the calm: {ill}")

    async def drain(self):
        self.drained_from = self.now()
        self.say("no more faults: every outbox has to empty")
        devices = [self.site.processes[name] for name in processes.DEVICES]
        self.lives = {name: process.life for name, process in self.site.processes.items()}
        for name in processes.DEVICES:
            self.disturbed[name].append(time.time())
        for device, said in zip(devices, await asyncio.gather(*(device.stop() for device in devices))):
            self.well_ended(device.name, said)
        for device in devices:
            self.site.configure(device.name, self.site.last_camera())
            device.start()
        self.summaries = {}
        stored = audit.stored(self.db)
        if stored is None:
            self.unreadable()
        self.figures["labels stored a second"] = None if stored is None else round(stored / self.now(), 1)
        for device in devices:
            status = await device.wait(max(1, DRAIN - (self.now() - self.drained_from)))
            if status is None:
                said = await self.site.metrics(device.name) or {}
                self.breaks(f"{device.name} is not empty {DRAIN} s after the last fault: {said.get('omnilabel_outbox_pending')} pending")
                await device.stop()
            elif status != 0:
                self.breaks(f"{device.name} ended with {status} when it had drained")
            self.summaries[device.name] = device.summary() or {}
        self.figures["seconds to drain"] = round(self.now() - self.drained_from, 1)
        await self.site.processes["centre"].stop()
        if self.site.processes["broker"].runs():
            await self.site.processes["broker"].stop()
        await asyncio.sleep(0.5)
        self.no_orphans()

    # What is looked at.

    async def sample(self):
        every = 2 if self.minutes < 20 else 5
        while True:
            at = round(self.now(), 2)
            for name in (*processes.DEVICES, "centre"):
                process = self.site.processes[name]
                found = processes.resources(process.pid) if process.pid else None
                if found:
                    self.samples.append({"at": at, "process": name, "life": process.life, **found})
            await asyncio.gather(*(self.question(name) for name in processes.DEVICES))
            await asyncio.sleep(max(0.1, at + every - self.now()))

    async def question(self, name):
        """Asks a device for its metrics. Nothing is expected of one that starts, or is ended meanwhile."""
        process, at = self.site.processes[name], round(self.now(), 2)
        life, expected = process.life, self.settled(name)
        said = await self.site.metrics(name)
        if process.life != life:
            return
        if expected and self.settled(name):
            self.answers[name].append((life, said is not None))
        if said:
            self.rates.append({"at": at, "device": name, "life": life, "labels": said[processes.LABELLED],
                               "pending": said.get("omnilabel_outbox_pending", 0)})

    def settled(self, name):
        process = self.site.processes[name]
        return process.runs() and not self.busy[name] and process.age > promises.SETTLED

    def unreadable(self):
        if not self.unread:
            self.unread = True
            self.breaks("the centre's database cannot be read")

    async def watch(self):
        while True:
            for name, process in self.site.processes.items():
                if not self.busy[name] and process.child is not None:
                    process.check()
            await asyncio.sleep(0.5)

    async def progress(self):
        before, at = 0, 0
        while True:
            await asyncio.sleep(PROGRESS)
            stored, settled = audit.stored(self.db), self.settled("centre")
            if stored is None and settled:
                self.unreadable()
            self.stored = stored or self.stored
            now = self.now()
            last = {row["process"]: row for row in self.samples[-6:]}
            pending = {row["device"]: int(row["pending"]) for row in self.rates[-4:]}
            rss = ", ".join(f"{name} {row['rss_kib'] / 1024:.0f} MiB {row['fds']} fds" for name, row in last.items())
            waits = ", ".join(f"{name} {count}" for name, count in pending.items())
            ills = [f"{link.name}: {name}" for link in self.site.links.values() for name in link.until if link.has(name)]
            ills += [f"{name} down" for name, down in self.busy.items() if down]
            self.say(f"{self.stored} stored ({(self.stored - before) / (now - at):.0f}/s); pending {waits}; "
                     f"{sum(self.counts.values())} faults; {rss}" + (f"; now {', '.join(ills)}" if ills else ""))
            before, at = self.stored, now

    # The account.

    def settle(self):
        self.accounts = {}
        said = audit.sound(self.db)
        if said != "ok":
            self.breaks(f"the centre's database: {said}")
        for name in processes.DEVICES:
            outbox = json.loads((self.site.work / name / "state/outbox/outbox.json").read_text())
            summary = self.summaries[name]
            for key in ("pending", "dropped"):
                if summary.get(key) != 0:
                    self.breaks(f"{name}: {summary.get(key)} labels {key} at the end")
            try:
                account, broken = audit.settle(self.db, name, outbox["epoch"], summary.get("committed", 0), summary.get("evicted", 0),
                                               self.deliveries.first)
            except sqlite3.Error as error:
                self.breaks(f"{name}: its labels cannot be read: {error}")
                continue
            self.accounts[name] = account
            for promise in broken:
                self.breaks(promise)
        changed = collections.Counter(key[:2] for key in self.deliveries.changed)
        for (name, kind), count in changed.items():
            self.breaks(f"{name} sent {count} {kind} again with other bytes")
        with open(self.db.with_name("events.jsonl")) as lines:
            events = [json.loads(line) for line in lines]
        self.events = collections.Counter(event["event"] for event in events)
        for event in audit.refused(events):
            self.breaks(f"the centre reports {json.dumps(event)[:300]}")
        for link in self.site.links.values():
            for what in link.counts:
                if what.startswith("failed"):
                    self.breaks(f"the proxy of {link.name} {what}")
        for name, log in self.logs().items():
            if log["panics"]:
                self.breaks(f"{name} panicked: {log['panics'][0]}")

    def logs(self):
        return {name: audit.graded(self.site.processes[name].log.read_text(errors="replace")) for name in (*processes.DEVICES, "centre")}

    def owed(self):
        """Whether pages answered, frames were labelled all the time, and live cameras came back; with figures."""
        found = {"pages": {}, "live": {}}
        for name in processes.DEVICES:
            answers, captured = self.answers[name], self.deliveries.captured[name, processes.LIVE]
            broken, delays = promises.live_again(name, self.replaced[name], captured, self.disturbed[name])
            # A run that is ended at once has nothing to show.
            if not self.end_early.is_set():
                broken += promises.page(name, answers)
            for promise in broken:
                self.breaks(promise)
            found["pages"][name] = {"asked": len(answers), "unanswered": sum(not answered for _, answered in answers)}
            found["live"][name] = {"labels": len(captured), "replaced": len(self.replaced[name]), "live_again": len(delays),
                                   "slowest_seconds": max(delays, default=None)}
        rates = [(row["at"], row["life"], row["labels"]) for row in self.rates if row["device"] == "steady"]
        broken, least, median = promises.progress("steady", rates)
        for promise in [] if self.end_early.is_set() else broken:
            self.breaks(promise)
        return {**found, "spells": {"device": "steady", "seconds": promises.SPELL, "least": least, "median": median}}

    def verdicts(self):
        """Of the longest life of each process. The last life of a device, in which it only drains, is not sampled."""
        rows, length = [], self.samples[-1]["at"] if self.samples else 0
        for name in (*processes.DEVICES, "centre"):
            lives = collections.defaultdict(list)
            for row in self.samples:
                if row["process"] == name:
                    lives[row["life"]].append(row)
            if not lives:
                continue
            life = max(lives, key=lambda life: lives[life][-1]["at"] - lives[life][0]["at"])
            samples = lives[life]
            at = [row["at"] for row in samples]
            long = (at[-1] - at[0]) * 2 > length
            for quantity, growth in flat.GROWTH.items():
                verdict = flat.judge(at, [row[quantity] for row in samples], growth, flat.SHORTEST.get(quantity, 0)) if long else None
                if verdict is None:
                    # The device that is killed again and again has no long life.
                    if name != "struck" and growth is not None and not self.end_early.is_set():
                        self.breaks(f"{name} has no life of half the run to judge its {quantity} by")
                    continue
                length_of_life = round((at[-1] - at[0]) / 60, 2)
                rows.append({"process": name, "quantity": quantity, "life": life, "life_minutes": length_of_life, **vars(verdict)})
                if not verdict.flat:
                    self.breaks(f"{name}: {quantity} grows by {verdict.slope_per_minute:.2f} a minute, "
                                f"at most {verdict.most_per_minute:.2f} expected")
            zombies = max(row["zombies"] for life in lives.values() for row in life[-3:])
            if zombies > 2:
                self.breaks(f"{name} leaves {zombies} children unwaited for")
        return rows

    def report(self):
        verdicts, owed = self.verdicts(), self.owed()
        packets = {link.name: dict(link.counts) for link in self.site.links.values()}
        return {
            "minutes": round(self.now() / 60, 2), "asked_minutes": self.minutes, "seed": self.seed,
            "interrupted": self.end_early.is_set(),
            "gstreamer": self.site.piped, "cores": len(processes.os.sched_getaffinity(0)),
            "faults": dict(self.counts), "packets": packets,
            "pipelines_replaced": {"count": len(self.replaced_after), "slowest_seconds": max(self.replaced_after, default=None)},
            "labels": self.accounts, **owed,
            "sent": {f"{name} {kind}": {"messages": count, "repeated": self.deliveries.repeated[name, kind]}
                     for (name, kind), count in self.deliveries.sent.items()},
            "lives": self.lives, "events": self.events,
            "figures": self.figures, "flat": verdicts, "logs": self.logs(), "broken": self.broken,
            "samples": self.samples, "rates": self.rates, "marks": self.marks,
        }
