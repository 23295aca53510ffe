"""The tracker on KVM's own dirty logging: cycles and lists as in uffdtrack, over a bitmap or rings."""

from __future__ import annotations

from typing import Any

from kvmglue._sys import check, ffi, lib
from kvmglue.gate import STOP_NS, KvmGate
from kvmglue.vm import Vm
from uffdtrack import Core, CycleTracker, Stats, Traits
from uffdtrack.errors import CycleError, InvalidInputError


class KvmTracker(CycleTracker):
    """A tracker on one of KVM's mechanisms. `kvmglue.open_tracker()` makes it.

    No log of KVM's has the host's own writes into the RAM: use `GuestRam.host_write()`. The tracker's gate is
    the VM's.

    Attributes:
        vm: whose RAM is tracked.
    """

    gate: KvmGate
    core = Core(
        ffi=ffi,
        free=lib.kg_tracker_free,
        prepare=lib.kg_prepare,
        fetch=lib.kg_fetch,
        fetch_again=lib.kg_fetch_again,
        rearm=lib.kg_rearm,
        exchange=lib.kg_exchange,
        pending=lib.kg_pending,
    )

    def __init__(self, vm: Vm, traits: Traits, mode: int, max_dirty_pages: int | None) -> None:
        super().__init__(vm.ram, traits, len(vm.vcpus), max_dirty_pages)
        self.vm = vm
        self.gate = vm.gate
        self._mode = mode

    def _begin(self) -> None:
        if self.gate.tracker is not None:
            raise CycleError("another of KVM's trackers is active on this VM: close it first")
        self._open(lib.kg_arena_bytes(self.vm.native), self._make)
        self.gate.tracker = self._c

    def _make(self, arena: Any) -> Any:
        vm, out = self.vm, ffi.new("kg_tracker **")
        opened = lib.kg_tracker_open(
            vm.native, self._mode, vm.ring_entries, self._threshold, STOP_NS, arena, out
        )
        check(opened, f"have KVM log ({self.traits.name})")
        return out[0]

    def _end(self, native: Any) -> None:
        if native is None:
            return
        if self.vm.is_open:
            lib.kg_tracker_close(native)
            self.vm.resume()
        self.gate.tracker = None

    def _check(self, result: int, doing: str) -> int:
        return self.gate.check(result, doing)

    def _set_threshold(self, pages: int) -> None:
        raise InvalidInputError(
            f"engine {self.traits.name}: the rings are as large as the VM was made with (ring_entries)"
        )

    def bind(self, vcpu: int, tid: int) -> None:
        """Does nothing: KVM knows its vCPUs.

        Raises:
            InvalidInputError: there is no such vCPU.
        """
        self._active()
        if not 0 <= vcpu < self.vcpus:
            raise InvalidInputError(f"no vCPU {vcpu}: there are 0 to {self.vcpus - 1}")

    def host_wrote(self, first: int, pages: int) -> None:
        """`GuestRam.host_write()` calls this with its pages."""
        native = self._c
        if native is not None:
            lib.kg_mark(native, first, pages)

    def leave_hot(self) -> bool:
        """Leave pages writable that are dirty in one cycle after the other, for who copies what is listed.

        They are listed in each cycle, written or not: the guest has a fault for such a page in one cycle of
        16, and a page that it does not write any more is listed 16 times at most.

        Returns:
            Whether this engine can do that: kvm-clear, until it is deactivated.
        """
        return int(lib.kg_leave_hot(self._active())) == 0

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
        """The last cycle's times in the C core: getting the vCPUs out of KVM_RUN, harvest, rearm."""
        s = self._active().stats
        return s.stop_ns / 1e3, s.harvest_ns / 1e3, s.rearm_ns / 1e3
