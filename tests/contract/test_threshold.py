"""The threshold holds whatever else happens in a cycle: harvests while vCPUs run, the host, new vCPUs."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.contract.combinations import CONFIGS, OWN, PAGES, Config, on, on_guests
from tests.contract.conftest import Guest
from tests.contract.guests import DEADLINE, STORM, WRITE, ThreadVcpu
from tests.helpers import broken
from uffdtrack import ENGINES
from uffdtrack.errors import CycleError

pytestmark = pytest.mark.usefixtures("kernel")
LIMIT = 100
EXACT = [name for name, traits in ENGINES.items() if traits.forced_pause == "exact"]
TWO = Config(2, "threads", shared=False)


def storm(guest: Guest, config: Config, cycles: int) -> None:
    rng = random.Random(1)
    guest.copy(guest.tracker.exchange())
    for vcpu in guest.vcpus:
        rows = [rng.randrange(PAGES) for _ in range(500)]
        vcpu.post(
            STORM if config.kind == "threads" else WRITE, rows * (1 if config.kind == "threads" else 200)
        )
    for _ in range(cycles):
        for _ in range(rng.randrange(3)):
            guest.copy(guest.tracker.exchange())
            with suppress(CycleError):
                guest.tracker.resume()
        if guest.tracker.wait_full(DEADLINE if config.kind == "threads" else 0.05):
            pages = guest.tracker.exchange()
            assert LIMIT - len(guest.vcpus) <= len(pages) <= LIMIT
            guest.copy(pages)
            assert not guest.stale()
            guest.tracker.resume()
    guest.tracker.close()
    for vcpu in guest.vcpus:
        if config.kind == "threads":
            vcpu.stop()
        assert vcpu.wait()


@on_guests([CONFIGS[0], CONFIGS[1], CONFIGS[4]], EXACT)
def test_cycles_that_end_while_vcpus_run(make: Callable[..., Guest], engine: str, config: Config) -> None:
    storm(make(engine, config, LIMIT), config, 200)


@pytest.mark.parametrize("cycles", [400, pytest.param(1500, marks=pytest.mark.slow)])
@on_guests(CONFIGS[:2], ["ring"])
def test_vcpus_that_come_too_late_to_be_given_a_share(
    make: Callable[..., Guest], engine: str, config: Config, cycles: int
) -> None:
    """As on a machine that is busy: ring cannot hold them for a moment."""
    guest = make(engine, config, LIMIT)
    with broken("hold"):
        storm(guest, config, cycles)


@on(EXACT)
def test_in_the_middle_of_a_cycle(make: Callable[..., Guest], engine: str, library: Any) -> None:
    """The threshold set again, another vCPU bound, the host's writes: what is there already counts."""
    for what in ("set", "bind", "host"):
        guest = make(engine, TWO, LIMIT)
        guest.tracker.unbind(1)
        guest.copy(guest.tracker.exchange())
        guest.write(0, list(range(90)), 5)
        beyond = 0
        if what == "set":
            with guest.tracker.paused():
                guest.tracker.max_dirty_pages = LIMIT
        elif what == "bind":
            ThreadVcpu(library, guest.tracker, guest.ram, 1)
        else:
            guest.ram.host_write(4096 * 1000, b"x" * 4096 * 50)
            beyond = 40
        guest.vcpus[0].post(WRITE, range(200, 400), 6)
        assert guest.tracker.wait_full(DEADLINE)
        pages = guest.tracker.exchange()
        assert LIMIT - 1 <= len(pages) - beyond <= LIMIT, what
        guest.copy(pages)
        assert not guest.stale()
        guest.tracker.resume()
        guest.tracker.close()


@on(OWN)
def test_one_that_is_bound_in_a_pause_stands(make: Callable[..., Guest], engine: str, library: Any) -> None:
    guest = make(engine, TWO)
    guest.tracker.unbind(1)
    with guest.tracker.paused():
        late = ThreadVcpu(library, guest.tracker, guest.ram, 1)
        guest.tracker.pause()  # it stands by then
        late.post(WRITE, range(60), 9)
        with guest.standing():
            guest.tracker.exchange()
    assert late.wait()
    late.end()
