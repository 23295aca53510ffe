"""KVM's dirty rings: a ring of entries for each vCPU, which exits when its own is full.

Source: Documentation/virt/kvm/api.rst, 8.29. The tracker keeps the order that it requires: take entries
with the vCPUs out of KVM_RUN, and reset them, in a loop, before `rearm()` returns and contents
may be read.
"""

from kvmglue._sys import lib
from kvmglue.kvm import SMALLEST_RING
from kvmglue.vm import Vm
from uffdtrack import Traits
from uffdtrack.errors import InvalidInputError

RING = Traits(
    name="kvm-ring",
    per_vcpu=True,
    forced_pause="bounded",
    sees_kernel_copies=False,
    sees_gup=False,
    sees_outside=False,
    exact=False,
    cost="O(dirty)",
)
MODE = lib.KG_RING


def ring_entries(max_dirty_pages: int, vcpus: int) -> int:
    """The largest rings that together never have more than so many pages.

    The pause comes when one of them is full, so it may come early: after a `vcpus`-th, if one vCPU writes.

    Raises:
        InvalidInputError: fewer pages than KVM's smallest rings have.
    """
    if max_dirty_pages < SMALLEST_RING * vcpus:
        raise InvalidInputError(
            f"a threshold of {max_dirty_pages} pages: KVM's smallest rings hold {SMALLEST_RING} each, so "
            f"with {vcpus} vCPUs it takes {SMALLEST_RING * vcpus} or more"
        )
    return 1 << ((max_dirty_pages // vcpus).bit_length() - 1)


def refuse(vm: Vm, max_dirty_pages: int | None) -> None:
    """Raises: InvalidInputError: this VM has no rings, or larger ones than the threshold allows."""
    if not vm.ring_entries:
        raise InvalidInputError("engine kvm-ring: give the VM its rings when it is made (ring_entries)")
    if max_dirty_pages and vm.ring_entries * len(vm.vcpus) > max_dirty_pages:
        raise InvalidInputError(
            f"a threshold of {max_dirty_pages} pages: the {len(vm.vcpus)} rings of the VM hold "
            f"{vm.ring_entries} each; make it with ring_entries(max_dirty_pages, vcpus)"
        )
