"""Every engine and every kind of guest gives the same answer: what the writers say they wrote."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import numpy as np
import pytest

from tests.contract.combinations import CONFIGS, OWN, PAGES, TRAITS, Config, on, on_guests
from tests.contract.conftest import Guest
from tests.helpers import broken
from uffdtrack import DirtyPages
from uffdtrack.errors import CycleError

pytestmark = pytest.mark.usefixtures("kernel")
REARMING = [name for name in TRAITS if name not in ("scan", "kvm-bitmap", "kvm-clear")]
"""Where a rearm can be left out. Others do it in the harvest; kvm-clear's log keeps what is not cleared."""


def patterns(rng: random.Random) -> dict[str, list[int]]:
    return {
        "none": [],
        "one": [rng.randrange(PAGES)],
        "sparse": rng.sample(range(PAGES), 12),
        "dense": list(range(512, 1024)),
        "sequential": list(range(100, 160)),
        "random": [rng.randrange(PAGES) for _ in range(300)],
        "ends": [0, PAGES - 1, 511, 512, 0],
        "all": list(range(PAGES)),
    }


@on_guests(CONFIGS)
def test_a_cycle_lists_what_was_written(make: Callable[..., Guest], engine: str, config: Config) -> None:
    guest = make(engine, config)
    traits, rng = guest.tracker.traits, random.Random(1)
    guest.copy(guest.tracker.exchange())
    for _ in range(2):
        for name, _ in patterns(rng).items():
            written: dict[int, set[int]] = {}
            for vcpu in range(config.vcpus):
                mine = patterns(rng)[name]
                guest.write(vcpu, mine, rng.randrange(256))
                for page in mine:
                    written.setdefault(page, set()).add(vcpu)
            pages = guest.tracker.exchange()
            rows = guest.index(pages)
            assert len(rows) == len(set(rows)), f"{name}: a page is listed twice"
            assert set(rows) >= set(written), f"{name}: lost pages"
            if traits.exact:
                assert set(rows) == set(written), f"{name}: pages that nobody wrote"
            for row, vcpu in zip(rows, pages.vcpu.tolist(), strict=True):
                assert vcpu == -1 or row not in written or vcpu in written[row], f"{name}: vCPU {vcpu}"
                if traits.per_vcpu and name != "all":
                    assert vcpu != -1, f"{name}: nobody is named for page {row}"
            guest.copy(pages)
            assert not guest.stale(), name


@on_guests(CONFIGS)
def test_everybody_on_one_page(make: Callable[..., Guest], engine: str, config: Config) -> None:
    guest = make(engine, config)
    for value in range(30):
        for vcpu in guest.vcpus:
            vcpu.post(0, [77], value)
        for vcpu in guest.vcpus:
            assert vcpu.wait()
        pages = guest.tracker.exchange()
        assert guest.index(pages).count(77) == 1
        guest.copy(pages)
        assert not guest.stale()


@on_guests(c for c in CONFIGS if c.kind == "threads")
def test_no_write_is_lost_while_vcpus_run(make: Callable[..., Guest], engine: str, config: Config) -> None:
    """Copies are made after the rearm, of memory that changes: what changes after is in a later cycle."""
    guest, rng = make(engine, config), random.Random(2)
    for vcpu in guest.vcpus:
        vcpu.post(5, [rng.randrange(PAGES) for _ in range(200)], rng.randrange(256))
    for _ in range(150):
        guest.copy(guest.tracker.exchange())
    for vcpu in guest.vcpus:
        vcpu.stop()
        assert vcpu.wait()
    guest.copy(guest.tracker.exchange())
    assert not guest.stale()


@pytest.mark.parametrize(
    ("engine", "flag"),
    [*((engine, "forget") for engine in TRAITS), *((engine, "rearm") for engine in REARMING)],
    indirect=["engine"],
)
def test_a_broken_tracker_is_found_out(make: Callable[..., Guest], engine: str, flag: str) -> None:
    """The negative control: a page that is dropped, or not rearmed, must show in the shadow."""
    guest = make(engine, CONFIGS[1])
    guest.tracker.exchange()
    guest.copy(guest.tracker.exchange())
    stale = []
    with broken(flag):
        for value in (5, 6):
            guest.write(0, list(range(0, 600, 3)), value)
            guest.copy(guest.tracker.exchange())
            stale += guest.stale()
    assert set(stale) == {597}


def test_step_by_step_in_threads(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, CONFIGS[3])
    wrote = list(range(0, 2000, 2))
    for value in range(5):
        guest.write(value % 3, wrote, value)
        n = guest.tracker.prepare()
        parts: list[DirtyPages] = []

        def fetch(into: list[DirtyPages]) -> None:
            while len(part := guest.tracker.fetch(17)):
                guest.tracker.rearm(part)
                guest.copy(part)
                into.append(part)

        threads = [threading.Thread(target=fetch, args=(parts,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rows = [row for part in parts for row in guest.index(part)]
        assert sorted(rows) == sorted(set(rows)) and len(rows) == n
        assert set(rows) >= set(wrote)
        assert max(len(part) for part in parts) <= 17
        assert not guest.stale()


def test_host_writes_go_to_the_global_list(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, CONFIGS[0])
    guest.tracker.exchange()
    for value in range(3):
        guest.ram.host_write(4096 * 9 + 4000, bytes([value]) * 200)
        guest.write(0, [700], value)
        pages = guest.tracker.exchange()
        named = dict(zip(guest.index(pages), pages.vcpu.tolist(), strict=True))
        assert named[9] == named[10] == -1
        assert set(named) == {9, 10, 700}
        guest.copy(pages)
        assert not guest.stale()


@on(OWN)
def test_host_writes_beside_vcpu_processes(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, CONFIGS[5])
    guest.copy(guest.tracker.exchange())
    for value in range(3):
        guest.ram.host_write(4096 * 300, bytes([value]) * 4096)
        guest.write(1, [300, 301], value)
        pages = guest.tracker.exchange()
        assert set(guest.index(pages)) == {300, 301}
        guest.copy(pages)
        assert not guest.stale()


@on(name for name in OWN if name != "scan")
def test_lists_that_overflow(make: Callable[..., Guest], engine: str) -> None:
    """A threshold of 64 makes lists of 64; a thread that cannot be stopped goes beyond.

    scan has neither lists in shared memory nor a threshold. For KVM's rings: tests/kvm/test_rings.py.
    """
    guest = make(engine, Config(2, "threads", shared=False), max_dirty_pages=64)
    guest.tracker.unbind(0)
    with guest.tracker.vcpu(0):
        for value in range(3):
            guest.ram.pages()[:1500, 5] = value + 10
            pages = guest.tracker.exchange()
            assert set(range(1500)) <= set(guest.index(pages))
            assert len(set(guest.index(pages))) == len(pages)
            assert (pages.vcpu == 0).sum() == 64
            guest.copy(pages)
            assert not guest.stale()
            guest.tracker.resume()


def test_log_is_the_smaller_of_list_and_bitmap(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, CONFIGS[3])
    guest.tracker.exchange()
    guest.write(0, [3, 1500])
    guest.tracker.exchange()
    log = guest.tracker.get_dirty_log()
    assert log.kind == "list" and sorted(guest.ram.index(log.data).tolist()) == [3, 1500]
    guest.write(0, list(range(100, 400)))
    guest.tracker.exchange()
    log = guest.tracker.get_dirty_log()
    assert log.kind == "bitmap" and log.data.nbytes == PAGES // 8
    assert np.flatnonzero(np.unpackbits(log.data, bitorder="little")).tolist() == list(range(100, 400))


def test_runs(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, CONFIGS[0])
    guest.tracker.exchange()
    assert guest.tracker.exchange().runs().tolist() == []
    guest.write(0, [9, 5, 6, 7, 100])
    assert guest.tracker.exchange().runs().tolist() == [[5, 8], [9, 10], [100, 101]]


def test_calls_out_of_order(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, CONFIGS[0])
    tracker = guest.tracker
    with pytest.raises(CycleError, match="prepare"):
        tracker.fetch()
    with pytest.raises(CycleError, match="active already"):
        tracker.activate()
    guest.write(0, [1, 2, 3])
    tracker.prepare()
    with pytest.raises(CycleError, match="rearm"):
        tracker.prepare()
    with pytest.raises(CycleError, match="rearm"):
        tracker.exchange()
    pages = tracker.fetch()
    tracker.rearm(pages)
    with pytest.raises(CycleError, match="rearmed already"):
        tracker.rearm(pages)
    guest.write(0, [3, 4])
    assert set(guest.index(tracker.exchange())) == {3, 4}
    with pytest.raises(CycleError, match="cycle 1"):
        tracker.rearm(pages)
    with pytest.raises(CycleError, match="threshold"):
        tracker.wait_full(0)
    guest.vcpus[0].end()
    tracker.deactivate()
    tracker.deactivate()
    with pytest.raises(CycleError, match="activate"):
        tracker.exchange()
    guest.ram.array[:] = 7
    tracker.activate()
    assert not tracker.stats.cycles
    tracker.close()
    with pytest.raises(CycleError, match="closed"):
        tracker.activate()


def test_pages_outlive_the_tracker(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, CONFIGS[0])
    guest.tracker.exchange()
    guest.write(0, [5, 6])
    pages = guest.tracker.exchange()
    guest.tracker.close()
    assert sorted(pages.gfn.tolist()) == [5, 6]
    assert len(pages.vcpu.tolist()) == 2
