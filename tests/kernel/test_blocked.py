"""Calls with a time limit that stops have interrupted again and again, and rollbacks into their midst."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.helpers import Build, Run, Spawn, wait_for

EPOCHS = ("--every", "15ms", "--count", "5")
"""All within one call of each thread, or two."""


class Blocked:
    """tests/programs/blocked.c."""

    def __init__(self, spawn: Spawn, build: Build, *options: str) -> None:
        self.process = spawn(build("blocked"), *options)
        assert self.process.stdout
        self.pid, self._output = self.process.pid, self.process.stdout
        line = self._output.readline()
        if line == b"unsupported\n":
            missing("int 0x80")
        assert line == b"ready\n"

    def ask(self, line: str = "") -> tuple[int, int, int]:
        assert self.process.stdin
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        answer = self._output.readline()
        left, rounds, interrupted = (int(word) for word in answer.split())
        return left, rounds, interrupted

    def leave(self) -> None:
        """All threads make another call from now on."""
        self.ask("s")
        wait_for(lambda: self.ask()[0], "all threads have left their calls")

    def works_on(self) -> None:
        first = self.ask()[1]
        wait_for(lambda: self.ask()[1] > first + 1, "all calls end")


def states(pid: int) -> set[str]:
    lines = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return {line.rpartition(")")[2].split()[0] for line in lines}


@contextmanager
def interrupted_by_others(pid: int) -> Iterator[None]:
    """Job control has stopped all threads, and that for the second time in their calls."""
    for _ in range(2):
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda: states(pid) == {"S"}, "all are in their calls")
        os.kill(pid, signal.SIGSTOP)
        assert os.waitid(os.P_PID, pid, os.WSTOPPED)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_rollbacks_into_interrupted_calls(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run
) -> None:
    """What is left of such a call is in the kernel, and at the rollback it is another call's."""
    target = Blocked(spawn, build, "400")
    uffdtrack("checkpoint", target.pid, "-o", tmp_path / "c", *EPOCHS)
    for number in (1, 4):
        target.leave()
        uffdtrack("rollback", target.pid, f"{tmp_path / 'c'}@{number}")
        assert not target.ask()[0]
        target.works_on()


def test_rollback_into_calls_that_others_have_interrupted(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run
) -> None:
    """Nothing says which calls those are: EINTR."""
    target = Blocked(spawn, build, "400", "interrupted")
    with interrupted_by_others(target.pid):
        uffdtrack("checkpoint", target.pid, "-o", tmp_path / "c", "--count", "1")
    target.leave()
    uffdtrack("rollback", target.pid, tmp_path / "c")
    assert not target.ask()[0]
    wait_for(lambda: target.ask()[2], "calls end by EINTR")


@pytest.mark.parametrize("others", [False, True])
def test_rollback_into_calls_that_have_not_ended(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run, others: bool
) -> None:
    """Whoever has interrupted them, they go on: what the kernel has is theirs."""
    target = Blocked(spawn, build, "3600000")
    with interrupted_by_others(target.pid) if others else nullcontext():
        uffdtrack("checkpoint", target.pid, "-o", tmp_path / "c", *EPOCHS)
    for number in (0, 3):
        uffdtrack("rollback", target.pid, f"{tmp_path / 'c'}@{number}")
        assert target.ask() == (0, 0, 0)
