"""A guest and its standby, two processes on loopback; see benchmarks/replication.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from checkpoint.replication.links.keys import make_pair

UFFDTRACK = Path(sys.executable).with_name("uffdtrack")
WHOLE = """
from checkpoint.cli.main import main
from checkpoint.replication import standby
standby.FEATURES = []
main()
"""
"""A standby that takes no deltas, as one of another version may."""
SECONDS = 60.0
"""So long anything may take."""
LINKS = ("unix", "tls")
NAME = "benchmark"


class Guest:
    """A guest in a process of its own; see benchmarks/replicated_guest.py."""

    def __init__(self, guest: str, *options: object) -> None:
        argv = [sys.executable, "-m", "benchmarks.replicated_guest", guest, *map(str, options)]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ask(self) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the guest has ended: {self.process.communicate()[1]}")
        return dict(json.loads(answer))

    def follow(self, epochs: int) -> None:
        """Wait until a standby has so many epochs."""
        until = time.monotonic() + SECONDS
        while self.ask()["acknowledged"] < epochs:
            if time.monotonic() > until:
                raise SystemExit(f"{epochs} epochs do not come")
            time.sleep(0.05)

    def over(self, seconds: float) -> dict[str, float]:
        """What it does in some seconds: operations and epochs a second, bytes on the wire of each epoch."""
        before = self.ask()
        time.sleep(seconds)
        after = self.ask()
        done = {key: after[key] - before[key] for key in before}
        return {
            "speed": done["written"] / done["t"],
            "epochs_per_s": done["acknowledged"] / done["t"],
            "bytes_per_epoch": done["sent"] / max(done["acknowledged"], 1),
        }

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Pair:
    """Where a guest and its standby run: a directory with their keys.

    Attributes:
        address: where the standby listens.
    """

    def __init__(self, place: Path, link: str) -> None:
        self.link = link
        self.keys = place / "keys"
        self._place = place
        if not self.keys.exists():
            make_pair(self.keys)

    @contextmanager
    def standby(self, *options: object, deltas: bool = True) -> Iterator[subprocess.Popen[str]]:
        """A standby; it is killed."""
        wanted = "tls://127.0.0.1:0" if self.link == "tls" else f"unix:{self._place}/socket"
        argv = [UFFDTRACK] if deltas else [sys.executable, "-c", WHOLE]
        more = ["--tls", self.keys] if self.link == "tls" else []
        command = [
            *argv,
            "standby",
            "--listen",
            wanted,
            "-o",
            self._place / "chain",
            "--force",
            *more,
            *options,
        ]
        with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr
                self.address = process.stderr.readline().split()[-1]
                yield process
            finally:
                process.kill()

    @contextmanager
    def guest(self, guest: str, *options: object) -> Iterator[Guest]:
        """A guest whose epochs go to the standby."""
        more = ["--keys", self.keys] if self.link == "tls" else []
        name = ["--name", NAME]
        with running(guest, "--replicate", self.address, *name, *more, *options) as made:
            made.follow(10)
            yield made


@contextmanager
def running(guest: str, *options: object) -> Iterator[Guest]:
    made = Guest(guest, *options)
    try:
        yield made
    finally:
        made.close()


class Asker:
    """Asks an "echo" guest, wherever it runs, and notes when the answers come.

    Attributes:
        active, standby: what their --net has to be.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        own = self._socket.getsockname()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))
            port = other.getsockname()[1]
        self._guests = [(host, port) for host in ("127.0.0.1", "127.0.0.2")]
        self.active, self.standby = (f"udp:{host}:{port},127.0.0.1:{own[1]}" for host, _ in self._guests)
        self._asked = 0

    def _send(self, question: bytes) -> None:
        for guest in self._guests:
            self._socket.sendto(question, guest)

    def ask(self, timeout: float) -> float | None:
        """Ask once; returns after how many seconds the answer came, None: it did not."""
        self._asked += 1
        question = b"%d" % self._asked
        asked = time.perf_counter()
        self._send(question)
        try:
            while True:
                self._socket.settimeout(max(asked + timeout - time.perf_counter(), 1e-4))
                if self._socket.recv(2048).endswith(question):
                    return time.perf_counter() - asked
        except TimeoutError:
            return None

    def delays(self, count: int) -> list[float]:
        """Of so many answers, at times that have nothing to do with the epochs."""
        found: list[float] = []
        while len(found) < count:
            time.sleep(0.003 + 0.00037 * (len(found) % 7))
            delay = self.ask(1.0)
            if delay is not None:
                found.append(delay)
        return found

    def await_first(self) -> None:
        """Ask a new question each millisecond until it is answered: most of them are lost."""
        until = time.monotonic() + SECONDS
        self._socket.settimeout(0.001)
        question = b"first %d" % self._asked
        while time.monotonic() < until:
            self._send(question)
            with suppress(TimeoutError):
                if self._socket.recv(2048).endswith(question):
                    return
        raise SystemExit("the guest does not answer")

    def await_answer(self) -> None:
        until = time.monotonic() + SECONDS
        while self.ask(0.1) is None:
            if time.monotonic() > until:
                raise SystemExit("the guest does not answer")

    def silence(self, while_done: Callable[[], object]) -> float:
        """The longest time between two answers while something is done, if it is asked all the time."""
        thread = threading.Thread(target=while_done)
        thread.start()
        longest, last = 0.0, time.perf_counter()
        self._socket.settimeout(0.001)
        while thread.is_alive():
            now = time.perf_counter()
            self._send(b"?")
            with suppress(TimeoutError):
                self._socket.recv(2048)
                longest, last = max(longest, now - last), now
        return longest

    def close(self) -> None:
        self._socket.close()


def kill(guest: Guest) -> float:
    """kill -9; returns when."""
    killed = time.perf_counter()
    os.kill(guest.process.pid, signal.SIGKILL)
    return killed


def switch_over() -> float:
    """The guest moves to its standby; returns for how many seconds it stood, as the user is told."""
    argv = [str(UFFDTRACK), "switchover", NAME, "--json"]
    row = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return float(row["stood_us"]) / 1e6


def three(values: list[float], form: str) -> str:
    """The median, the least and the most."""
    found = [format(f(values), form) for f in (statistics.median, min, max)]
    return "{} ({}-{})".format(*found)
