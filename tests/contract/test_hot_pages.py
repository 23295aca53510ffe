"""Cycles that copy contents, and leave pages writable that are dirty again and again.

The shadow gets what exchange() has copied, nothing else: a page whose write was missed differs for ever.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmglue import KVM_ENGINES
from tests.contract.combinations import CONFIGS, PAGES, TRAITS, Config, on, on_guests
from tests.contract.conftest import Guest, until_gone
from tests.contract.guests import PVM, READ_FILE, STORM, WRITE, ProcessVcpu
from tests.contract.hot import HOT, buffer, heat, take, traps_set
from tests.helpers import broken
from uffdtrack import GuestRam, open_tracker

pytestmark = pytest.mark.usefixtures("kernel")
GUESTS = [CONFIGS[1], CONFIGS[3], CONFIGS[5], CONFIGS[7], CONFIGS[8]]


@on_guests(GUESTS)
def test_random_writers(make: Callable[..., Guest], engine: str, config: Config) -> None:
    """Hot sets that change, cold pages, the host, vCPUs that write the same pages; all kinds of cycles."""
    guest, rng, into = make(engine, config), random.Random(1), buffer()
    exact = guest.tracker.traits.exact
    take(guest, into)
    hot: list[int] = []
    for cycle in range(24 if config.kind == "attached" else 60):
        if cycle % 20 == 0:
            hot = rng.sample(range(PAGES), 240)  # enough for two threads
        wrote: set[int] = set()
        for i, vcpu in enumerate(guest.vcpus):
            own = rng.sample(hot, 160) if rng.random() < 0.9 else []
            own += rng.sample(range(PAGES), rng.randrange(20))
            vcpu.post(WRITE, own if i or rng.random() < 0.8 else hot, rng.randrange(4))
            wrote |= set(own) | set(hot if not i else [])
        for vcpu in guest.vcpus:
            assert vcpu.wait() and not vcpu.result()
        if cycle % 3 == 0:
            page = rng.choice([*hot, *range(5)])
            guest.ram.host_write(page * 4096 + rng.randrange(4096), bytes([cycle]))
            wrote.add(page)
        changed = set(guest.stale())
        kind = rng.random()
        if kind < 0.1:
            assert guest.tracker.pending() >= len(changed)
        if kind < 0.8:
            with guest.tracker.paused():
                rows = take(guest, into)
                assert not guest.stale()
            assert set(rows) >= changed
            assert not exact or set(rows) <= wrote
        elif kind < 0.9:
            guest.copy(guest.tracker.exchange())
        else:
            guest.tracker.prepare()
            while len(part := guest.tracker.fetch(50)):
                guest.tracker.rearm(part)
                guest.copy(part)
        assert not guest.stale()


@on_guests([c for c in GUESTS if c.kind == "threads"])
def test_vcpus_that_run(make: Callable[..., Guest], engine: str, config: Config) -> None:
    """A copy of a page that changes just then is mended by a later cycle."""
    guest, rng, into = make(engine, config), random.Random(2), buffer()
    for vcpu in guest.vcpus:
        vcpu.post(STORM, [rng.randrange(PAGES) for _ in range(100)], rng.randrange(256))
    for cycle in range(80):
        if cycle % 10:
            take(guest, into)
        else:
            guest.copy(guest.tracker.exchange())
        if cycle % 7 == 0:
            guest.ram.host_write(rng.randrange(PAGES) * 4096, bytes([cycle]))
    for vcpu in guest.vcpus:
        vcpu.stop()
        assert vcpu.wait()
    take(guest, into)
    assert not guest.stale()


@on(HOT)
def test_what_stays_writable(make: Callable[..., Guest], engine: str) -> None:
    """Hot pages cost no traps; same bytes are no write; a page that is cold is trapped again."""
    guest, into = make(engine, CONFIGS[1]), buffer()
    heat(guest, [5, 900], into)
    before = traps_set(guest)
    for value in range(20, 25):
        guest.write(value % 2, [5, 900], value)
        guest.write(0, [7 * value], value)
        assert sorted(take(guest, into)) == sorted([5, 900, 7 * value])
        assert not guest.stale()
    assert traps_set(guest) == before + 5
    for _ in range(3):
        guest.write(0, [5], 24)  # as it is
        assert take(guest, into) == []
    for _ in range(5):
        assert take(guest, into) == []
    assert traps_set(guest) == before + 7
    guest.write(0, [5], 24)  # its trap knows no bytes
    guest.write(1, [900], 30)
    assert sorted(take(guest, into)) == [5, 900]
    assert take(guest, into) == []
    assert not guest.stale()


@on(HOT)
def test_writes_that_pass_no_trap(make: Callable[..., Guest], engine: str, tmp_path: Path) -> None:
    """Of the host, of the kernel, and by GUP, into pages that are hot."""
    guest, into = make(engine, CONFIGS[5]), buffer()
    (tmp_path / "data").write_bytes(b"mark" * 1024)
    with open(tmp_path / "data", "rb") as file:
        for value in range(5, 9):
            heat(guest, [20, 21, 22], into, value * 10)
            guest.ram.host_write(4096 * 20 + 9, bytes([value]))
            guest.ram.array[4096 * 22 + 100] = value  # by nobody who is known
            guest.vcpus[0].post(PVM if value % 2 else READ_FILE, [21], value, file.fileno())
            assert guest.vcpus[0].wait() and not guest.vcpus[0].result()
            assert set(take(guest, into)) == {20, 21, 22}
            assert not guest.stale()


@on(HOT)
def test_discarded_pages(make: Callable[..., Guest], engine: str) -> None:
    guest, into = make(engine, CONFIGS[1]), buffer()
    heat(guest, [20, 21], into)
    guest.ram.discard(4096 * 20, 8192)
    assert set(take(guest, into)) == {20, 21} and not guest.stale()
    for _ in range(8):
        take(guest, into)
    guest.write(0, [21], 7)
    assert take(guest, into) == [21] and not guest.stale()


@on(HOT)
def test_vcpus_come_and_go(engine: str, library_path: Path) -> None:
    """A page that is hot in one address space has its trap in a new one, and stays hot there."""
    into = buffer()
    with GuestRam(PAGES * 4096) as ram, open_tracker(ram, engine, vcpus=2) as tracker:
        guest = Guest(ram, tracker, [ProcessVcpu(library_path, ram, i) for i in range(2)])
        for value in range(3):
            heat(guest, [3, 4], into, 10 * value + 1)
            guest.vcpus[0].end()
            guest.write(1, [4, 5], value + 100)
            assert set(take(guest, into)) == {4, 5}
            guest.vcpus[0] = ProcessVcpu(library_path, ram, 0)
            guest.write(0, [3, 4, 6], value + 150)
            assert set(take(guest, into)) == {3, 4, 6}
            assert not guest.stale()
            for _ in range(8):
                take(guest, into)  # until all is trapped again
            for vcpu in (0, 1):
                guest.write(vcpu, [3], value + 200 + 10 * vcpu)
                assert take(guest, into) == [3] and not guest.stale()
        for one in guest.vcpus:
            one.end()


@on(HOT)
def test_a_vcpu_that_dies(make: Callable[..., Guest], engine: str) -> None:
    guest, into = make(engine, CONFIGS[5]), buffer()
    heat(guest, [3, 4], into)
    guest.write(0, [3, 50], 77)
    guest.vcpus[0].process.kill()
    guest.vcpus[0].process.join()
    guest.write(1, [4], 78)
    assert until_gone(guest.tracker) == (0,)
    assert 50 in take(guest, into)
    take(guest, into)
    assert not guest.stale()
    guest.write(1, [3], 79)
    assert take(guest, into) == [3] and not guest.stale()


@on(HOT)
def test_a_comparison_that_forgets_is_found_out(make: Callable[..., Guest], engine: str) -> None:
    """The negative control: hot pages are looked at by the comparison alone."""
    guest, into = make(engine, CONFIGS[1]), buffer()
    heat(guest, [5, 900], into)
    with broken("compare"):
        guest.write(0, [5, 900], 77)
        assert len(take(guest, into)) == 1
    assert len(guest.stale()) == 1
    take(guest, into)
    assert not guest.stale()


@on(name for name in TRAITS if name not in KVM_ENGINES)
def test_a_page_that_is_dropped_is_found_out(make: Callable[..., Guest], engine: str) -> None:
    guest, into = make(engine, CONFIGS[1]), buffer()
    guest.tracker.exchange(into)
    guest.copy(guest.tracker.exchange())
    with broken("forget"):
        guest.write(0, list(range(0, 600, 3)), 5)
        take(guest, into)
    assert guest.stale() == [597]
