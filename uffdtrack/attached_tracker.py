"""A tracker for memory of an attached process. The vCPUs are threads of that process."""

from __future__ import annotations

import errno
import os
from typing import Any

from uffdtrack._sys import check, check_own, lib
from uffdtrack.attach import attach_uffd
from uffdtrack.attached_ram import ProcessRam
from uffdtrack.cycles import Contents, Cycle, CycleTracker
from uffdtrack.engines.table import TABLE
from uffdtrack.errors import InvalidInputError
from uffdtrack.pages import DirtyPages
from uffdtrack.process import task_directory
from uffdtrack.ptrace_gate import PtraceGate
from uffdtrack.traits import Traits
from uffdtrack.uffd_tracker import UffdTracker
from uffdtrack.vcpus import open_perf

PARTS = 8
"""ring: how often we wake up on the way to the threshold, if one vCPU does all the writing."""


class ProcessTracker(UffdTracker):
    """A tracker of `ProcessRam`. `open_tracker()` makes it.

    `pause()`, `wait_full()` and `resume()` stop and resume every thread of the process, vCPU or not. One
    thread of the caller's has to call them all, as ptrace(2) requires. If the tracker dies, kill -9 included,
    the process runs on, untracked.
    """

    ram: ProcessRam
    gate: PtraceGate

    def __init__(
        self, ram: ProcessRam, traits: Traits, vcpus: int, max_dirty_pages: int | None, reason: str
    ) -> None:
        super().__init__(ram, traits, vcpus, max_dirty_pages, reason)
        self.gate = PtraceGate(ram.pid, self._vcpus, bounded=traits.forced_pause == "bounded")

    def _arm(self) -> None:
        """Set the traps, in the process's own mapping."""
        ram = self.ram
        features = int(lib.ut_engine_features(self._engine))
        uffd = attach_uffd(ram.pid, features, TABLE[self.traits.name].waits)
        try:
            armed = lib.ut_arm(uffd, ram.address, ram.size)
            if armed in (-errno.EINVAL, -errno.ENOMEM, -errno.ENOENT):
                raise InvalidInputError(
                    f"not all of {ram.address:#x} to {ram.address + ram.size:#x} is memory of process "
                    f"{ram.pid} that can be tracked: private anonymous, or shared memory"
                )
            check(armed, "write-protect the memory", ram.pid)
            pagemap = os.open(task_directory(ram.pid) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(uffd)
            raise
        added = lib.ut_tracker_add(self._vcpus.native, 0, uffd, pagemap, ram.address, lib.UT_HOST)
        check_own(added, "track the memory")
        self.gate.open()

    def _exchange_into(self, cycle: Cycle, into: Contents) -> DirtyPages:
        return CycleTracker._exchange_into(self, cycle, into)  # the RAM is not mapped here

    def _end(self, native: Any) -> None:
        super()._end(native)
        self.gate.close()

    def bind(self, vcpu: int, tid: int) -> None:
        """Make a thread of the process a vCPU.

        Raises:
            InvalidInputError: no such vCPU, bound already, or no such thread.
        """
        self._claim(vcpu)
        if not self.gate.lives(tid):
            raise InvalidInputError(f"process {self.ram.pid} has no thread {tid}")
        wake = max(self._threshold // PARTS, 1) * 16 if self._threshold else lib.UT_NEVER
        perf = open_perf(self._engine, tid, False, wake)
        self._vcpus.bind(vcpu, self.ram.pid, tid, mm=0, forced=-1, perf=perf)
        self._vcpus.own.add(vcpu)

    def _unbind(self, vcpu: int) -> None:
        self._vcpus.drop(vcpu)

    def vcpu(self, vcpu: int) -> Any:
        raise InvalidInputError("the vCPUs are threads of another process: bind() them")
