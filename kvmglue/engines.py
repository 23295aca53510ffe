"""Every tracker that works on a VM's RAM: KVM's own, and those of uffdtrack that see KVM's writes."""

from __future__ import annotations

from kvmglue import dirty_log, dirty_ring
from kvmglue.kvm import Kvm
from kvmglue.tracker import KvmTracker
from kvmglue.vm import Vm
from uffdtrack import ENGINES, Tracker, Traits, UffdTracker
from uffdtrack import open_tracker as open_uffd_tracker
from uffdtrack.errors import InvalidInputError

KVM_ENGINES: dict[str, Traits] = {
    traits.name: traits for traits in (dirty_log.BITMAP, dirty_log.CLEAR, dirty_ring.RING)
}
"""KVM's own mechanisms."""
VM_ENGINES: dict[str, Traits] = {**KVM_ENGINES, "scan": ENGINES["scan"], "sync": ENGINES["sync"]}
"""All engines that work on a VM."""
_REFUSED = {
    "ring": "KVM writes the RAM through GUP when a guest faults, which leaves no page-fault sample",
    "inline": "KVM writes the RAM in the kernel, where no signal handler can list a page",
}


def checked_engine(name: str) -> str:
    """Raises: InvalidInputError: no engine of that name works on a VM; the message says why."""
    if name in _REFUSED:
        raise InvalidInputError(f"engine {name} is not for VMs: {_REFUSED[name]}")
    if name not in VM_ENGINES:
        raise InvalidInputError(f"no engine {name!r} for VMs; there are {', '.join(VM_ENGINES)}")
    return name


def engine_for(max_dirty_pages: int | None = None) -> str:
    """The engine with which a guest loses least whose pages are copied cycle after cycle, on this host.

    Raises:
        UnsupportedError, PermissionDeniedError: see `Kvm`.
    """
    if max_dirty_pages:
        return "kvm-ring"
    with Kvm() as kvm:
        return "kvm-clear" if kvm.capabilities.manual_clear else "kvm-ring"


def rings_for(engine: str, vcpus: int, max_dirty_pages: int | None = None) -> int:
    """`Vm(ring_entries=...)` for an engine: KVM accepts it only before the first vCPU.

    Raises:
        InvalidInputError: see `dirty_ring.ring_entries()`.
    """
    if checked_engine(engine) != "kvm-ring":
        return 0
    return dirty_ring.ring_entries(max_dirty_pages, vcpus) if max_dirty_pages else 4096


def huge_for(engine: str) -> bool:
    """`GuestRam(huge=...)` for an engine: KVM's own set no traps in the host's page tables, which would split
    huge pages; and a process with few pages has ended soon, where a standby waits for its end."""
    return engine in KVM_ENGINES


def open_tracker(vm: Vm, engine: str, *, max_dirty_pages: int | None = None) -> KvmTracker | UffdTracker:
    """A tracker of a VM's RAM, not active yet; as a context manager it is active in the block.

    Args:
        vm: it may be paused or run.
        engine: one of `VM_ENGINES`. kvm-ring needs a VM made with `ring_entries=rings_for(...)`.
        max_dirty_pages: the threshold of the forced pause (kvm-ring, sync).

    Raises:
        InvalidInputError: the engine cannot meet the request, or not on a VM.
        UnsupportedError: it does not work on this host.
    """
    checked_engine(engine)
    tracker: KvmTracker | UffdTracker
    if engine in dirty_log.MODES:
        dirty_log.refuse(vm, engine, max_dirty_pages)
        tracker = KvmTracker(vm, KVM_ENGINES[engine], dirty_log.MODES[engine], None)
    elif engine == "kvm-ring":
        dirty_ring.refuse(vm, max_dirty_pages)
        tracker = KvmTracker(vm, KVM_ENGINES[engine], dirty_ring.MODE, max_dirty_pages)
    else:
        tracker = open_uffd_tracker(vm.ram, engine, vcpus=len(vm.vcpus), max_dirty_pages=max_dirty_pages)
    vm.trackers.add(tracker)  # closed with it, at the latest
    return tracker


def bind_vcpus(tracker: Tracker, vm: Vm) -> None:
    """Tell an active tracker which threads are the vCPUs."""
    for vcpu in vm.vcpus:
        tracker.bind(vcpu.number, vcpu.tid)
