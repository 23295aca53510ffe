"""The tracker on userfaultfd: per-vCPU lists, filled by an engine. The hot parts are C (`_native`)."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from uffdtrack import joining
from uffdtrack._sys import check_own, ffi, lib
from uffdtrack.cycles import Contents, Core, Cycle, CycleTracker, rows_of
from uffdtrack.engines.table import TABLE
from uffdtrack.errors import InvalidInputError
from uffdtrack.gate import Gate
from uffdtrack.pages import DirtyPages, Stats
from uffdtrack.runs import PAGE
from uffdtrack.signal_gate import SignalGate, check_core
from uffdtrack.traits import Traits
from uffdtrack.vcpus import Vcpus, open_perf

LIST_CAPACITY = 1 << 16
"""Pages in each list, if there is no threshold."""


class UffdTracker(CycleTracker):
    """A tracker on userfaultfd. `open_tracker()` makes it.

    Attributes:
        reason: why this engine.
    """

    core = Core(
        ffi=ffi,
        free=lib.ut_tracker_free,
        prepare=lib.ut_prepare,
        fetch=lib.ut_fetch,
        fetch_again=lib.ut_fetch_again,
        rearm=lib.ut_rearm,
        exchange=lib.ut_exchange,
        pending=lib.ut_pending,
    )

    def __init__(
        self, ram: Any, traits: Traits, vcpus: int, max_dirty_pages: int | None, reason: str
    ) -> None:
        self._vcpus = Vcpus(vcpus)
        if len(ram.slots) > lib.UT_MAX_SLOTS:
            raise InvalidInputError(f"{len(ram.slots)} memslots: there can be {lib.UT_MAX_SLOTS}")
        super().__init__(ram, traits, vcpus, max_dirty_pages)
        self.reason = reason
        self.gate: Gate = SignalGate(self._vcpus)
        self._engine = TABLE[traits.name].number
        self._shared: Any = None
        self._shared_fd = -1
        self._member = -1
        # What another thread may still be in a call of, though it is closed.
        self._kept: Any = None
        self._base: Any = None  # where the RAM is mapped
        self._listener: joining.Listener | None = None

    # -- activate, deactivate ---------------------------------------------------------------------

    def _begin(self) -> None:
        pages = self.ram.size // PAGE
        capacity = min(self._threshold or LIST_CAPACITY, pages)
        self._base = ffi.cast("uint8_t *", self.ram.address)
        fd, out = ffi.new("int *"), ffi.new("ut_shared **")
        spaces = self.vcpus + 1 if self.ram.shared else 1
        made = lib.ut_shared_create(self._engine, self.vcpus, spaces, pages, capacity, fd, out)
        check_own(made, "allocate the dirty lists")
        self._shared, self._shared_fd = ffi.gc(out[0], lib.ut_shared_unmap), fd[0]
        self._open(lib.ut_arena_bytes(self._shared), self._make)
        self._vcpus.open(self._c, self._shared)
        check_own(lib.ut_set_threshold(self._c, self._threshold), "set the threshold")
        if self.ram.shared:
            self._listener = joining.Listener(self.ram.name, self)
        else:
            self._arm()
        joining.after_fork(self)

    def _make(self, arena: Any) -> Any:
        slots, row = ffi.new("ut_slot[]", len(self.ram.slots)), 0
        for native, slot in zip(slots, self.ram.slots, strict=True):
            native.gfn, native.row, native.npages = slot.gfn, row, slot.pages
            row += slot.pages
        out = ffi.new("ut_tracker **")
        check_own(lib.ut_tracker_open(self._shared, slots, len(slots), arena, out), "allocate the tracker")
        return out[0]

    def _arm(self) -> None:
        """Set the traps in this process's own mapping. Idempotent."""
        if self._member >= 0:
            return
        uffd = joining.own_uffd(self._engine, self.ram)
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        added = lib.ut_tracker_add(self._vcpus.native, 0, uffd, pagemap, self.ram.address, lib.UT_HOST)
        check_own(added, "track this process")
        opened = lib.ut_member_open(self._vcpus.shared, self._base, 0, uffd, -1)
        self._member = check_own(opened, "track this process")

    def _exchange_into(self, cycle: Cycle, into: Contents) -> DirtyPages:
        to = ffi.from_buffer("uint8_t[]", rows_of(into), require_writable=True)
        n = lib.ut_exchange_into(cycle.native, self._base, to, len(into))
        return cycle.pages(0, self._check(n, "end the cycle"))

    def _end(self, native: Any) -> None:
        if self._listener:
            self._listener.close()
            self._listener = None
        if native is not None:
            lib.ut_tracker_close(native)
            self._kept = (native, self._shared)
        self._shared = None
        self._vcpus.close()
        if self._member >= 0:
            lib.ut_member_close(self._member)
            self._member = -1
        if self._shared_fd >= 0:
            os.close(self._shared_fd)
            self._shared_fd = -1

    def forked(self) -> None:
        """In a forked child: release all that has to end with the tracker's process."""
        if self._c is not None:
            lib.ut_tracker_forked(self._c)
        if self._listener:
            self._listener.forked()
        self._cycle = self._shared = self._listener = None
        self._vcpus.close()
        self._member = self._shared_fd = -1
        self._closed = True

    def _check(self, result: int, doing: str) -> int:
        return check_core(result, doing)

    def _set_threshold(self, pages: int) -> None:
        self._threshold = pages
        if self._c is not None:
            self._check(lib.ut_set_threshold(self._c, pages), "set the threshold")

    @property
    def stats(self) -> Stats:
        s = self._active().stats
        return Stats(**{name: int(getattr(s, name)) for name in Stats.__dataclass_fields__})

    def host_wrote(self, first: int, pages: int) -> None:
        """`GuestRam.host_write()` tells of its pages here."""
        native = self._c
        if native is not None:
            result = lib.ut_host_write(native, first, pages)
            if result != -errno.ESHUTDOWN:
                check_own(result, "count what the host wrote")

    # -- vCPUs ------------------------------------------------------------------------------------

    def _claim(self, vcpu: int) -> None:
        self._active()
        self._vcpus.claim(vcpu)

    def bind(self, vcpu: int, tid: int) -> None:
        """Make a native thread of this process a vCPU.

        A signal (SIGRTMAX-2) stops it wherever it is, so it must hold no lock that the tracker's
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
        self._arm()
        perf = open_perf(self._engine, tid, bool(self._threshold))
        if len(perf) == 3:
            lib.ut_member_perf(self._member, vcpu, perf[2])
        self._vcpus.bind(vcpu, os.getpid(), tid, mm=0, forced=int(forced), perf=perf)
        self._vcpus.own.add(vcpu)

    def unbind(self, vcpu: int) -> None:
        """Make a native thread no vCPU any more. Its writes stay in the cycle."""
        self._active()
        if vcpu not in self._vcpus.own:
            raise InvalidInputError(f"vCPU {vcpu} is no thread of this process")
        self._unbind(vcpu)

    def _unbind(self, vcpu: int) -> None:
        lib.ut_member_perf(self._member, vcpu, -1)
        self._vcpus.drop(vcpu)

    @contextmanager
    def vcpu(self, vcpu: int) -> Iterator[None]:
        """The calling Python thread writes as a vCPU in the block.

        It does not stop at the threshold, but `wait_full()` returns then: see `pause()`.
        """
        self._bind(vcpu, threading.get_native_id(), forced=False)
        try:
            yield
        finally:
            if self._c is not None and vcpu in self._vcpus.own:
                self._unbind(vcpu)

    def wait_joined(self, timeout: float = joining.JOIN_TIMEOUT) -> None:
        """Wait until every vCPU is bound.

        Raises:
            TrackerError: it took longer than `timeout` seconds.
        """
        self._active()
        self._vcpus.wait_bound(timeout)

    # -- processes that join ----------------------------------------------------------------------

    def offer(self, vcpu: int) -> tuple[dict[str, Any], int]:
        """Answer a process that wants to be a vCPU: a message, and the fd of the dirty lists."""
        self._vcpus.claim(vcpu)
        slots = [[slot.gfn, slot.pages] for slot in self.ram.slots]
        return (
            {"engine": self._engine, "slots": slots, "threshold": bool(self._threshold)},
            self._shared_fd,
        )

    def take_in(self, vcpu: int, pid: int, tid: int, base: int, fds: list[int]) -> None:
        """A vCPU process has set its traps, and hands over its userfaultfd, pagemap and perf events."""
        added = lib.ut_tracker_add(self._vcpus.native, vcpu + 1, fds.pop(0), fds.pop(0), base, vcpu)
        check_own(added, "take in a vCPU process")
        perf = [fds.pop(0) for _ in range(len(fds))]
        self._vcpus.bind(vcpu, pid, tid, mm=vcpu + 1, forced=1, perf=perf)

    def part(self, vcpu: int, died: bool) -> None:
        """A vCPU process takes its leave, or has died."""
        if died:
            self._vcpus.bury(vcpu)
        else:
            self._vcpus.drop(vcpu)
