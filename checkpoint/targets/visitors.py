"""Visitors, which trace the process: a debugger, strace, a profiler. One tracer at a time (ptrace(2))."""

from __future__ import annotations

import os
from dataclasses import dataclass

from uffdtrack import command_name, procfs


@dataclass(frozen=True, slots=True)
class Visitor:
    """The tracer of one thread of a process.

    Attributes:
        pid, tid: the process, and its traced thread.
        tracer: process id of the tracer.
        name: of the tracer's program, when we found it.
    """

    pid: int
    tid: int
    tracer: int
    name: str

    def is_here(self) -> bool:
        return _tracer(self.pid, self.tid) == self.tracer

    def __str__(self) -> str:
        return f"{self.name} (pid {self.tracer})"


def find_visitor(pid: int) -> Visitor | None:
    """The tracer of any thread of the process, other than ourselves. It may trace only one thread.

    We do not find a tracer that our PID namespace does not show (TracerPid is 0 then).
    """
    for tid in procfs.threads(pid):
        tracer = _tracer(pid, tid)
        if tracer and tracer != os.getpid():
            return Visitor(pid, tid, tracer, command_name(tracer) or "a process")
    return None


def may_trace(pid: int) -> bool:
    """Whether we could trace it without the visitor: /proc/PID/mem requires the same right (proc(5))."""
    for tid in procfs.threads(pid):
        try:
            os.close(os.open(f"{procfs.task(pid, tid)}/mem", os.O_RDONLY | os.O_CLOEXEC))
        except PermissionError:
            return False
        except OSError:
            continue  # that thread has ended
        return True
    return False


def _tracer(pid: int, tid: int) -> int:
    return int(procfs.field(procfs.glance(f"{procfs.task(pid, tid)}/status"), "TracerPid") or 0)
