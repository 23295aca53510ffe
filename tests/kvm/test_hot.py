"""Pages that stay writable, since the guest writes them cycle after cycle: all that it writes is listed."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from kvmglue import KVM_ENGINES, Order, post
from tests.helpers import broken
from tests.kvm.conftest import PAGES, Machine, run_on, write

CYCLES = 60
LONGEST = 16
"""So many cycles a page is listed at most in which it was not written."""


def listed(made: Machine) -> set[int]:
    made.vm.pause()
    return set(made.tracker.exchange().gfn.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_all_that_is_written_is_listed(machine: Callable[..., Machine], seed: int) -> None:
    """A guest that stops and begins to write the same pages, others, and none; and the host."""
    made, chance = machine("kvm-clear"), random.Random(seed)
    assert made.tracker.leave_hot()
    shadow, unwritten = made.ram.pages().copy(), 0
    made.tracker.exchange()
    hot = chance.randrange(200), chance.randrange(1, 300)
    for cycle in range(1, CYCLES):
        before = made.ram.pages().copy()
        for _ in range(chance.randrange(4)):
            match chance.randrange(5):
                case 0 | 1:
                    write(made, *hot, value=cycle)
                case 2:
                    write(made, chance.randrange(500), 400, cycle, "random", chance.randrange(1, 300))
                case 3:
                    hot = chance.randrange(200), chance.randrange(1, 300)
                case 4:
                    row = chance.randrange(PAGES)
                    made.ram.host_write(row * 4096 + 64, cycle.to_bytes(8, "little"))
        made.vm.pause()
        rows = made.ram.index(made.tracker.exchange().gfn)
        shadow[rows] = made.ram.pages()[rows]
        assert made.stale(shadow) == [], f"cycle {cycle}"
        unwritten += len(rows) - int((before[rows] != made.ram.pages()[rows]).any(axis=1).sum())
    assert unwritten, "no page was hot"


@pytest.mark.parametrize("pages", [1, 64, 1200])
def test_while_it_runs(machine: Callable[..., Machine], pages: int) -> None:
    """It writes all the time, and stands for each copy."""
    made = machine("kvm-clear", 2)
    assert made.tracker.leave_hot()
    shadow = made.ram.pages().copy()
    for vcpu in range(2):
        order = Order(
            "random", first=vcpu * pages // 2, pages=pages, n=1 << 40, value=vcpu + 1, seed=vcpu + 1
        )
        post(made.vm, vcpu, order)
    for cycle in range(CYCLES):
        made.vm.resume()
        run_on(made.vm, cycle % 2, 50)
        made.vm.pause()
        made.copy_to(shadow)
        assert made.stale(shadow) == [], f"cycle {cycle}"


def test_a_page_that_is_missed_is_seen(machine: Callable[..., Machine]) -> None:
    """The negative control: one page that the guest has written is not in the list."""
    made = machine("kvm-clear")
    made.tracker.leave_hot()
    shadow = made.ram.pages().copy()
    for cycle in range(1, 5):
        write(made, 0, 100, cycle)
        made.vm.pause()
        made.copy_to(shadow)
    assert made.stale(shadow) == []
    with broken("forget"):
        write(made, 0, 100, 9)
        made.vm.pause()
        made.copy_to(shadow)
        assert len(made.stale(shadow)) == 1


def test_how_long_a_page_is_hot(machine: Callable[..., Machine]) -> None:
    """From its second cycle on, and for some cycles behind its last one; all of them never at a time."""
    made = machine("kvm-clear")
    made.tracker.leave_hot()
    made.tracker.exchange()
    wrote = set(range(100))
    write(made, 0, 100, 1)
    assert wrote <= listed(made)
    assert listed(made) == set(), "once is not hot"
    for value in (2, 3, 4):
        write(made, 0, 100, value)
        assert listed(made) == wrote
    after = [listed(made) for _ in range(LONGEST + 1)]
    assert wrote >= after[0] > after[1] > after[LONGEST] == set()
    write(made, 7, 1, 5)
    assert listed(made) == {7}, "it has its trap again"


@pytest.mark.parametrize("engine", sorted(KVM_ENGINES))
def test_which_engine(machine: Callable[..., Machine], engine: str) -> None:
    """The others list what was written, as before."""
    made = machine(engine)
    assert made.tracker.leave_hot() == (engine == "kvm-clear")
    made.tracker.exchange()
    for value in (1, 2, 3):
        write(made, 10, 20, value)
        made.vm.pause()
        assert np.isin(np.arange(10, 30), made.tracker.exchange().gfn).all()
    assert engine == "kvm-clear" or not listed(made)
