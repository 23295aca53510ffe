"""Every tracker has all of `Tracker`, so that who uses one needs not know which it is."""

from __future__ import annotations

import collections
import contextlib
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.contract.conftest import Config, Guest
from tests.contract.guests import DEADLINE, WRITE
from tests.helpers import broken
from uffdtrack import PROCESS_ENGINES, Tracker
from uffdtrack.errors import CycleError, InvalidInputError

pytestmark = pytest.mark.usefixtures("kernel")
MEMBERS = sorted(name for name in vars(Tracker) if not name.startswith("_"))


def check_members(tracker: Any) -> None:
    assert {"pause", "resume", "paused", "pending", "max_dirty_pages", "wait_full", "gate"} <= set(MEMBERS)
    for name in MEMBERS:
        wanted, found = getattr(Tracker, name), getattr(type(tracker), name, None)
        if callable(wanted):
            assert found and same_parameters(found, wanted), name
        else:
            assert hasattr(tracker, name), name
    for name in ("pause", "resume", "wait"):
        assert callable(getattr(tracker.gate, name))


def same_parameters(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    mine, wanted = inspect.signature(one).parameters, inspect.signature(other).parameters
    return [(p.name, p.default) for p in mine.values()] == [(p.name, p.default) for p in wanted.values()]


def test_all_members(make: Callable[..., Guest], engine: str) -> None:
    check_members(make(engine, Config(1, "threads", shared=False)).tracker)


@pytest.mark.parametrize("attached", PROCESS_ENGINES)
def test_all_members_of_attached_ones(make: Callable[..., Guest], attached: str) -> None:
    check_members(make(attached, Config(1, "attached", shared=False)).tracker)


def test_the_gate_and_what_is_pending(make: Callable[..., Guest], engine: str) -> None:
    guest = make(engine, Config(1, "threads", shared=False))
    tracker = guest.tracker
    tracker.exchange()
    assert tracker.pending() == 0 and tracker.max_dirty_pages is None
    guest.write(0, list(range(30)), 3)
    assert tracker.pending() == 30
    with tracker.paused():
        guest.vcpus[0].post(WRITE, range(30, 60), 4)
        assert len(tracker.exchange()) == 30
        assert not guest.vcpus[0].wait(0)
    assert guest.vcpus[0].wait(DEADLINE)
    with pytest.raises(CycleError, match="threshold"):
        tracker.max_dirty_pages = 7
    with pytest.raises(CycleError, match="threshold"):
        tracker.wait_full(0)


def test_a_ring_keeps_its_threshold(make: Callable[..., Guest]) -> None:
    """KVM's rings are as large as they are: what cannot be set is not taken for set."""
    guest = make("kvm-ring", Config(1, "threads", shared=False), 512)
    with pytest.raises(InvalidInputError, match="ring_entries"):
        guest.tracker.max_dirty_pages = 1024
    assert guest.tracker.max_dirty_pages == 512


@pytest.mark.parametrize("pollers", [1, 3])
def test_threads_poll_while_another_ends_cycles(
    make: Callable[..., Guest], engine: str, pollers: int
) -> None:
    """A fetch beside a prepare gets pages of one cycle: its log, its number, and each page once.

    Of several, one is kept from running while cycles go by.
    """
    guest = make(engine, Config(1, "threads", shared=False))
    tracker = guest.tracker
    tracker.exchange()
    given = [tracker.prepare()]
    done = threading.Event()
    fetched: dict[int, list[int]] = collections.defaultdict(list)
    failed: list[BaseException] = []

    def poll() -> None:
        try:
            while not done.is_set():
                pages = tracker.fetch()
                if len(pages):
                    fetched[pages.cycle] += pages.gfn.tolist()
                    tracker.rearm(pages)
        except BaseException as error:
            failed.append(error)

    def prepare() -> int:
        deadline = time.monotonic() + DEADLINE
        while not failed and time.monotonic() < deadline:
            with contextlib.suppress(CycleError):
                return tracker.prepare()
        return -1

    def end_cycles() -> None:
        for cycle in range(150 // pollers):
            guest.write(0, list(range(300 if cycle % 2 else 20)), cycle)
            given.append(prepare())
            # Empty cycles, one after the other: the ended log changes beneath the other threads' feet.
            given.extend(prepare() for _ in range(20))

    threads = [threading.Thread(target=poll) for _ in range(pollers)]
    for thread in threads:
        thread.start()
    late = broken("claim") if pollers > 1 else contextlib.nullcontext()
    try:
        with late:
            end_cycles()
        assert prepare() >= 0, "the last pages are rearmed, and there is no other way that they can be"
    finally:
        done.set()
        for thread in threads:
            thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in threads) and not failed
    assert [n for n in given if n] == [len(fetched[cycle]) for cycle in sorted(fetched)]
    assert all(len(set(gfns)) == len(gfns) for gfns in fetched.values())
