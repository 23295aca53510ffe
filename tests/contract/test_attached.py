"""Memory of a process that was attached to: its threads are vCPUs, and ptrace stops them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.conftest import usable
from tests.contract.combinations import CONFIGS, PAGES
from tests.contract.conftest import Guest, until_gone
from tests.contract.guests import DEADLINE, ENDS, PVM, STORM, WRITE, AttachedVcpu, Target
from tests.helpers import Build, traps, wait_for
from tests.processes import CONTEXT
from uffdtrack import PROCESS_ENGINES, ProcessRam, open_tracker, parse_maps
from uffdtrack.errors import (
    InvalidInputError,
    PauseTimeoutError,
    TargetGoneError,
)

pytestmark = pytest.mark.usefixtures("kernel")
ATTACHED = CONFIGS[7]
LIMIT = 100


@pytest.fixture(params=PROCESS_ENGINES)
def attaching(request: pytest.FixtureRequest, kernel: None) -> str:
    return usable(request.param)


@pytest.fixture
def target(library_path: Path) -> Iterator[Target]:
    made = Target(library_path, PAGES * 4096, 2)
    yield made
    made.end()


@pytest.mark.parametrize("attaching", ["ring", "sync"], indirect=True)
def test_threshold_of_writers_that_never_rest(make: Callable[..., Guest], attaching: str) -> None:
    guest = make(attaching, ATTACHED, LIMIT)
    guest.copy(guest.tracker.exchange())
    for i, vcpu in enumerate(guest.vcpus):
        vcpu.post(STORM, range(i, PAGES, 2), i)
    for _ in range(30):
        assert guest.tracker.wait_full(DEADLINE)
        with guest.standing():
            pages = guest.tracker.exchange()
            assert len(pages) >= LIMIT
            assert len(pages) == LIMIT or guest.tracker.traits.forced_pause == "bounded"
            guest.copy(pages)
            assert not guest.stale()
        guest.tracker.resume()
    for vcpu in guest.vcpus:
        vcpu.stop()
    while not all(vcpu.wait(0.001) for vcpu in guest.vcpus):
        if guest.tracker.wait_full(0.01):
            guest.copy(guest.tracker.exchange())
            guest.tracker.resume()
    guest.copy(guest.tracker.exchange())
    assert not guest.stale()


@pytest.mark.parametrize("attaching", ["ring", "sync"], indirect=True)
def test_system_calls_at_the_threshold(make: Callable[..., Guest], attaching: str) -> None:
    """GUP sleeps until it is answered, so it is finished first."""
    guest = make(attaching, ATTACHED, LIMIT)
    guest.copy(guest.tracker.exchange())
    for vcpu in guest.vcpus:
        vcpu.post(PVM, range(PAGES), 3)
    while not all(vcpu.wait(0.001) for vcpu in guest.vcpus):
        if guest.tracker.wait_full(0.01):
            guest.copy(guest.tracker.exchange())
            assert not guest.stale()
            guest.tracker.resume()
    with guest.tracker.paused():
        guest.copy(guest.tracker.exchange())
    assert not guest.stale()


def test_thread_that_ends(make: Callable[..., Guest], attaching: str) -> None:
    guest = make(attaching, ATTACHED)
    guest.copy(guest.tracker.exchange())
    guest.write(1, [7, 8], 9)
    guest.vcpus[1].post(ENDS, [])
    assert guest.vcpus[1].wait()
    assert until_gone(guest.tracker) == (1,)
    guest.write(0, [9], 9)
    pages = guest.tracker.exchange()
    assert set(guest.index(pages)) >= {7, 8, 9}
    guest.copy(pages)
    assert not guest.stale()


def test_process_that_ends(target: Target, attaching: str) -> None:
    pid = target.process.pid
    assert pid
    with ProcessRam(pid, target.address, PAGES * 4096) as ram, open_tracker(ram, attaching) as tracker:
        tracker.bind(0, target.tids[0])
        tracker.exchange()
        target.process.kill()
        target.process.join()
        with pytest.raises(TargetGoneError):
            tracker.pause()
        with pytest.raises(TargetGoneError):
            ram.pages()
    with pytest.raises(TargetGoneError):
        ProcessRam(pid, target.address, 4096)


def test_thread_that_does_not_stop(
    spawn: Callable[..., subprocess.Popen[bytes]], build: Build, attaching: str
) -> None:
    process = spawn(build("unstoppable"))
    assert process.stdout and process.stdout.readline() == b"ready\n"
    maps = parse_maps(Path(f"/proc/{process.pid}/maps").read_text())
    heap = next(r for r in maps if r.name == "[heap]")
    with ProcessRam(process.pid, heap.start, heap.size) as ram, open_tracker(ram, attaching) as tracker:
        deadline = time.monotonic() + DEADLINE
        with pytest.raises(PauseTimeoutError, match="did not stop in time"):
            while time.monotonic() < deadline:
                tracker.pause(0.005)
                tracker.resume()
    assert process.stdout.readline() == b"beat\n" and process.poll() is None


def _attach_and_die(pid: int, address: int, tid: int, engine: str, pipe: Connection) -> None:
    limit = None if engine == "scan" else LIMIT
    ram = ProcessRam(pid, address, PAGES * 4096)
    with open_tracker(ram, engine, max_dirty_pages=limit) as tracker:
        tracker.bind(0, tid)
        if limit:
            pipe.send("armed")
            assert tracker.wait_full(DEADLINE)
        else:
            tracker.pause()
        pipe.send("paused")
        os.kill(os.getpid(), signal.SIGKILL)


def test_death_of_the_tracker_in_a_pause(target: Target, attaching: str) -> None:
    """kill -9: the process runs on, untracked."""
    ours, other = CONTEXT.Pipe()
    pid = target.process.pid
    assert pid
    arguments = (pid, target.address, target.tids[0], attaching, other)
    process = CONTEXT.Process(target=_attach_and_die, args=arguments)
    process.start()
    if attaching != "scan":
        assert ours.poll(DEADLINE) and ours.recv() == "armed"
        target.pipe.send((0, WRITE, list(range(PAGES)), 5, "", 0))
    assert ours.poll(DEADLINE) and ours.recv() == "paused"
    process.join(DEADLINE)
    assert process.exitcode == -signal.SIGKILL
    wait_for(lambda: not traps(pid), "the traps are gone")
    if attaching == "scan":
        target.pipe.send((0, WRITE, list(range(PAGES)), 5, "", 0))
    assert target.pipe.poll(DEADLINE) and target.pipe.recv() == (0, 0)
    with ProcessRam(pid, target.address, PAGES * 4096) as ram:
        pages = ram.pages()
        assert all(pages[page, page % 4096] == 5 for page in range(PAGES))


def test_bad_ranges(target: Target, attaching: str) -> None:
    pid, address = target.process.pid, target.address
    assert pid
    for bad in (address + 1, 0, -4096):
        with pytest.raises(InvalidInputError):
            ProcessRam(pid, bad, 4096)
    for size in (0, 4097, -4096):
        with pytest.raises(InvalidInputError):
            ProcessRam(pid, address, size)
    with ProcessRam(pid, 0x10000, 4096) as ram:
        with pytest.raises(InvalidInputError, match="can be tracked"), open_tracker(ram, attaching):
            pass
        with pytest.raises(InvalidInputError, match="attached to"):
            open_tracker(ram, "inline")
    with ProcessRam(pid, address, PAGES * 4096) as ram, open_tracker(ram, attaching) as tracker:
        with pytest.raises(InvalidInputError, match="no thread"):
            tracker.bind(0, 1)
        with pytest.raises(InvalidInputError, match="bind"):
            tracker.vcpu(0)
        AttachedVcpu(target, tracker, 0)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="bound already"):
            tracker.bind(0, target.tids[1])
