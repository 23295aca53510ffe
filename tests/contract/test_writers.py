"""Writes that are no plain stores: what an engine's traits say of them is what happens."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmglue import KVM_ENGINES
from tests.contract.combinations import CONFIGS, OWN, Config, on, on_guests
from tests.contract.conftest import Guest
from tests.contract.guests import DEADLINE, DIRECT, LOAD, PVM, READ_FILE
from tests.helpers import broken

pytestmark = pytest.mark.usefixtures("kernel")
KINDS = {"read": READ_FILE, "O_DIRECT": DIRECT, "process_vm_writev": PVM}


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A file of zeros with a mark, open with and without O_DIRECT."""
    path = tmp_path / "data"
    path.write_bytes(b"mark" * 1024)
    buffered = os.open(path, os.O_RDONLY)
    try:
        direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        direct = -1  # tmpfs of an older kernel
    yield buffered, direct
    for fd in (buffered, direct):
        if fd >= 0:
            os.close(fd)


@on_guests([CONFIGS[1], CONFIGS[2], CONFIGS[3], CONFIGS[5], CONFIGS[7]], OWN)
@pytest.mark.parametrize("kind", list(KINDS))
def test_kernel_writes_of_a_vcpu(
    make: Callable[..., Guest], engine: str, config: Config, kind: str, files: tuple[int, int]
) -> None:
    guest = make(engine, config)
    traits = guest.tracker.traits
    fd = files[kind == "O_DIRECT"]
    if kind == "O_DIRECT" and fd < 0:
        pytest.skip("no O_DIRECT on this file system")
    seen = traits.sees_kernel_copies if kind == "read" else traits.sees_gup
    guest.copy(guest.tracker.exchange())
    for value in range(3, 8):
        audits = guest.tracker.stats.audits
        wrote = [20, 21, 900, 1800 + value]
        guest.vcpus[1].post(KINDS[kind], wrote, value, fd)
        assert guest.vcpus[1].wait()
        result = guest.vcpus[1].result()
        guest.write(0, [1000], value)
        pages = guest.tracker.exchange()
        rows = guest.index(pages)
        if not seen:
            # The write fails, aloud; nothing is lost.
            assert result in (-errno.EFAULT, -errno.EINVAL, -errno.EIO), os.strerror(-result)
            assert set(rows) == {1000}
        else:
            assert result == 0
            assert set(rows) >= {*wrote, 1000}
            if traits.exact:
                assert set(rows) == {*wrote, 1000}
            if seen == "audited" and value > 3:
                assert guest.tracker.stats.audits > audits
        guest.copy(pages)
        assert not guest.stale()


def test_reading_lists_nothing(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, CONFIGS[0])
    guest.tracker.exchange()
    guest.vcpus[0].post(LOAD, range(2048))
    assert guest.vcpus[0].wait()
    if engine in KVM_ENGINES:
        # Its first touch of a page, of either kind, makes it writable for the guest.
        guest.tracker.exchange()
        guest.vcpus[0].post(LOAD, range(2048))
        assert guest.vcpus[0].wait()
    assert len(guest.tracker.exchange()) == 0


def test_writers_outside_of_the_vcpus(make: Callable[..., Guest], engine: str) -> None:
    """The traits say whether a thread that is no vCPU is seen; host_write() always is."""
    guest = make(engine, CONFIGS[1])
    guest.copy(guest.tracker.exchange())
    guest.ram.array[4096 * 33] = 99
    pages = guest.tracker.exchange()
    assert (33 in guest.index(pages)) == guest.tracker.traits.sees_outside
    assert all(vcpu == -1 for vcpu in pages.vcpu.tolist())
    guest.copy(pages)
    assert (guest.stale() == [33]) == (not guest.tracker.traits.sees_outside)
    guest.ram.host_write(4096 * 33, b"c")
    guest.copy(guest.tracker.exchange())
    assert not guest.stale()


@on(["ring"])
def test_audit_can_fail(make: Callable[..., Guest], engine: str, files: tuple[int, int]) -> None:
    """The negative control of the audit: without it, a GUP write is lost."""
    guest = make(engine, CONFIGS[1])
    for _ in range(3):
        guest.copy(guest.tracker.exchange())
    with broken("audit"):
        guest.vcpus[0].post(PVM, [44], 9)
        assert guest.vcpus[0].wait()
        guest.copy(guest.tracker.exchange())
    assert guest.stale() == [44]


@on(name for name in OWN if name != "inline")
def test_faults_at_the_gate_hide_no_other(make: Callable[..., Guest], engine: str) -> None:
    """A vCPU that stands takes faults outside of the RAM, with a sample, after it has counted its faults.

    Under inline the kernel's writes fail, and a KVM guest makes no system calls.
    """
    guest = make(engine, CONFIGS[3])
    for _ in range(3):
        guest.copy(guest.tracker.exchange())
    guest.vcpus[0].post(PVM, [44], 9)
    assert guest.vcpus[0].wait()
    with guest.tracker.paused():
        before = guest.vcpus[0].faults()
        child = os.fork()  # the next write to its stack copies a page
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        deadline = time.monotonic() + DEADLINE
        while guest.vcpus[0].faults() == before:
            assert time.monotonic() < deadline
        guest.copy(guest.tracker.exchange())
        assert not guest.stale()


@on_guests([CONFIGS[1], CONFIGS[2], CONFIGS[3], CONFIGS[5]])
def test_discarded_pages_are_zero_and_tracked(
    make: Callable[..., Guest], engine: str, config: Config
) -> None:
    guest = make(engine, config)
    guest.write(0, list(range(600)), 7)
    guest.copy(guest.tracker.exchange())
    for value in range(3):
        guest.ram.discard(4096 * 100, 4096 * 50)
        guest.write(1, [120, 121, 700], value + 9)
        guest.copy(guest.tracker.exchange())
        assert not guest.stale()
        assert not guest.shadow[4096 * 100 : 4096 * 120].any()
        guest.write(0, [101, 122], value + 20)
        pages = guest.tracker.exchange()
        assert set(guest.index(pages)) >= {101, 122}
        guest.copy(pages)
        assert not guest.stale()
    # From now on as if nothing had been.
    guest.write(0, [110], 1)
    assert guest.index(guest.tracker.exchange()) == [110]
