"""KVM's dirty rings: full ones, and the order that they ask for."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from kvmglue import SMALLEST_RING, Order, post, stop, wait, written
from tests.helpers import DEADLINE, broken
from tests.kvm.conftest import PAGES, Machine
from uffdtrack.errors import CycleError

Make = Callable[..., Machine]


def test_full_rings_lose_nothing(machine: Make) -> None:
    """Without a threshold a full ring is emptied by the vCPU's own thread, in the middle of a cycle."""
    made = machine("kvm-ring", 2, rings=SMALLEST_RING)
    shadow, rng = made.ram.pages().copy(), random.Random(1)
    made.vm.resume()
    made.copy_to(shadow)
    for value in range(20):
        for vcpu in range(2):
            rows = [rng.randrange(PAGES) for _ in range(3000)]
            post(made.vm, vcpu, Order("write", rows=rows, value=value))
        if value % 2:
            made.copy_to(shadow)
        for vcpu in range(2):
            assert wait(made.vm, vcpu, DEADLINE)
        made.copy_to(shadow)
        assert not made.stale(shadow)
    assert made.tracker.stats.overflows > 20
    assert sum(vcpu.counts["fulls"] for vcpu in made.vm.vcpus) == made.tracker.stats.overflows


@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_the_rings_bound_a_cycle(machine: Make, vcpus: int) -> None:
    """The pause comes when a ring is full; what all hold then is never more than the threshold."""
    limit = SMALLEST_RING * vcpus
    made = machine("kvm-ring", vcpus, limit=limit)
    shadow = made.ram.pages().copy()
    made.vm.resume()
    made.copy_to(shadow)
    for vcpu in range(vcpus):
        post(made.vm, vcpu, Order("storm", rows=range(vcpu, PAGES, vcpus)))
    for _ in range(40):
        assert made.tracker.wait_full(DEADLINE)
        with pytest.raises(CycleError, match="exchange"):
            made.tracker.resume()
        before = made.ram.array.copy()
        pages = made.tracker.exchange()
        assert SMALLEST_RING // 2 < len(pages) <= limit
        rows = made.ram.index(pages.gfn)
        shadow[rows] = made.ram.pages()[rows]
        assert not made.stale(shadow)
        assert (before == made.ram.array).all(), "a vCPU wrote in the pause"
        made.tracker.resume()
    for vcpu in range(vcpus):
        stop(made.vm, vcpu)
    made.tracker.close()
    for vcpu in range(vcpus):
        assert wait(made.vm, vcpu, DEADLINE)


def _storm(made: Machine) -> None:
    made.vm.resume()
    made.tracker.exchange()
    made.tracker.exchange()
    post(made.vm, 0, Order("storm", rows=range(600)))
    deadline = time.monotonic() + DEADLINE
    while written(made.vm, 0) < 1200:
        assert time.monotonic() < deadline


def test_contents_are_read_after_the_reset(machine: Make) -> None:
    """The control: who reads a page before its reset misses what is written in between."""
    made = machine("kvm-ring")
    shadow = made.ram.pages().copy()
    made.vm.resume()
    made.copy_to(shadow)
    made.copy_to(shadow)
    for value, before in ((3, False), (5, True)):
        post(made.vm, 0, Order("write", rows=[700], value=value))
        assert wait(made.vm, 0, DEADLINE)
        made.tracker.prepare()
        pages = made.tracker.fetch()
        rows = made.ram.index(pages.gfn)
        contents = made.ram.pages()[rows].copy()
        post(made.vm, 0, Order("write", rows=[700], value=value + 1))
        assert wait(made.vm, 0, DEADLINE)
        made.tracker.rearm(pages)
        shadow[rows] = contents if before else made.ram.pages()[rows]
        made.copy_to(shadow)
        assert made.stale(shadow) == ([700] if before else [])


@pytest.mark.parametrize("sound", [True, False])
def test_vcpus_are_out_of_kvm_run_at_a_harvest(machine: Make, sound: bool) -> None:
    """What is harvested while they run, and copied when they stand, is no state that the guest was in."""
    made = machine("kvm-ring", 2)
    shadow = made.ram.pages().copy()
    _storm(made)
    torn = 0
    with nullcontext() if sound else broken("order"):
        for row in range(700, 750):
            if sound:
                made.vm.pause()
            rows = made.ram.index(made.tracker.exchange().gfn)
            post(made.vm, 1, Order("write", rows=[row]))
            if not sound:
                assert wait(made.vm, 1, DEADLINE)
                made.vm.pause()
            shadow[rows] = made.ram.pages()[rows]
            torn += bool(made.stale(shadow))
            made.vm.resume()
            assert wait(made.vm, 1, DEADLINE)
    assert torn == (0 if sound else 50)
    stop(made.vm, 0)
    assert wait(made.vm, 0, DEADLINE)
