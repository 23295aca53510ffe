"""Rearms that fail, and thresholds that change, with pages that stay writable and without."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.contract.combinations import CONFIGS, PAGES, TRAITS, Config, on, on_guests
from tests.contract.conftest import Guest
from tests.contract.guests import DEADLINE, STORM, WRITE
from tests.contract.hot import HOT, buffer, heat, take
from tests.helpers import broken
from uffdtrack.errors import UffdtrackError

pytestmark = pytest.mark.usefixtures("kernel")
FORCED = [name for name in HOT if TRAITS[name].forced_pause == "exact"]


def fetch_again(guest: Guest) -> list[int]:
    rows: list[int] = []
    while len(part := guest.tracker.fetch()):
        guest.tracker.rearm(part)
        guest.copy(part)
        rows += guest.index(part)
    return rows


@pytest.mark.parametrize("copied", [False, True], ids=["", "copied"])
@on_guests([CONFIGS[0], CONFIGS[1], CONFIGS[4]], HOT)
def test_pages_of_a_rearm_that_failed(
    make: Callable[..., Guest], engine: str, config: Config, copied: bool
) -> None:
    """They can be fetched and rearmed again, and are under traps then: no later write is lost."""
    guest, into = make(engine, config), buffer()
    take(guest, into)
    pages = list(range(0, 400, 2))
    guest.write(0, pages, 7)
    with broken("refuse"), pytest.raises((UffdtrackError, OSError)):
        take(guest, into) if copied else guest.tracker.exchange()
    assert set(fetch_again(guest)) >= set(pages)
    for value in (55, 66):
        guest.write(0, pages, value)
        rows = take(guest, into) if copied else guest.index(guest.tracker.exchange())
        assert set(rows) >= set(pages)


@on_guests([CONFIGS[0], CONFIGS[1], CONFIGS[4]], HOT)
def test_pages_that_were_hot_and_not_rearmed(make: Callable[..., Guest], engine: str, config: Config) -> None:
    guest, into = make(engine, config), buffer()
    pages = list(range(1000, 1020))
    heat(guest, pages, into)
    for _ in range(3):
        take(guest, into)
    with broken("refuse"), pytest.raises((UffdtrackError, OSError)):
        for _ in range(3):  # the last one of these takes them for cold
            take(guest, into)
    fetch_again(guest)
    for _ in range(3):
        take(guest, into)
    for value in (55, 66):
        guest.write(0, pages, value)
        assert set(take(guest, into)) >= set(pages)
        assert not guest.stale()


@on(FORCED)
def test_nobody_stands_below_the_threshold(make: Callable[..., Guest], engine: str) -> None:
    """Pages of the cycle that ends count until it has ended, and no vCPU stands for them after."""
    limit = PAGES * 3 // 4
    guest, into = make(engine, CONFIGS[1], limit), buffer()
    storm, other = guest.vcpus
    storm.post(STORM, range(PAGES // 2))
    for cycle in range(400):
        if other.wait(0):
            other.post(WRITE, range(PAGES // 2 + cycle % 100, PAGES // 2 + cycle % 100 + 100), cycle % 256)
        take(guest, into)
        if guest.tracker.wait_full(0):
            take(guest, into)
            guest.tracker.resume()
    before, deadline = storm.done, time.monotonic() + DEADLINE
    while storm.done == before:
        assert time.monotonic() < deadline, "it stands, and nobody is told"
        if guest.tracker.wait_full(0):
            take(guest, into)
            guest.tracker.resume()
    storm.stop()


@on(FORCED)
def test_a_threshold_that_is_lowered(make: Callable[..., Guest], engine: str) -> None:
    """Pages that stay writable never fault: with a lower threshold none stays so."""
    guest, into = make(engine, CONFIGS[1], 1000), buffer()
    heat(guest, list(range(800)), into)
    with guest.tracker.paused():
        guest.tracker.max_dirty_pages = 100
        take(guest, into)
    guest.vcpus[0].post(WRITE, range(800), 99)
    full, deadline = 0, time.monotonic() + DEADLINE
    while not guest.vcpus[0].wait(0):
        assert time.monotonic() < deadline
        if guest.tracker.wait_full(0.01):
            assert len(take(guest, into)) <= 100
            full += 1
            guest.tracker.resume()
    assert full >= 7
