"""Every tracker has all of `Tracker`, so that who uses one needs not know which it is."""

from __future__ import annotations

import errno
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.contract.conftest import Config, Guest
from tests.contract.guests import DEADLINE, WRITE
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


def test_one_thread_polls_while_another_ends_cycles(make: Callable[..., Guest], engine: str) -> None:
    """A fetch beside a prepare gets pages of one cycle: no place of one and length of another."""
    guest = make(engine, Config(1, "threads", shared=False))
    guest.tracker.exchange()
    done, wrong = threading.Event(), []

    def poll() -> None:
        first, core = guest.tracker.core.ffi.new("uint64_t *"), guest.tracker.core
        native: Any = guest.tracker._c
        while not done.is_set():
            n = core.fetch(native, 1 << 40, first)
            if n < 0 or first[0] + n > 300 or (n and core.rearm(native, native_log(native) + first[0], n)):
                wrong.append((first[0], n))

    def native_log(native: Any) -> Any:
        return native.cycle.log[1 - native.cycle.open].gfn

    guest.tracker.prepare()
    thread = threading.Thread(target=poll)
    thread.start()
    for cycle in range(150):
        guest.write(0, list(range(300 if cycle % 2 else 20)), cycle)
        while (n := guest.tracker.core.prepare(guest.tracker._c)) == -errno.EBUSY:
            pass
        assert n >= 0
    done.set()
    thread.join(DEADLINE)
    assert not thread.is_alive() and not wrong
