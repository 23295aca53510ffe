"""What all of these programs have in common."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from uffdtrack import stat_fields
from uffdtrack.errors import TargetGoneError

Tool = Callable[[str], str]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def descendants(pid: int) -> list[int]:
    """All that live at some time of the question; parents before their children."""
    found: list[int] = []
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{tid}/children").read_text()
            for child in map(int, text.split()):
                found += [child, *descendants(child)]
    except OSError:
        pass  # it has ended meanwhile
    return found


def used_ticks(pid: int) -> int:
    """Processor time in user mode, in clock ticks; 0 of one that has ended."""
    try:
        return int(stat_fields(pid)[11])
    except TargetGoneError:
        return 0


class Program:
    """A program that was started and is ready.

    Attributes:
        pid: what is checkpointed.
        tree: its descendants are checkpointed with it.
        stateful: `value` tells how often `bump` was called.
        ends_threads: it may end a thread at any time, so that a rollback over that is refused.
    """

    tree = False
    asking = 0  # what a call of value() adds to it
    stateful = True
    ends_threads = False

    def __init__(self, directory: Path, tool: Tool) -> None:
        self.directory = directory
        self.tool = tool
        self.process = self.start()
        self.pid = self.process.pid

    def start(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def bump(self) -> None:
        """Have it do something, and check the answer."""
        raise NotImplementedError

    def value(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        family = [*descendants(self.process.pid), self.process.pid]
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()

    def popen(self, *argv: object, **options: object) -> subprocess.Popen[bytes]:
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.DEVNULL)
        with (self.directory / "stderr").open("ab") as stderr:
            command = [str(a) for a in argv]
            return subprocess.Popen(command, cwd=self.directory, stderr=stderr, **options)  # type: ignore[call-overload]


class Talker(Program):
    """It reads a line, and answers with one."""

    ask = "bump"
    tell = "value"

    def argv(self) -> list[object]:
        raise NotImplementedError

    def start(self) -> subprocess.Popen[bytes]:
        self.process = self.popen(*self.argv(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.last = self.answer(self.tell)
        return self.process

    def answer(self, line: str) -> int:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        assert said, f"it has ended: {self.process.poll()} {(self.directory / 'stderr').read_text()[-500:]}"
        return int(said)

    def bump(self) -> None:
        before, now = self.last, self.answer(self.ask)
        assert now == before + 1
        self.last = now

    def value(self) -> int:
        self.last = self.answer(self.tell)
        return self.last
