"""The VM of a standby is made so that its own epochs can be taken as those were that come."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from checkpoint.image import EpochFile
from kvmglue import VM_ENGINES, KvmTracker, Vm, bind_vcpus, open_tracker, rings_for
from uffdtrack import GuestRam, UffdTracker
from uffdtrack.errors import UnsupportedError


class Tracking(NamedTuple):
    """How the writes of a guest are noticed: an engine, and its limit of dirty pages."""

    engine: str
    max_dirty: int | None

    def make_vm(self, ram: GuestRam, vcpus: int) -> Vm:
        """A VM that can be tracked so, if this host can do that.

        Raises:
            InvalidInputError, UnsupportedError, PermissionDeniedError: see `Vm`.
        """
        with contextlib.suppress(UnsupportedError):  # it can run here all the same
            return Vm(ram, vcpus, ring_entries=rings_for(self.engine, vcpus, self.max_dirty))
        return Vm(ram, vcpus)

    def begin(self, vm: Vm) -> KvmTracker | UffdTracker:
        """An active tracker, which is closed with the VM.

        Raises:
            InvalidInputError, UnsupportedError: see `kvmglue.open_tracker`.
        """
        tracker = open_tracker(vm, self.engine, max_dirty_pages=self.max_dirty)
        tracker.activate()
        bind_vcpus(tracker, vm)
        return tracker


def tracking_of(base: EpochFile) -> Tracking:
    """As its sender does it; of a sender that knows more engines than we: KVM's rings."""
    engine, limit = base.facts.row.get("engine"), base.facts.row.get("max_dirty")
    if engine not in VM_ENGINES:
        return Tracking("kvm-ring", None)
    return Tracking(engine, limit if isinstance(limit, int) else None)
