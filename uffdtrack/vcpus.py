"""The vCPUs of an active tracker, and those that have ended and that the user does not know of yet."""

from __future__ import annotations

import threading
from typing import Any

from uffdtrack._sys import check_own, ffi, lib
from uffdtrack.errors import CycleError, InvalidInputError, TrackerError


class Vcpus:
    """The vCPUs of a tracker, as the C core has them: from `open()` to `close()`.

    Attributes:
        count: how many there can be.
        own: the vCPUs that are threads bound by the tracker's user.
    """

    def __init__(self, count: int) -> None:
        if not 1 <= count <= lib.UT_MAX_VCPUS:
            raise InvalidInputError(f"{count} vCPUs: there can be 1 to {lib.UT_MAX_VCPUS}")
        self.count = count
        self.own: set[int] = set()
        self._native: Any = None
        self._shared: Any = None
        self._changed = threading.Condition()
        self._gone: list[int] = []

    def open(self, native: Any, shared: Any) -> None:
        self._native, self._shared = native, shared

    def close(self) -> None:
        self._native = self._shared = None
        self.own.clear()

    @property
    def native(self) -> Any:
        """The core's tracker.

        Raises:
            CycleError: it is closed.
        """
        return _open(self._native)

    @property
    def shared(self) -> Any:
        """The core's lists and gate.

        Raises:
            CycleError: they are closed.
        """
        return _open(self._shared)

    def state(self, vcpu: int) -> int:
        return int(lib.ut_vcpu_state(self.shared, vcpu))

    def tid(self, vcpu: int) -> int:
        return int(lib.ut_vcpu_tid(self.shared, vcpu))

    def in_state(self, state: int) -> list[int]:
        return [vcpu for vcpu in range(self.count) if self.state(vcpu) == state]

    def claim(self, vcpu: int) -> None:
        """Raises: InvalidInputError: there is no such vCPU, or it is bound already."""
        if not 0 <= vcpu < self.count:
            raise InvalidInputError(f"no vCPU {vcpu}: there are 0 to {self.count - 1}")
        if self.state(vcpu) != lib.UT_VCPU_FREE:
            raise InvalidInputError(f"vCPU {vcpu} is bound already")

    def bind(self, vcpu: int, pid: int, tid: int, *, mm: int, forced: int, perf: list[int]) -> None:
        """Make a thread a vCPU.

        Args:
            mm: number of its address space.
            forced: 1: a signal stops it; 0: nothing does; -1: ptrace does.
            perf: ring: its events (`open_perf()`), which the core owns from now on.
        """
        lib.ut_vcpu_bind(self.shared, vcpu, pid, tid, forced)
        if perf:
            try:
                added = lib.ut_tracker_events(self.native, vcpu, mm, *perf, *[-1] * (3 - len(perf)))
                check_own(added, "map a perf ring (RLIMIT_MEMLOCK, perf_event_mlock_kb)")
            except BaseException:
                self.drop(vcpu)
                raise
        with self._changed:
            self._changed.notify_all()

    def drop(self, vcpu: int, died: bool = False) -> None:
        """Make it no vCPU any more. Its writes stay in the cycle."""
        self.own.discard(vcpu)
        lib.ut_tracker_drop(self.native, vcpu, int(died))

    def bury(self, vcpu: int) -> None:
        """Note that it has ended without `leave()`: the next pause tells the user."""
        with self._changed:
            if self.state(vcpu) == lib.UT_VCPU_FREE:
                return
            self.drop(vcpu, died=True)
            self._gone.append(vcpu)
            self._changed.notify_all()

    def take_gone(self) -> tuple[int, ...]:
        """The vCPUs that were buried since the last call."""
        if not self._gone:
            return ()
        with self._changed:
            gone, self._gone = tuple(sorted(set(self._gone))), []
        return gone

    def wait_bound(self, timeout: float) -> None:
        """Wait until all are bound. Raises: TrackerError: not all are within so many seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self.in_state(lib.UT_VCPU_FREE), timeout):
                raise TrackerError(f"not all of the {self.count} vCPUs have joined within {timeout} s")


def _open(part: Any) -> Any:
    if part is None:
        raise CycleError("the tracker was deactivated meanwhile")
    return part


def open_perf(engine: int, tid: int, threshold: bool, wake_bytes: int = lib.UT_NEVER) -> list[int]:
    """ring: the fds of a vCPU's events, else none.

    Args:
        threshold: also open an event that signals the thread at the end of its share.
        wake_bytes: so many bytes of records wake a poller of the first fd.
    """
    if engine != lib.UT_RING:
        return []
    out = ffi.new("int[3]")
    check_own(lib.ut_ring_open(tid, int(threshold), tid, wake_bytes, out), "open page-fault events")
    return [int(fd) for fd in out if fd >= 0]
