"""The gate at which threads of an attached process stand: ptrace stops them, vCPU or not."""

from __future__ import annotations

import os

from uffdtrack import procfs
from uffdtrack._sys import lib
from uffdtrack.errors import PauseTimeoutError, StopTimeoutError
from uffdtrack.gate import PAUSE_TIMEOUT
from uffdtrack.signal_gate import SignalGate, check_core, raise_gone, resume_core
from uffdtrack.tracee import Tracee
from uffdtrack.vcpus import Vcpus

SETTLE = 5.0
"""At the end, wait so many seconds for a thread that did not stop in time."""


class PtraceGate:
    """Stops and resumes every thread of a process.

    One thread of the caller's has to make all calls, as ptrace(2) requires.

    Args:
        pid: the process.
        vcpus: those of its threads that are vCPUs.
        bounded: the engine says only that about as many pages as the threshold were touched (`ring`).
    """

    def __init__(self, pid: int, vcpus: Vcpus, bounded: bool) -> None:
        self._pid = pid
        self._vcpus = vcpus
        self._bounded = bounded
        self._core = SignalGate(vcpus)
        self._tracee: Tracee | None = None
        self._halted = False

    def open(self) -> None:
        """Make it possible to stop threads."""
        self._tracee = Tracee(self._pid)

    def close(self) -> None:
        """Let every thread run. Idempotent."""
        if self._tracee:
            self._tracee.settle(SETTLE)  # a thread that did not stop in time can only be let go when it does
            self._tracee.close()
            self._tracee = None
        self._halted = False

    def lives(self, tid: int) -> bool:
        return os.path.exists(procfs.task(self._pid, tid))

    def _ended(self) -> set[int]:
        return {vcpu for vcpu in self._vcpus.own if not self.lives(self._vcpus.tid(vcpu))}

    def pause(self, timeout: float) -> None:
        if self._halted:
            return
        assert self._tracee
        try:
            self._tracee.stop(int(timeout * 1e9), patience=0)
        except StopTimeoutError as error:
            self._raise_late(self._tracee.late, error)
        lib.ut_set_halted(self._vcpus.native, 1)
        self._halted = True
        gone = tuple(sorted(self._ended()))
        if gone:
            for vcpu in gone:
                self._vcpus.drop(vcpu)
            self._run()
            raise_gone(gone)

    def _raise_late(self, late: list[int], error: StopTimeoutError) -> None:
        lib.ut_gate_open(self._vcpus.shared)
        vcpus = tuple(vcpu for vcpu in sorted(self._vcpus.own) if self._vcpus.tid(vcpu) in late)
        raise PauseTimeoutError(
            f"threads {late} of process {self._pid} did not stop in time, vCPUs {list(vcpus)}; all run on",
            vcpus,
        ) from error

    def resume(self) -> None:
        resume_core(self._vcpus)
        self._run()

    def _run(self) -> None:
        lib.ut_gate_open(self._vcpus.shared)
        lib.ut_set_halted(self._vcpus.native, 0)
        self._halted = False
        assert self._tracee
        self._tracee.resume()

    def wait(self, seconds: float) -> bool:
        if self._reached(seconds):
            self.pause(PAUSE_TIMEOUT)
            if self._is_full():
                return True
            self._run()
        elif self._vcpus.own and len(self._ended()) == len(self._vcpus.own):
            self.pause(PAUSE_TIMEOUT)  # says who has ended
            self._run()
        return False

    def _reached(self, seconds: float) -> bool:
        if self._bounded:
            return bool(check_core(lib.ut_ring_wait(self._vcpus.native, int(seconds * 1e9)), "wait"))
        return self._core.wait_closed(seconds, 0)

    def _is_full(self) -> bool:
        if not self._bounded:
            return True
        pending = check_core(lib.ut_pending(self._vcpus.native), "count")
        if pending < lib.ut_threshold(self._vcpus.shared):
            return False
        lib.ut_gate_full(self._vcpus.shared)
        return True
