"""The forced pause and the gate."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.combinations import (
    CONFIGS,
    OWN,
    OWN_PAUSING,
    PAGES,
    PAUSING,
    Config,
    on,
    on_guests,
    with_limits,
)
from tests.contract.conftest import Guest
from tests.contract.guests import DEADLINE, STORM
from tests.helpers import wait_for
from uffdtrack import GuestRam, open_tracker
from uffdtrack.errors import (
    CycleError,
    InvalidInputError,
    PauseTimeoutError,
)

pytestmark = pytest.mark.usefixtures("kernel")
LIMIT = 100


def test_scan_has_no_threshold() -> None:
    with GuestRam("1MiB") as ram, pytest.raises(InvalidInputError, match="forced pause"):
        open_tracker(ram, "scan", max_dirty_pages=5)


@on_guests(CONFIGS, PAUSING)
def test_no_cycle_exceeds_the_threshold(make: Callable[..., Guest], engine: str, config: Config) -> None:
    guest, rng = make(engine, config, LIMIT), random.Random(3)
    guest.copy(guest.tracker.exchange())
    for vcpu in guest.vcpus:
        vcpu.post(0, [rng.randrange(PAGES) for _ in range(1500)], rng.randrange(256))
    cycles = 0
    while not all(vcpu.wait(0) for vcpu in guest.vcpus):
        if not guest.tracker.wait_full(0.02):
            continue
        with guest.standing():
            pages = guest.tracker.exchange()
            assert len(pages) <= LIMIT or guest.tracker.traits.forced_pause == "bounded"
            assert len(pages) >= LIMIT - config.vcpus
            guest.copy(pages)
            assert not guest.stale()
        guest.tracker.resume()
        cycles += 1
    guest.copy(guest.tracker.exchange())
    assert not guest.stale()
    assert cycles > 5 or guest.tracker.traits.forced_pause == "bounded"  # then it may be too fast for us


@on_guests(CONFIGS)
def test_pause_stops_everybody(make: Callable[..., Guest], engine: str, config: Config) -> None:
    guest, rng = make(engine, config), random.Random(4)
    if config.kind != "threads":
        for vcpu in guest.vcpus:
            vcpu.post(0, [rng.randrange(PAGES) for _ in range(2000)] * 100, rng.randrange(256))
    else:
        for vcpu in guest.vcpus:
            vcpu.post(STORM, [rng.randrange(PAGES) for _ in range(500)], rng.randrange(256))
    for _ in range(30):
        with guest.tracker.paused(), guest.standing():
            guest.copy(guest.tracker.exchange())
            assert not guest.stale()
    for vcpu in guest.vcpus:
        if config.kind == "threads":
            vcpu.stop()
        assert vcpu.wait()


@on(PAUSING)
def test_resume_wants_the_lists_emptied(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, CONFIGS[0], LIMIT)
    limit = guest.tracker.max_dirty_pages
    guest.tracker.exchange()
    guest.vcpus[0].post(0, range(5 * limit // 4), 3)
    assert guest.tracker.wait_full(DEADLINE)
    with pytest.raises(CycleError, match="exchange"):
        guest.tracker.resume()
    with guest.tracker.paused():
        n = len(guest.tracker.exchange())
        assert n == limit or (guest.tracker.traits.forced_pause == "bounded" and limit // 2 < n < limit)
    assert guest.vcpus[0].wait()


@on(OWN_PAUSING)
def test_threshold_can_change(make: Callable[..., Guest], engine: str) -> None:
    """That of kvm-ring is the size of its rings."""
    guest = make(engine, CONFIGS[0], LIMIT)
    guest.tracker.exchange()
    guest.vcpus[0].post(0, range(PAGES), 3)
    seen = []
    for limit in (50, 10, 90, 1):
        assert guest.tracker.wait_full(DEADLINE)
        guest.tracker.max_dirty_pages = limit
        seen.append(len(guest.tracker.exchange()))
        guest.tracker.resume()
    assert seen == [100, 50, 10, 90]


@on(name for name in OWN_PAUSING if name != "inline")
def test_kernel_writes_count_too(make: Callable[..., Guest], engine: str, tmp_path: Path) -> None:
    """They may go beyond it, by what is left of the system call; under inline they fail (test_writers.py)."""
    guest = make(engine, CONFIGS[0], LIMIT)
    guest.copy(guest.tracker.exchange())
    (tmp_path / "data").write_bytes(b"x" * 4096)
    fd = os.open(tmp_path / "data", os.O_RDONLY)
    guest.vcpus[0].post(1, range(3 * LIMIT), 0, fd)
    for _ in range(2):
        assert guest.tracker.wait_full(DEADLINE)
        with guest.tracker.paused():
            pages = guest.tracker.exchange()
            assert LIMIT <= len(pages) <= LIMIT + 1
            guest.copy(pages)
            assert not guest.stale()
    os.close(fd)


@with_limits([None, LIMIT])
def test_close_while_vcpus_write(make: Callable[..., Guest], engine: str, limit: int | None) -> None:
    for _ in range(10):
        guest = make(engine, CONFIGS[1], limit)
        for vcpu in guest.vcpus:
            vcpu.post(STORM, range(PAGES), 5)
        if limit:
            guest.tracker.wait_full(DEADLINE)
        else:
            guest.tracker.exchange()
        guest.tracker.close()
        for vcpu in guest.vcpus:
            before = vcpu.done
            wait_for(lambda v=vcpu, n=before: v.done >= n + 2 * PAGES, "it runs, and writes everywhere")
            vcpu.end()


@on(OWN)
def test_python_thread_cannot_be_forced(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, Config(2, "threads", shared=True))
    guest.tracker.unbind(0)
    with pytest.raises(InvalidInputError, match="Python thread"):
        guest.tracker.bind(0, threading.get_native_id())
    with pytest.raises(InvalidInputError, match="no thread"):
        guest.tracker.bind(0, 1)
    with pytest.raises(InvalidInputError, match="bound already"):
        guest.tracker.bind(1, 1 << 22)
    with guest.tracker.vcpu(0), guest.tracker.paused():
        guest.ram.array[0] = 3  # it runs on, though the others stand
    with pytest.raises(InvalidInputError, match="no vCPU 2"), guest.tracker.vcpu(2):
        pass


@on(OWN)
def test_one_that_does_not_stop_is_named(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, Config(2, "processes", shared=True))
    victim = guest.vcpus[1].process.pid
    os.kill(victim, signal.SIGSTOP)
    try:
        deadline, late = time.monotonic() + DEADLINE, (0, 1)
        while late != (1,) and time.monotonic() < deadline:  # the other one, too, may not get the processor
            with pytest.raises(PauseTimeoutError, match="1") as caught:
                guest.tracker.pause(0.2)
            late = caught.value.vcpus
        assert late == (1,)
        guest.write(0, [5])  # the others run
    finally:
        os.kill(victim, signal.SIGCONT)
    with guest.tracker.paused():
        assert 5 in guest.index(guest.tracker.exchange())
