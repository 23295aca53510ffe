"""Cycles that copy contents: the threshold counts pages that stay writable, buffers have an end."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.contract.combinations import CONFIGS, PAGES, TRAITS, Config, on, on_guests
from tests.contract.conftest import Guest
from tests.contract.guests import DEADLINE, WRITE
from tests.contract.hot import HOT, buffer, take
from uffdtrack import DirtyPages
from uffdtrack.errors import CycleError, InvalidInputError

pytestmark = pytest.mark.usefixtures("kernel")
LIMIT = 100


@on_guests([CONFIGS[1], CONFIGS[5]], [name for name in HOT if TRAITS[name].forced_pause == "exact"])
def test_the_threshold_counts_them(make: Callable[..., Guest], engine: str, config: Config) -> None:
    guest, rng, into = make(engine, config, LIMIT), random.Random(3), buffer()
    take(guest, into)
    hot = rng.sample(range(PAGES), 300)
    for cycle in range(60):
        for i, vcpu in enumerate(guest.vcpus):
            if vcpu.wait(0):  # long ones go on over several cycles
                rows = hot[i * 20 : i * 20 + 30] + rng.sample(range(PAGES), 60)
                vcpu.post(WRITE, rows, cycle)
        if guest.tracker.wait_full(0.02):
            rows = take(guest, into)
            assert len(rows) <= LIMIT
            assert not guest.stale()
            guest.tracker.resume()
    while not all(vcpu.wait(0) for vcpu in guest.vcpus):
        if guest.tracker.wait_full(0.02):
            take(guest, into)
            guest.tracker.resume()
    take(guest, into)
    assert not guest.stale()


@on(HOT)
def test_hot_pages_leave_room_below_the_threshold(make: Callable[..., Guest], engine: str) -> None:
    """Were all pages hot that may be dirty, no vCPU could ever run to another page."""
    guest, into = make(engine, CONFIGS[1], LIMIT), buffer()
    for value in range(8):
        guest.vcpus[0].post(WRITE, range(98) if value < 7 else range(500, 1500), value)
        deadline = time.monotonic() + DEADLINE
        while not guest.vcpus[0].wait(0):
            assert time.monotonic() < deadline
            if guest.tracker.wait_full(0.01):
                assert len(take(guest, into)) <= LIMIT
                assert not guest.stale()
                guest.tracker.resume()
        take(guest, into)
        assert not guest.stale()


def test_a_buffer_that_is_too_small(make: Callable[..., Guest], engine: str) -> None:
    guest, small = make(engine, CONFIGS[1]), buffer(10)
    guest.copy(guest.tracker.exchange())
    for value in range(6):
        guest.write(0, list(range(0, 60, 2)), value)
        assert len(take(guest, small)) == 10
        with pytest.raises(CycleError, match="rearm"):
            guest.tracker.exchange(small)
        parts: list[DirtyPages] = []
        while len(part := guest.tracker.fetch(7)):
            guest.tracker.rearm(part)
            guest.copy(part)
            parts.append(part)
        assert sum(map(len, parts)) == 20
        assert not guest.stale()
    guest.write(0, [2], 77)
    assert take(guest, small) == [2] and not guest.stale()


@pytest.mark.parametrize(
    "wrong",
    [np.zeros(4096, np.uint8), np.zeros((2, 4095), np.uint8), np.zeros((2, 4096), np.int8),
     np.zeros((4, 4096), np.uint8)[::2], b"no array"],
    ids=["one", "short", "signed", "gaps", "bytes"],
)  # fmt: skip
def test_wrong_buffers(make: Callable[..., Guest], engine: str, wrong: Any) -> None:
    guest = make(engine, CONFIGS[1])
    with pytest.raises(InvalidInputError, match="contiguous"):
        guest.tracker.exchange(wrong)
