"""What a rollback would tear: descriptors and mappings of what goes on in the kernel."""

from __future__ import annotations

import struct

import pytest

from checkpoint.objects import Descriptor, Snapshot, parse_aio_ring, parse_descriptor
from checkpoint.rollback.torn import torn
from tests.unit.test_objects import info
from uffdtrack import Region

NOTHING: tuple[Snapshot, list[Region]] = (Snapshot(), [])


def region(name: str, permissions: str = "rw-s") -> Region:
    return Region(0x1000, 0x2000, permissions, 0, "00:05", 7, name)


@pytest.mark.parametrize(
    "name",
    [
        "anon_inode:[io_uring]", "anon_inode:kvm-vm", "anon_inode:kvm-vcpu:3", "anon_inode:mshv_vp",
        "anon_inode:[userfaultfd]", "/dev/vhost-net", "/dev/vhost-vsock", "/dev/dri/card0",
        "/dev/dri/renderD128", "/dev/video0", "/dev/sg1",
        "/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/infiniband/uverbs0", "anon_inode:[uverbs-event]",
        "/dev/vfio/vfio", "/dev/vfio/12", "anon_inode:[vfio-device]", "/dev/iommu", "/dev/bus/usb/001/004",
    ],
)  # fmt: skip
def test_descriptors_that_are_torn(name: str) -> None:
    found = torn((Snapshot({5: Descriptor(5, name)}), []), NOTHING, lambda _: False)
    assert len(found) == 1 and f"file descriptor 5 ({name})" in found[0]


@pytest.mark.parametrize(
    "name",
    [
        "/dev/kvm", "anon_inode:[perf_event]", "anon_inode:bpf-map", "anon_inode:bpf-prog", "socket:[5]",
        "anon_inode:[eventfd]", "/dev/null", "/dev/fuse", "/dev/net/tun", "/dev/snd/pcmC0D0p", "pipe:[7]",
        "/home/dev/dri/x",
    ],
)  # fmt: skip
def test_descriptors_that_are_not(name: str) -> None:
    assert torn(NOTHING, (Snapshot({5: Descriptor(5, name)}), []), lambda _: True) == []


@pytest.mark.parametrize(
    "name",
    [
        "/[aio] (deleted)", "anon_inode:[io_uring]", "anon_inode:kvm-vcpu:0", "anon_inode:[perf_event]",
        "anon_inode:bpf-map", "socket:[5]", "anon_inode:[unheard of]", "/dmabuf:", "/dev/video0",
        "/dev/snd/pcmC0D0p", "/dev/uio0", "/dev/dri/card0",
        "/sys/devices/pci0000:00/0000:00:02.0/resource0", "/secretmem (deleted)",
    ],
)  # fmt: skip
def test_mappings_that_are_torn(name: str) -> None:
    found = torn((Snapshot(), [region(name), region("/lib/x")]), NOTHING, lambda _: True)
    assert len(found) == 1 and f"mapping 0x1000 ({name})" in found[0]


@pytest.mark.parametrize(
    "name",
    ["", "[heap]", "/dev/zero (deleted)", "/dev/shm/x", "/dev/hugepages/x", "/memfd:x (deleted)", "/a/b"],
)
def test_mappings_that_are_not(name: str) -> None:
    assert torn(NOTHING, (Snapshot(), [region(name)]), lambda _: True) == []


def uring(*counts: int) -> Snapshot:
    rest = "".join(
        f"{key}:\t{n}\n" for key, n in zip(("SqHead", "SqTail", "CqHead", "CqTail"), counts, strict=False)
    )
    return Snapshot({5: parse_descriptor(5, "anon_inode:[io_uring]", info(rest))})


@pytest.mark.parametrize(
    ("then", "now", "idle"),
    [
        (uring(1, 1, 1, 1), uring(1, 1, 1, 1), True),
        (uring(1, 1, 1, 1), uring(1, 2, 1, 1), False),
        (uring(1, 1, 1, 1), uring(1, 1, 1, 2), False),
        (uring(), uring(), False),  # the kernel does not tell, while the ring is in use
        (uring(1, 1, 1, 1), Snapshot(), False),
        (Snapshot(), uring(1, 1, 1, 1), False),
    ],
)
def test_rings_that_are_idle(then: Snapshot, now: Snapshot, idle: bool) -> None:
    mappings = [region("anon_inode:[io_uring]")]
    assert (torn((then, mappings), (now, mappings), lambda _: False) == []) is idle


def test_aio_that_is_idle() -> None:
    ring = parse_aio_ring(struct.pack("<8I", 0, 127, 3, 4, 0xA10A10A1, 1, 0, 32))
    assert ring == [3, 4]
    with pytest.raises(ValueError, match="no"):
        parse_aio_ring(bytes(32))
    mappings = [region("/[aio] (deleted)")]
    a, b = (Snapshot({}, {"aio": {"0x1000": tail}}) for tail in ([3, 4], [3, 5]))
    assert torn((a, mappings), (a, mappings), lambda _: False) == []
    assert len(torn((a, mappings), (b, mappings), lambda _: False)) == 1


def test_file_systems_below_dev_are_no_devices() -> None:
    assert torn(NOTHING, (Snapshot(), [region("/dev/huge1G/x")]), lambda _: False) == []
