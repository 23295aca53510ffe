"""Somebody else traces the process: a debugger, strace, a profiler. One tracer at a time (ptrace(2))."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who traces one thread of a process.

    Attributes:
        pid: the process, its tid: the thread that is traced.
        tracer: process id of the tracer.
    """

    pid: int
    tid: int
    tracer: int

    def is_here(self) -> bool:
        return _tracer(self.pid, self.tid) == self.tracer

    def __str__(self) -> str:
        try:
            name = Path(f"/proc/{self.tracer}/comm").read_text(errors="replace").strip()
        except OSError:
            name = "a process"
        return f"{name} (pid {self.tracer})"


def find_visitor(pid: int) -> Visitor | None:
    """Who traces a thread of the process, other than ourselves. A tracer may have one thread alone.

    A tracer that our PID namespace does not show is not found (TracerPid is 0 then).
    """
    for tid in _threads(pid):
        tracer = _tracer(pid, tid)
        if tracer and tracer != os.getpid():
            return Visitor(pid, tid, tracer)
    return None


def may_trace(pid: int) -> bool:
    """Whether we could, were nobody else there: /proc/PID/mem asks for the same right (proc(5))."""
    for tid in _threads(pid):
        try:
            os.close(os.open(f"/proc/{pid}/task/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC))
        except PermissionError:
            return False
        except OSError:
            continue  # that thread has ended
        return True
    return False


def dumps_core(pid: int) -> bool:
    """Whether the kernel writes its core: its threads have been killed, and end when that is done."""
    return _status(f"/proc/{pid}/status", "CoreDumping") == "1"


def _threads(pid: int) -> Iterator[int]:
    try:
        names = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    yield from map(int, names)


def _tracer(pid: int, tid: int) -> int:
    return int(_status(f"/proc/{pid}/task/{tid}/status", "TracerPid") or 0)


def _status(path: str, name: str) -> str:
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""
