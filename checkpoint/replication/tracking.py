"""The VM of a standby is made so that its own epochs can be taken as those were that come."""

from __future__ import annotations

import contextlib

from checkpoint.image import EpochFile
from kvmglue import VM_ENGINES, Vm, rings_for
from uffdtrack import GuestRam
from uffdtrack.errors import UnsupportedError


def engine_of(base: EpochFile) -> str:
    """Its sender's; of a sender that knows more engines than we: KVM's rings.

    A limit of dirty pages does not go along: at a limit a guest stands until an epoch is taken, and after a
    takeover nobody may be there to take it.
    """
    engine = base.facts.row.get("engine")
    return engine if engine in VM_ENGINES else "kvm-ring"


def make_vm(engine: str, ram: GuestRam, vcpus: int) -> Vm:
    """A VM that can be tracked by an engine, if this host can do that.

    Raises:
        InvalidInputError, UnsupportedError, PermissionDeniedError: see `Vm`.
    """
    with contextlib.suppress(UnsupportedError):  # it can run here all the same
        return Vm(ram, vcpus, ring_entries=rings_for(engine, vcpus))
    return Vm(ram, vcpus)
