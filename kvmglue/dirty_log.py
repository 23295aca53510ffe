"""KVM's dirty bitmap: KVM_GET_DIRTY_LOG, and KVM_CLEAR_DIRTY_LOG apart from it.

Source: Documentation/virt/kvm/api.rst, 4.8 and 7.18.
"""

from dataclasses import replace

from kvmglue._sys import lib
from kvmglue.vm import Vm
from uffdtrack import Traits
from uffdtrack.errors import InvalidInputError, UnsupportedError

BITMAP = Traits(
    name="kvm-bitmap",
    per_vcpu=False,
    forced_pause="none",
    sees_kernel_copies=False,
    sees_gup=False,
    sees_outside=False,
    exact=False,
    cost="O(size)",
)
"""Reading the log clears it and sets all traps: harvest and rearm in one."""

CLEAR = replace(BITMAP, name="kvm-clear")
"""KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, with INITIALLY_SET where KVM offers it: traps are set page by page."""

MODES = {BITMAP.name: lib.KG_BITMAP, CLEAR.name: lib.KG_CLEAR}


def refuse(vm: Vm, name: str, max_dirty_pages: int | None) -> None:
    """Raises: InvalidInputError, UnsupportedError: this VM, or this KVM, does not do it."""
    if vm.ring_entries:
        raise InvalidInputError(f"{name}: the VM has dirty rings, so KVM keeps no bitmap (ring_entries)")
    if max_dirty_pages:
        raise InvalidInputError(f"engine {name}: it has no forced pause (max_dirty_pages)")
    if name == CLEAR.name and not vm.kvm.capabilities.manual_clear:
        raise UnsupportedError(
            "engine kvm-clear needs KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (Linux 5.0); see uffdtrack doctor"
        )
