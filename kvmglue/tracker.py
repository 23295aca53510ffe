"""The tracker on KVM's own dirty logging: cycles and lists as in uffdtrack, over a bitmap or rings."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from kvmglue._sys import check, ffi, lib
from kvmglue.vm import STOP_TIMEOUT, Vm
from uffdtrack import PAGE, Cycles, Stats, Traits, log_array
from uffdtrack.errors import CycleError

STOP_NS = int(STOP_TIMEOUT * 1e9)


class KvmTracker(Cycles):
    """A tracker on one of KVM's mechanisms. `kvmglue.open_tracker()` makes it.

    What the host writes into the RAM by itself is in no log of KVM's: `GuestRam.host_write()` tells.

    Attributes:
        vm: whose RAM is tracked.
        ram: the RAM.
        traits: what the mechanism promises.
        vcpus: how many.
    """

    def __init__(self, vm: Vm, traits: Traits, mode: int, max_dirty_pages: int | None) -> None:
        super().__init__()
        self.vm = vm
        self.ram = vm.ram
        self.traits = traits
        self.vcpus = len(vm.vcpus)
        self.max_dirty_pages = max_dirty_pages
        self._mode = mode
        self._c: Any = None
        self._closed = False

    # -- init, activate, deactivate, cleanup ------------------------------------------------------

    def activate(self) -> None:
        """Allocate every buffer, and have KVM log.

        Raises:
            CycleError: it is active already, closed, or another tracker of KVM's is.
        """
        if self._closed:
            raise CycleError("the tracker is closed: open another one")
        if self._c is not None:
            raise CycleError("the tracker is active already")
        if self.vm.tracked:
            raise CycleError("another of KVM's trackers is active on this VM: close it first")
        out = ffi.new("kg_tracker **")
        arena = mmap.mmap(-1, lib.kg_arena_bytes(self.vm.native))
        memory = ffi.from_buffer(arena)
        opened = lib.kg_tracker_open(
            self.vm.native, self._mode, self.vm.ring_entries, self.max_dirty_pages or 0, memory, out
        )
        check(opened, f"have KVM log ({self.traits.name})")
        # Freed with the last reference: another thread may be in a call when the tracker is closed.
        self._c = ffi.gc(out[0], lib.kg_tracker_free)
        self.vm.tracked = True
        base = int(ffi.cast("uintptr_t", memory))
        rows = self.ram.size // PAGE
        self._logs = [
            (
                log_array(arena, base, int(ffi.cast("uintptr_t", log.gfn)), np.uint64, rows),
                log_array(arena, base, int(ffi.cast("uintptr_t", log.vcpu)), np.int32, rows),
            )
            for log in self._c.log
        ]
        self._cycle = 0
        self.ram.watch(self)

    def deactivate(self) -> None:
        """KVM logs no more, and every vCPU runs. Idempotent."""
        native, self._c = self._c, None
        if native is None:
            return
        self.ram.unwatch(self)
        if self.vm.is_open:
            lib.kg_tracker_close(native)
            self.vm.resume()
        self.vm.tracked = False

    def close(self) -> None:
        """`deactivate()`, for good. Idempotent."""
        self.deactivate()
        self._closed = True

    def __enter__(self) -> KvmTracker:
        self.activate()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _active(self) -> Any:
        if self._c is None:
            raise CycleError("the tracker is not active: activate() comes first")
        return self._c

    # -- a cycle ----------------------------------------------------------------------------------

    def _check(self, result: int, doing: str) -> int:
        if result == -errno.ETIMEDOUT:
            self.vm.raise_late()
        if result == -errno.ESHUTDOWN:
            raise CycleError(f"cannot {doing}: the tracker was deactivated meanwhile")
        if result == -errno.EBUSY:
            return super()._check(result, doing)
        return check(result, doing)

    def _c_prepare(self) -> int:
        return int(lib.kg_prepare(self._active(), STOP_NS))

    def _c_fetch(self, most: int) -> tuple[int, int]:
        first = ffi.new("uint64_t *")
        n = lib.kg_fetch(self._active(), most, first)
        return first[0], n

    def _c_rearm(self, gfn: int, n: int) -> int:
        return int(lib.kg_rearm(self._active(), ffi.cast("uint64_t *", gfn), n))

    def _c_exchange(self) -> int:
        return int(lib.kg_exchange(self._active(), STOP_NS))

    def _c_ended(self) -> int:
        return 1 - int(self._active().open)

    def _c_length(self) -> int:
        return int(self._active().log[self._c_ended()].n)

    def pending(self) -> int:
        """Pages of the open cycle so far; of kvm-clear, once the last cycle is rearmed."""
        return self._check(lib.kg_pending(self._active(), STOP_NS), "count")

    def host_wrote(self, first: int, pages: int) -> None:
        """`GuestRam.host_write()` tells of its pages here."""
        native = self._c
        if native is not None:
            lib.kg_mark(native, first, pages)

    @property
    def stats(self) -> Stats:
        """Counts since `activate()`: `scans` are calls of KVM_GET_DIRTY_LOG, `overflows` full rings."""
        s = self._active().stats
        counts = dict.fromkeys(Stats.__dataclass_fields__, 0)
        for name in ("cycles", "pages", "duplicates", "rearm_calls", "rearm_pages"):
            counts[name] = int(getattr(s, name))
        return Stats(**{**counts, "scans": int(s.calls), "overflows": int(s.fulls)})

    @property
    def times_us(self) -> tuple[float, float, float]:
        """Of the last cycle, in the C core: getting the vCPUs out of KVM_RUN, harvest, rearm."""
        s = self._active().stats
        return s.stop_ns / 1e3, s.harvest_ns / 1e3, s.rearm_ns / 1e3

    # -- the gate ---------------------------------------------------------------------------------

    def wait_full(self, timeout: float | None = None) -> bool:
        """Wait until a vCPU's ring is full; every vCPU stands then, until `resume()`.

        Args:
            timeout: in seconds; None: for ever.

        Returns:
            Whether one was.

        Raises:
            CycleError: there is no threshold.
            PauseTimeoutError: a vCPU did not stop in time; all run on.
            GuestError: a vCPU has ended.
        """
        native = self._active()
        if not self.max_dirty_pages:
            raise CycleError("no threshold was given to open_tracker()")
        left = float("inf") if timeout is None else timeout
        while True:
            part = min(left, 0.1)  # in slices, so that Ctrl-C is heard
            if self._check(lib.kg_wait_full(native, int(part * 1e9), STOP_NS), "stop the vCPUs"):
                return True
            self.vm.check()
            left -= part
            if left <= 0:
                return False

    def pause(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop every vCPU.

        Raises:
            PauseTimeoutError: one did not stop within `timeout` seconds; all run on.
        """
        self._active()
        self.vm.pause(timeout)

    def resume(self) -> None:
        """Let every vCPU run. Idempotent.

        Raises:
            CycleError: a ring is full: `exchange()` or `prepare()` comes first.
        """
        self._active()
        if lib.kg_is_full(self.vm.native):
            raise CycleError("a dirty ring is full: exchange() or prepare() comes before resume()")
        self.vm.resume()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """All vCPUs stand in the block, and run after it. A pause that `wait_full()` began is taken over."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def sabotage(self, flags: int) -> None:
        """Break the tracking on purpose, for the negative controls of the tests."""
        self._active().sabotage = flags
