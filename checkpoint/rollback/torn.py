"""Objects of the kernel that go on with memory of the process: a rollback would tear them from it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable

from checkpoint.objects import IO_URING, Descriptor, Snapshot
from uffdtrack import Region

SHOWN = 3
"""A text names so many of a long list."""


_QUEUES = "its queues lie in memory, and the kernel or a device goes on where they are now"


_DEVICE = "what the device holds, and what it writes into memory, stays as it is now"


TORN = (
    (r"anon_inode:\[?(kvm-(vm|vcpu)|mshv_)|/dev/(vboxdrv|vmmon|nsm)", "a virtual machine",
     "the registers of its vCPUs and its devices stay as they are now"),
    (r"anon_inode:\[io_uring\]", "an io_uring", _QUEUES),
    (r"anon_inode:\[userfaultfd\]", "a userfaultfd", "who waits for a page, and what is registered, stays"),
    (r"/dev/vhost-|/dev/vduse|/dev/ublkc", "a vhost device", _QUEUES),
    (r"/dev/(dri/|nvidia|kfd|dxg|accel/|mali|udmabuf|dma_heap/)|anon_inode:(i915|drm)", "a GPU", _DEVICE),
    (r"/dev/infiniband/|anon_inode:\[(infiniband|uverbs)", "an RDMA device", _DEVICE),
    (r"/dev/(vfio/|iommu)|anon_inode:\[?vfio", "a device that it drives itself (VFIO)", _DEVICE),
    (r"/dev/bus/usb/", "a USB device", _DEVICE),
    (r"/dev/(video|vbi|swradio|v4l-touch)\d", "a video device", _DEVICE),
    (r"/dev/(sg\d|bsg/)", "a SCSI device", _DEVICE),
)  # fmt: skip
"""A descriptor or mapping, by its name in /proc; what it is; why we must not tear it."""


TORN_MAPPED = (
    (r"/\[aio\]", "an aio context", _QUEUES),
    (r"anon_inode:\[perf_event\]", "a perf ring", _QUEUES),
    (r"anon_inode:\[?bpf[-_]map", "memory that it shares with a BPF program", "the program goes on in it"),
    (r"socket:", "a ring of a socket (AF_PACKET, AF_XDP)", _QUEUES),
    (r"/secretmem", "memory that nobody else can read (memfd_secret)", "it stays as it is now"),
    (r"anon_inode:|/dmabuf", "memory of a kernel object", "it stays as it is now"),
)
"""Only mappings: without one, these objects have nothing that memory has to agree with."""


_ANY = re.compile("|".join((*(row[0] for row in (*TORN, *TORN_MAPPED)), "/dev/", "/sys/")))


State = tuple[Snapshot, Iterable[Region]]
"""The state at one time: a snapshot, and the mappings."""


def listed(items: Iterable[str]) -> str:
    """`a, b, c and 7 more`."""
    items = list(items)
    rest = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def describe_descriptor(d: Descriptor) -> str:
    kind = d.facts.get("kind", "") if d.target.startswith("socket:") else ""
    return f"{d.number} ({kind + ' ' if kind else ''}{d.target})"


def torn(then: State, now: State, is_device: Callable[[Region], bool]) -> list[str]:
    """The objects of then and now that a rollback would tear, each with the reason.

    Args:
        then, now: the snapshot and the mappings of the epoch, and of now.
        is_device: whether a mapping with a device's name is of it, not of a file system mounted there.
    """
    found: dict[tuple[str, str], list[str]] = {}
    idle = _idle(then[0], now[0])
    for snapshot, _ in (then, now):
        for d in snapshot.descriptors.values():
            kind = _torn_descriptor(d.target) if d.target.startswith(("anon_inode:", "/dev/")) else None
            if kind and d.target not in idle:
                found.setdefault(kind, []).append(f"file descriptor {describe_descriptor(d)}")
    for _, regions in (then, now):
        for region in regions:
            kind = _torn_mapping(region, is_device)
            if kind and not {region.name, f"{region.start:#x}"} & idle:
                found.setdefault(kind, []).append(f"mapping {region.start:#x} ({region.name})")
    return [f"{what}, {listed(dict.fromkeys(where))}: {why}" for (what, why), where in found.items()]


def at_risk(regions: Iterable[Region]) -> list[Region]:
    """Those of some mappings that `torn` looks at."""
    return [region for region in regions if _ANY.match(region.name)]


def _idle(then: Snapshot, now: Snapshot) -> set[str]:
    """Rings that were not used since: they agree with the memory of then, too.

    Many programs have an io_uring or an aio context that they never use (nginx, libuv).
    """
    rings = [
        {n: d.facts.get("ring") for n, d in s.descriptors.items() if d.target == IO_URING}
        for s in (then, now)
    ]
    idle: set[str] = set()
    if rings[0] == rings[1] and all(ring and all(ring) for ring in rings[0].values()):
        idle |= {IO_URING} if rings[0] else set()
    a, b = then.state.get("aio", {}), now.state.get("aio", {})
    return idle | {address for address in a if a[address] == b.get(address)}


def _kind(table: Iterable[tuple[str, str, str]], name: str) -> tuple[str, str] | None:
    return next(((what, why) for pattern, what, why in table if re.match(pattern, name)), None)


@functools.cache
def _torn_descriptor(target: str) -> tuple[str, str] | None:
    return _kind(TORN, target)


def _torn_mapping(region: Region, is_device: Callable[[Region], bool]) -> tuple[str, str] | None:
    if not _ANY.match(region.name):
        return None
    kind = _kind((*TORN, *TORN_MAPPED), region.name)
    if kind or region.kind != "device":
        return kind
    return ("memory of a device", _DEVICE) if is_device(region) else None
