"""Two hosts, and a network between them that is slow, loses packets and parts: a program, as root.

Network namespaces, joined by a pair of interfaces with netem (tc-netem(8)) at both ends. In one of them
runs a writer (netem_writer.py), in the other one a standby. Whatever happens on the way, the standby has
each epoch that was acknowledged, all of its epochs are as they were sent, and when the writer's host has died
it goes on from there.
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetNS, netns

from checkpoint.chain import Chain
from tests.replication.netem_writer import DEADLINE, hash_of
from tests.unit.histories import contents_of

HOSTS = "active", "standby"
ADDRESSES = "10.203.1.1", "10.203.1.2"
PLACE = Path("/tmp/hosts")
NAMES = Path("/var/run/netns")
ROUNDS = 8
LAST = 90.0
"""Seconds for whatever has to come, on an emulated processor."""
IN = """
import runpy, sys
from pyroute2 import netns
netns.setns(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
WEATHER: list[tuple[str, dict[str, Any]]] = [
    ("fair", {"delay": 1000}),
    ("slow", {"delay": 40_000, "jitter": 10_000}),
    ("lossy", {"delay": 5000, "loss": 10}),
    ("bad", {"delay": 20_000, "jitter": 20_000, "loss": 20, "duplicate": 5}),
]
"""Microseconds, and per cent. With jitter, packets overtake each other."""


class Network:
    """The pair of interfaces. Nothing closes it: the kernel ends with the program."""

    def __init__(self) -> None:
        NAMES.mkdir(parents=True, exist_ok=True)
        for host in HOSTS:
            netns.create(host)
        with IPRoute() as route:
            route.link("add", ifname="v0", kind="veth", peer={"ifname": "v1"})
            for n, host in enumerate(HOSTS):
                (index,) = route.link_lookup(ifname=f"v{n}")
                route.link("set", index=index, net_ns_fd=host)
        self._ends: list[tuple[NetNS, int]] = []
        for n, host in enumerate(HOSTS):
            inside = NetNS(host)
            (index,) = inside.link_lookup(ifname=f"v{n}")
            inside.addr("add", index=index, address=ADDRESSES[n], prefixlen=24)
            for each in (index, *inside.link_lookup(ifname="lo")):
                inside.link("set", index=each, state="up")
            inside.tc("add", "netem", index=index, handle="1:", delay=0)
            self._ends.append((inside, index))

    def set(self, way: int, **how: Any) -> None:
        """What happens to packets that are sent by one of the hosts."""
        inside, index = self._ends[way]
        inside.tc("change", "netem", index=index, handle="1:", **how)

    def part(self, *ways: int) -> None:
        for way in ways:
            self.set(way, loss=100)


class Process:
    """A module of Python on a host, and what it has said."""

    def __init__(self, host: str, module: str, *words: object) -> None:
        command = [sys.executable, "-u", "-c", IN, host, module, *map(str, words)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=PLACE
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def said(self, pattern: str) -> list[re.Match[str]]:
        return [found for line in list(self.lines) if (found := re.match(pattern, line))]


def until(condition: Callable[[], object], what: str, *of: Process) -> None:
    deadline = time.monotonic() + LAST
    while not condition():
        if time.monotonic() > deadline or any(one.process.poll() for one in of):
            said = "\n".join("\n".join(one.lines[-20:]) for one in of)
            raise AssertionError(f"not so: {what}\n{said}")
        time.sleep(0.01)


def acknowledged(writer: Process) -> list[int]:
    return [int(found[1]) for found in writer.said(r"acknowledged (\d+) ")]


def goes_on(writer: Process, standby: Process, more: int = 3) -> None:
    was = len(acknowledged(writer))
    until(lambda: len(acknowledged(writer)) >= was + more, "epochs go on", writer, standby)


def check(chain: Path, writer: Process, tip: int) -> int:
    """What the standby has is what was sent, and all that was acknowledged. Returns: how many epochs."""
    sent = {(int(found[1]), found[2]): found[3] for found in writer.said(r"sent (\d+) (\w+) (\w+)")}
    files = Chain(chain).verify(b"")
    for file in files:
        assert sent[file.facts.epoch, file.digest] == hash_of(
            contents_of(Chain(chain), file.facts.epoch, files)
        )
    numbers = [file.facts.epoch for file in files]
    assert numbers == list(range(numbers[0], tip + 1)), numbers
    assert tip >= max(acknowledged(writer)), (tip, acknowledged(writer)[-1])
    return len(numbers)


def main(seed: int) -> None:
    rng, network = random.Random(seed), Network()
    PLACE.mkdir()
    where, lock = f"tls://{ADDRESSES[1]}:7071", PLACE / "lock"
    keys = [sys.executable, "-m", "checkpoint", "keys", str(PLACE / "keys"), *ADDRESSES]
    subprocess.run(keys, check=True, stdout=subprocess.DEVNULL)
    words = ("--listen", where, "--tls", "keys", "-o", "chain", "--fence", f"lock:{lock}")
    standby = Process(HOSTS[1], "checkpoint", "standby", *words, "--deadline", f"{DEADLINE}s")
    until(lambda: standby.said(".*listening"), "it listens", standby)
    writer = Process(HOSTS[0], "tests.replication.netem_writer", seed, where, PLACE / "keys", lock)
    goes_on(writer, standby)
    for n in range(ROUNDS):
        name, how = WEATHER[n % len(WEATHER)]
        for way in (0, 1):
            network.set(way, **how)
        goes_on(writer, standby)
        ways = rng.choice(((0,), (1,), (0, 1)))
        network.part(*ways)
        time.sleep(rng.choice((0.1, 0.5, 1.2)) * DEADLINE)  # this is how long it lasts
        for way in (0, 1):
            network.set(way, **how)
        goes_on(writer, standby)
        print(f"{name}, parted {ways}: {len(acknowledged(writer))} acknowledged", flush=True)
    if rng.random() < 0.5:
        network.part(0)
    writer.kill()
    until(lambda: standby.process.poll() is not None, "it takes over", standby)
    (place,) = standby.said(r".*the last epoch is \S*@(\d+)")
    print(f"WHOLE {check(PLACE / 'chain', writer, int(place[1]))}", flush=True)
    assert standby.process.returncode == 0 and writer.process.returncode == -signal.SIGKILL


if __name__ == "__main__":
    main(int(sys.argv[1]))
