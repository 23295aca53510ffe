"""Somebody dies, in a pause or out of it: the others run on, and no page is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.combinations import (
    OWN,
    OWN_PAUSING,
    PAGES,
    Config,
    on,
    with_limits,
)
from tests.contract.conftest import Guest, until_gone
from tests.contract.guests import DEADLINE, ProcessVcpu
from tests.helpers import broken
from uffdtrack import GuestRam
from uffdtrack.errors import (
    HandlerGoneError,
    VcpuGoneError,
)

pytestmark = pytest.mark.usefixtures("kernel")
LIMIT = 100


@on(OWN)
def test_death_of_a_vcpu_process(make: Callable[..., Guest], engine: str, library_path: Path) -> None:
    guest = make(engine, Config(2, "processes", shared=True))
    guest.copy(guest.tracker.exchange())
    guest.write(1, [40, 41, 42], 9)
    os.kill(guest.vcpus[1].process.pid, signal.SIGKILL)
    guest.vcpus[1].process.join(DEADLINE)
    assert until_gone(guest.tracker) == (1,)
    guest.write(0, [50])
    pages = guest.tracker.exchange()
    assert set(guest.index(pages)) >= {40, 41, 42, 50}
    guest.copy(pages)
    assert not guest.stale()
    # Its place is free.
    another = ProcessVcpu(library_path, guest.ram, 1)
    guest.vcpus[1] = another
    guest.tracker.exchange()
    guest.write(1, [60], 4)
    assert guest.index(guest.tracker.exchange()) == [60]
    another.end()


@on(OWN_PAUSING)
def test_death_of_a_vcpu_in_the_pause(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, Config(2, "processes", shared=True), LIMIT)
    guest.tracker.exchange()
    guest.vcpus[0].post(0, range(PAGES), 1)
    assert guest.tracker.wait_full(DEADLINE)
    os.kill(guest.vcpus[0].process.pid, signal.SIGKILL)
    guest.vcpus[0].process.join(DEADLINE)
    guest.copy(guest.tracker.exchange())
    guest.tracker.resume()
    deadline = time.monotonic() + DEADLINE
    with pytest.raises(VcpuGoneError):
        while time.monotonic() < deadline:
            guest.tracker.wait_full(0.1)
    guest.copy(guest.tracker.exchange())
    assert not guest.stale()
    guest.write(1, [7], 3)


@on(OWN)
def test_death_of_a_native_thread(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, Config(2, "threads", shared=True))
    guest.copy(guest.tracker.exchange())
    guest.write(1, [8, 9], 3)
    guest.vcpus[1].end()
    assert until_gone(guest.tracker) == (1,)
    pages = guest.tracker.exchange()
    assert set(guest.index(pages)) >= {8, 9}
    guest.copy(pages)
    assert not guest.stale()


@on(["sync"])
def test_death_of_the_handler(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, Config(2, "processes", shared=True))
    guest.tracker.exchange()
    with broken("handler"):
        guest.write(0, list(range(100)), 3)  # it does not hang
    for call in (guest.tracker.exchange, guest.tracker.prepare, guest.tracker.pending, guest.tracker.pause):
        with pytest.raises(HandlerGoneError, match="full copy"):
            call()


TRACKER = """
import os, sys
from tests.helpers import wait_for
from uffdtrack import GuestRam, open_tracker
ram = GuestRam("8MiB")
tracker = open_tracker(ram, sys.argv[1], vcpus=2, max_dirty_pages=int(sys.argv[2]) or None)
tracker.activate()
print(ram.name, flush=True)
tracker.wait_joined(30)
if not os.fork():
    # A child that outlives the tracker must not keep the traps, nor the vCPUs waiting.
    os.read(int(sys.argv[3]), 1)
    os._exit(0)
print("joined", flush=True)
if int(sys.argv[2]):
    tracker.wait_full(30)
    print("full", flush=True)
else:
    sys.stdin.readline()
    tracker.pause()
    print("paused", flush=True)
sys.stdin.read()
"""


@with_limits([0, 50], OWN)
def test_death_of_the_tracker(engine: str, limit: int, library_path: Path) -> None:
    """Its vCPUs run on, whatever they were doing, and can write everywhere."""
    until, end = os.pipe()
    tracker = subprocess.Popen(
        [sys.executable, "-c", TRACKER, engine, str(limit), str(until)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[until],
    )  # fmt: skip
    os.close(until)
    assert tracker.stdout and tracker.stdin
    try:
        name = tracker.stdout.readline().strip()
        ram = GuestRam.attach(name)
        vcpus = [ProcessVcpu(library_path, ram, i) for i in range(2)]
        assert tracker.stdout.readline() == "joined\n"
        for vcpu in vcpus:
            vcpu.post(0, list(range(2000)), 7)
        tracker.stdin.write("go\n")
        tracker.stdin.flush()
        assert tracker.stdout.readline() in ("full\n", "paused\n")
    finally:
        tracker.kill()
        tracker.wait()
        tracker.stdin.close()
        tracker.stdout.close()
    for value in (7, 8):
        for vcpu in vcpus:
            if value == 8:
                vcpu.post(0, list(range(2000)), value)
            assert vcpu.wait()
    assert [int(ram.pages()[page, page % 4096]) for page in range(2000)] == [8] * 2000
    for vcpu in vcpus:
        vcpu.end()
    os.close(end)  # the end of the child that it left
    ram.close()
