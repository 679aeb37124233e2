"""The site of a soak: mosquitto, the centre, two devices, as processes that can be killed, stopped and started again."""

import asyncio
import ctypes
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import time

from proxy import Link

ROOT = pathlib.Path(__file__).resolve().parents[3]
MODEL = ROOT / "models/zoo/nano-scenes"
SITE = "soak"
# Without a picture for so long a device starts its camera's pipeline anew, seconds.
STALL = 2
GST_FPS = 15
# The camera whose pipeline is hit, where there is GStreamer.
LIVE = "gate"
LABELLED = "omnilabel_frames_labelled_total"
# Stands in the command line of every pipeline of this run, so that one that outlives its device is found.
MARK = f"soak-{os.getpid()}"
LIBC = ctypes.CDLL(None)
# `steady` is never killed: its life is as long as the run. `struck` is killed again and again.
DEVICES = {"steady": ("cbor", "all"), "struck": ("json", "kept")}


class Missing(Exception):
    """Something that a soak needs is not there."""


class Process:
    """A program with its lives. Its output is kept by life, its log in one file."""

    def __init__(self, name, command, log, broken):
        self.name, self.command, self.log, self.broken = name, [str(word) for word in command], log, broken
        self.child, self.out, self.life, self.born = None, None, 0, 0.0

    def start(self):
        self.life += 1
        self.born = time.monotonic()
        self.out = self.log.with_suffix(f".{self.life}.out")
        with open(self.log, "ab") as log, open(self.out, "wb") as out:
            self.child = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, start_new_session=True,
                                          preexec_fn=end_with_parent)

    @property
    def pid(self):
        return self.child.pid if self.runs() else None

    @property
    def age(self):
        """Of this life, seconds."""
        return time.monotonic() - self.born

    def runs(self):
        return self.child is not None and self.child.poll() is None

    def check(self):
        """Starts it again if it ended and nobody asked it to, which breaks a promise."""
        if self.child is not None and self.child.poll() is not None:
            self.broken(f"{self.name} ended by itself with {self.child.returncode} (life {self.life})")
            self.start()

    def kill(self):
        child, self.child = self.child, None
        if child is not None:
            child.kill()
            child.wait()

    async def wait(self, seconds):
        """The exit status, None when it does not end."""
        child, end = self.child, time.monotonic() + seconds
        while child.poll() is None and time.monotonic() < end:
            await asyncio.sleep(0.05)
        if child.poll() is not None:
            self.child = None
        return child.poll()

    async def stop(self, seconds=20):
        """SIGTERM; what it printed, if it is JSON."""
        if not self.runs():
            self.check()
        self.child.terminate()
        status = await self.wait(seconds)
        if status is None:
            self.broken(f"{self.name} does not end within {seconds} s of SIGTERM (life {self.life})")
            self.kill()
        elif status != 0 and self.name != "broker":
            self.broken(f"{self.name} ended with {status} after SIGTERM (life {self.life})")
        return self.summary()

    def summary(self):
        try:
            return json.loads(self.out.read_text())
        except (OSError, ValueError):
            return None


def end_with_parent():
    LIBC.prctl(1, signal.SIGKILL)


def free_port():
    """Below the ports that the system gives to outgoing connections, which could take one while its owner is being started again."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def program(name):
    folder = pathlib.Path(os.environ.get("OMNILABEL_BIN", ROOT / "target/release"))
    if not (folder / name).is_file():
        raise Missing(f"{folder}/{name} is not built: cargo build --release --workspace")
    return folder / name


def call(*command):
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise Missing(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")


class Site:
    def __init__(self, work, seed, deliveries, broken):
        self.work, self.broken = work, broken
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        mosquitto = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if not mosquitto:
            raise Missing("no mosquitto: tests/setup installs it")
        self.piped = shutil.which("gst-launch-1.0") is not None
        for name, seed_of, count in [("manual", 1, 24), ("heldout", 2, 12), ("footage", 3, 60), ("last", 4, 5)]:
            call(program("omnilabel"), "scenes", "--out", work / name, "--count", count, "--seed", seed_of)
        call(program("omnilabel-trainer"), "keygen", "--out", work / "keys")
        port = free_port()
        (work / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        self.links = {name: Link(name, port, seed, deliveries if name in DEVICES else None) for name in (*DEVICES, "centre")}
        self.web = {name: free_port() for name in DEVICES}
        self.port = port
        command = {name: (program("omnilabel-edge"), "run", "--json", "--config", work / name / "edge.toml") for name in DEVICES}
        command["broker"] = (mosquitto, "-c", work / "mosquitto.conf")
        command["centre"] = (program("omnilabel-trainer"), "run", "--config", work / "trainer.toml")
        self.processes = {name: Process(name, words, work / f"{name}.log", broken) for name, words in command.items()}

    async def start(self):
        for link in self.links.values():
            await link.open()
        (self.work / "trainer.toml").write_text(
            f'state_dir = "centre"\n[broker]\nhost = "127.0.0.1"\nport = {self.links["centre"].port}\nsite = "{SITE}"\n'
            f'[data]\nmanual = "manual"\nheldout = "heldout"\n[model]\nrunning = "{MODEL}"\n[round]\nmax_rounds = 0\n'
            f'[release]\nkey = "keys/release.key"\n')
        for name in DEVICES:
            (self.work / name).mkdir()
            call(program("omnilabel-edge"), "model", "install", "--bundle", MODEL, "--data-dir", self.work / name / "state",
                 "--root-key", self.work / "keys/release.pub")
            self.configure(name, self.cameras())
        await self.start_broker()
        for name in ("centre", *DEVICES):
            self.processes[name].start()

    def cameras(self):
        # A folder waits for the engine, so that with this rate the engine always has a frame; the live camera drops what comes too fast.
        folder = f'[cameras.reel]\ntype = "folder"\npath = "{self.work / "footage/images"}"\nloop = true\nfps = 1000\n'
        if not self.piped:
            return folder + folder.replace("reel", LIVE)
        test = (f"videotestsrc is-live=true pattern=ball name={MARK} ! video/x-raw,width=160,height=128,framerate={GST_FPS}/1")
        return folder + f"[cameras.{LIVE}]\ntype = \"gstreamer\"\npipeline = '{test}'\nfps = {GST_FPS}\nstall_secs = {STALL}\n"

    def last_camera(self):
        """A few frames, after which the device ends as soon as everything is acknowledged."""
        return f'[camera]\ntype = "folder"\npath = "{self.work / "last/images"}"\nstop_at_end = true\n'

    def configure(self, name, cameras):
        encoding, frames = DEVICES[name]
        (self.work / name / "edge.toml").write_text(
            f'device = "{name}"\nstate_dir = "state"\n[broker]\nhost = "127.0.0.1"\nport = {self.links[name].port}\nsite = "{SITE}"\n'
            f'{cameras}[teacher]\nscales = [112]\nthreads = 1\n[publish]\nencoding = "{encoding}"\nframes = "{frames}"\n'
            f'[web]\nlisten = "127.0.0.1:{self.web[name]}"\n')

    async def start_broker(self):
        self.processes["broker"].start()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.transport.abort()
                return
            except OSError:
                await asyncio.sleep(0.05)
        raise Missing("mosquitto does not listen: see broker.log")

    def pipelines(self, name):
        """Process ids of a device's pipelines."""
        parent = self.processes[name].pid
        return [pid for pid, (_, state, _) in children(parent).items() if state != "Z"] if parent else []

    def orphans(self):
        """Pipelines of this run whose device is gone."""
        return left_over(everyone(), [self.processes[name].pid for name in DEVICES])

    async def metrics(self, name):
        """What the device says of itself; None when that is no answer."""
        return figures(*await fetch(self.web[name], "/metrics"))

    async def ill(self, name):
        """What the device's health is, None when all is well."""
        return illness(*await fetch(self.web[name], "/healthz"))

    async def close(self):
        for process in self.processes.values():
            process.kill()
        for link in self.links.values():
            await link.close()


async def fetch(port, path):
    """(status, body); (None, what went wrong) when there is no answer within 3 s."""
    try:
        return await asyncio.wait_for(ask(port, path), 3)
    except (OSError, ValueError, IndexError, asyncio.TimeoutError) as error:
        return None, repr(error)


async def ask(port, path):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        text = (await reader.read()).decode()
    finally:
        writer.close()
    head, _, body = text.partition("\r\n\r\n")
    return int(head.split()[1]), body


def figures(status, text):
    """Of an answer to `/metrics`; None when it does not say how many frames were labelled."""
    if status != 200:
        return None
    try:
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("omnilabel_"))
        said = {key: float(value) for key, value in lines}
    except ValueError:
        return None
    return said if LABELLED in said else None


def illness(status, text):
    """What an answer to `/healthz` says other than that all is well; None when it says so."""
    return None if status == 200 and text.strip() == "ok" else f"{status or 'no answer'}: {text.strip()}"


def stat(pid):
    """(parent, state, command line) of a process."""
    try:
        line = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return int(line[1]), line[0], words
    except (OSError, IndexError):
        return None


def everyone():
    found = {int(name): stat(name) for name in os.listdir("/proc") if name.isdigit()}
    return {pid: what for pid, what in found.items() if what}


def children(parent):
    return {pid: what for pid, what in everyone().items() if what[0] == parent}


def left_over(found, devices):
    """Pipelines of this run, of the processes `found`, whose parent is none of `devices`."""
    return [pid for pid, (parent, state, words) in found.items() if MARK in words and state != "Z" and parent not in devices]


def resources(pid):
    """Anonymous memory, resident or swapped out, and RSS in KiB, open descriptors, threads and children that ended unnoticed."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        zombies = sum(1 for _, state, _ in children(pid).values() if state == "Z")
        kib = {key: int(status[key].split()[0]) for key in ("VmRSS", "RssAnon", "VmSwap")}
        return {"anon_kib": kib["RssAnon"] + kib["VmSwap"], "rss_kib": kib["VmRSS"], "fds": len(os.listdir(f"/proc/{pid}/fd")),
                "threads": int(status["Threads"]), "zombies": zombies}
    except (OSError, KeyError):
        return None
