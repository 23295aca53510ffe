"""The tracker on userfaultfd: per-vCPU lists, cycles, the pause gate. The hot parts are C (`_native/`)."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from uffdtrack import joining
from uffdtrack._sys import check_own, ffi, lib
from uffdtrack.cycles import Cycles, log_array
from uffdtrack.errors import (
    CycleError,
    InvalidInputError,
    TrackerError,
)
from uffdtrack.gate import Gate, checked_threshold
from uffdtrack.pages import Stats
from uffdtrack.ram import NORESERVE, GuestRam
from uffdtrack.space import PAGE
from uffdtrack.traits import Traits

LIST_CAPACITY = 1 << 16
"""Pages in each list, where no threshold says how many there can be."""


class UffdTracker(Gate, Cycles):
    """A tracker on userfaultfd. `open_tracker()` makes it.

    Attributes:
        ram: what is tracked.
        traits: what the engine promises.
        reason: why this engine.
        vcpus: how many there can be.
    """

    def __init__(
        self, ram: GuestRam, traits: Traits, vcpus: int, max_dirty_pages: int | None, reason: str
    ) -> None:
        if not 1 <= vcpus <= lib.UT_MAX_VCPUS:
            raise InvalidInputError(f"{vcpus} vCPUs: there can be 1 to {lib.UT_MAX_VCPUS}")
        if len(ram.slots) > lib.UT_MAX_SLOTS:
            raise InvalidInputError(f"{len(ram.slots)} memslots: there can be {lib.UT_MAX_SLOTS}")
        Gate.__init__(self, vcpus, 0 if max_dirty_pages is None else checked_threshold(max_dirty_pages))
        Cycles.__init__(self)
        self.ram = ram
        self.traits = traits
        self.reason = reason
        self._engine = {
            "ring": lib.UT_RING, "scan": lib.UT_SCAN, "sync": lib.UT_SYNC, "inline": lib.UT_INLINE,
        }[traits.name]  # fmt: skip
        self._shared_fd = -1
        self._member = -1
        self._closed = False
        # What another thread may still be in a call of, though it is closed.
        self._kept: Any = None
        self._own: set[int] = set()
        self._listener: joining.Listener | None = None

    # -- init, activate, deactivate, cleanup ------------------------------------------------------

    def activate(self) -> None:
        """Allocate every buffer, and set every trap. vCPUs can be bound, and join, from now on.

        Raises:
            CycleError: it is active already, or closed.
        """
        if self._closed:
            raise CycleError("the tracker is closed: open another one")
        if self._c is not None:
            raise CycleError("the tracker is active already")
        pages = self.ram.size // PAGE
        capacity = min(self._threshold or LIST_CAPACITY, pages)
        fd, shared, native = ffi.new("int *"), ffi.new("ut_shared **"), ffi.new("ut_tracker **")
        spaces = self.vcpus + 1 if self.ram.shared else 1
        made = lib.ut_shared_create(self._engine, self.vcpus, spaces, pages, capacity, fd, shared)
        check_own(made, "allocate the dirty lists")
        self._shared, self._shared_fd = ffi.gc(shared[0], lib.ut_shared_unmap), fd[0]
        slots = ffi.new("ut_slot[]", len(self.ram.slots))
        first = 0
        for native_slot, slot in zip(slots, self.ram.slots, strict=True):
            native_slot.gfn, native_slot.index, native_slot.npages = slot.gfn, first, slot.pages
            first += slot.pages
        try:
            # Python's, so that pages which somebody still holds outlive the tracker.
            arena = mmap.mmap(-1, lib.ut_arena_bytes(self._shared), NORESERVE)
            memory = ffi.from_buffer(arena)
            opened = lib.ut_tracker_open(self._shared, slots, len(slots), memory, native)
            check_own(opened, "allocate the tracker")
            self._c = ffi.gc(native[0], lib.ut_tracker_free)
            check_own(lib.ut_set_threshold(self._c, self._threshold), "set the threshold")
            base = int(ffi.cast("uintptr_t", memory))
            self._logs = [
                (
                    log_array(arena, base, int(ffi.cast("uintptr_t", log.gfn)), np.uint64, pages),
                    log_array(arena, base, int(ffi.cast("uintptr_t", log.vcpu)), np.int32, pages),
                )
                for log in self._c.log
            ]
            if self.ram.shared:
                self._listener = joining.Listener(self.ram.name, self)
            else:
                self._track_own()
        except BaseException:
            self.deactivate()
            raise
        self._cycle = 0
        self.ram.watch(self)
        joining.after_fork(self)

    def _track_own(self) -> None:
        """Set the traps in this process's own mapping."""
        if self._member >= 0:
            return
        uffd = joining.own_uffd(self._engine, self.ram)
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        added = lib.ut_tracker_add(self._c, 0, uffd, pagemap, self.ram.address, lib.UT_HOST)
        check_own(added, "track this process")
        base = ffi.cast("uint8_t *", self.ram.address)
        self._member = check_own(lib.ut_member_open(self._shared, base, 0, uffd, -1), "track this process")

    def deactivate(self) -> None:
        """Every page is writable, and every thread runs. Idempotent."""
        if self._shared is None:
            return
        self.ram.unwatch(self)
        if self._listener:
            self._listener.close()
            self._listener = None
        native, self._c = self._c, None
        if native is not None:
            lib.ut_tracker_close(native)
            self._own.clear()
        if self._member >= 0:
            lib.ut_member_close(self._member)
            self._member = -1
        self._kept, self._shared = (native, self._shared), None
        if self._shared_fd >= 0:
            os.close(self._shared_fd)

    def forked(self) -> None:
        """In a forked child: let go of all that has to end with the tracker's process."""
        if self._c is not None:
            lib.ut_tracker_forked(self._c)
        if self._listener:
            self._listener.forked()
        self._c = self._shared = self._listener = None
        self._member = -1
        self._closed = True

    def close(self) -> None:
        """`deactivate()`, for good. Idempotent."""
        self.deactivate()
        self._closed = True

    def __enter__(self) -> UffdTracker:
        self.activate()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- a cycle ----------------------------------------------------------------------------------

    def _c_prepare(self) -> int:
        return int(lib.ut_prepare(self._active()))

    def _c_fetch(self, most: int) -> tuple[int, int]:
        first = ffi.new("uint64_t *")
        n = lib.ut_fetch(self._active(), most, first)
        return first[0], n

    def _c_rearm(self, gfn: int, n: int) -> int:
        return int(lib.ut_rearm(self._active(), ffi.cast("uint64_t *", gfn), n))

    def _c_exchange(self) -> int:
        return int(lib.ut_exchange(self._active()))

    def _c_ended(self) -> int:
        return 1 - int(self._active().open)

    def _c_length(self) -> int:
        return int(self._active().log[self._c_ended()].n)

    def pending(self) -> int:
        """Pages of the open cycle so far."""
        return self._check(lib.ut_pending(self._active()), "count")

    @property
    def stats(self) -> Stats:
        s = self._active().stats
        return Stats(**{name: int(getattr(s, name)) for name in Stats.__dataclass_fields__})

    # -- vCPUs ------------------------------------------------------------------------------------

    def _claim(self, vcpu: int) -> None:
        self._active()
        if not 0 <= vcpu < self.vcpus:
            raise InvalidInputError(f"no vCPU {vcpu}: there are 0 to {self.vcpus - 1}")
        if lib.ut_vcpu_state(self._shared, vcpu) != lib.UT_VCPU_FREE:
            raise InvalidInputError(f"vCPU {vcpu} is bound already")

    def bind(self, vcpu: int, tid: int) -> None:
        """Make a native thread of this process a vCPU.

        It is stopped by a signal (SIGRTMAX-2) wherever it is, so it must hold no lock that the tracker's
        thread needs: no Python thread can be bound like this.

        Args:
            tid: the thread's id, gettid(2).

        Raises:
            InvalidInputError: no such vCPU, bound already, no such thread, or a Python thread.
        """
        self._claim(vcpu)
        if tid in {thread.native_id for thread in threading.enumerate()}:
            raise InvalidInputError(
                f"thread {tid} is a Python thread: stopped by force, it could hold the interpreter's lock "
                "for ever. Use vcpu() in it, a native thread, or a process that joins"
            )
        if not os.path.exists(f"/proc/self/task/{tid}"):
            raise InvalidInputError(f"this process has no thread {tid}")
        self._bind(vcpu, tid, forced=True)

    def _bind(self, vcpu: int, tid: int, forced: bool) -> None:
        self._claim(vcpu)
        self._track_own()
        perf = joining.open_perf(self._engine, tid, bool(self._threshold))
        if len(perf) == 3:
            lib.ut_member_perf(self._member, vcpu, perf[2])
        lib.ut_vcpu_bind(self._shared, vcpu, os.getpid(), tid, int(forced))
        if perf:
            try:
                added = lib.ut_tracker_events(self._c, vcpu, 0, *perf, *[-1] * (3 - len(perf)))
                check_own(added, "map a perf ring")
            except BaseException:
                lib.ut_tracker_drop(self._c, vcpu, 0)
                raise
        self._own.add(vcpu)

    def unbind(self, vcpu: int) -> None:
        """A native thread is no vCPU any more. What it wrote stays in the cycle."""
        self._active()
        if vcpu not in self._own:
            raise InvalidInputError(f"vCPU {vcpu} is no thread of this process")
        self._unbind(vcpu)

    def _unbind(self, vcpu: int) -> None:
        self._own.discard(vcpu)
        lib.ut_member_perf(self._member, vcpu, -1)
        lib.ut_tracker_drop(self._c, vcpu, 0)

    @contextmanager
    def vcpu(self, vcpu: int) -> Iterator[None]:
        """The calling Python thread writes as a vCPU in the block.

        It is not stopped at the threshold, which `wait_full()` then tells: see `pause()`.
        """
        self._bind(vcpu, threading.get_native_id(), forced=False)
        try:
            yield
        finally:
            if self._c is not None and vcpu in self._own:
                self._unbind(vcpu)

    def wait_joined(self, timeout: float = joining.JOIN_TIMEOUT) -> None:
        """Wait until every vCPU is bound.

        Raises:
            TrackerError: it took longer than `timeout` seconds.
        """
        self._active()

        def bound() -> bool:
            states = (lib.ut_vcpu_state(self._shared, i) for i in range(self.vcpus))
            return all(state != lib.UT_VCPU_FREE for state in states)

        with self._joined:
            if not self._joined.wait_for(bound, timeout):
                raise TrackerError(f"not all of the {self.vcpus} vCPUs have joined within {timeout} s")

    def host_wrote(self, first: int, pages: int) -> None:
        """`GuestRam.host_write()` tells of its pages here."""
        native = self._c
        if native is not None:
            result = lib.ut_host_write(native, first, pages)
            if result != -errno.ESHUTDOWN:
                check_own(result, "count what the host wrote")

    def sabotage(self, flags: int) -> None:
        """Break the tracking on purpose, for the negative controls of the tests."""
        self._active().sabotage = flags

    # -- processes that join ----------------------------------------------------------------------

    def offer(self, vcpu: int) -> tuple[dict[str, Any], int]:
        """What a process that wants to be a vCPU gets: a message, and the fd of the dirty lists."""
        self._claim(vcpu)
        slots = [[slot.gfn, slot.pages] for slot in self.ram.slots]
        return (
            {"engine": self._engine, "slots": slots, "threshold": bool(self._threshold)},
            self._shared_fd,
        )

    def take_in(self, vcpu: int, pid: int, tid: int, base: int, fds: list[int]) -> None:
        """A vCPU process has set its traps, and hands over its userfaultfd, pagemap and perf events."""
        added = lib.ut_tracker_add(self._c, vcpu + 1, fds.pop(0), fds.pop(0), base, vcpu)
        check_own(added, "take in a vCPU process")
        lib.ut_vcpu_bind(self._shared, vcpu, pid, tid, 1)
        if fds:
            perf = [fds.pop(0) for _ in range(len(fds))]
            try:
                events = lib.ut_tracker_events(self._c, vcpu, vcpu + 1, *perf, *[-1] * (3 - len(perf)))
                check_own(events, "map a perf ring (RLIMIT_MEMLOCK, perf_event_mlock_kb)")
            except BaseException:
                lib.ut_tracker_drop(self._c, vcpu, 0)
                raise
        with self._joined:
            self._joined.notify_all()

    def part(self, vcpu: int, died: bool) -> None:
        """A vCPU process takes its leave, or has died."""
        if died:
            self._bury(vcpu)
        else:
            lib.ut_tracker_drop(self._c, vcpu, 0)

    def _bury(self, vcpu: int) -> None:
        with self._joined:
            if lib.ut_vcpu_state(self._shared, vcpu) == lib.UT_VCPU_FREE:
                return
            self._own.discard(vcpu)
            lib.ut_tracker_drop(self._c, vcpu, 1)
            self._gone.append(vcpu)
            self._joined.notify_all()
