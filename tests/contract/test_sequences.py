"""Random sequences of all calls, against a shadow copy and the writers' own log."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.combinations import CONFIGS, PAGES, PAUSING, TRAITS, Config, exists, on_guests
from tests.contract.conftest import Guest
from tests.contract.guests import PVM, READ_FILE, STORM, WRITE
from uffdtrack.errors import CycleError

pytestmark = pytest.mark.usefixtures("kernel")
ROUNDS = 60
rows = st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=40)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1), rows),
        st.tuples(st.just("host"), st.integers(0, PAGES - 2), st.integers(1, 5000)),
        st.tuples(st.sampled_from(["exchange", "prepare", "fetch", "rearm", "pause", "resume", "pending"])),
        st.tuples(st.just("restart")),
        st.tuples(st.just("storm"), rows),
    ),
    max_size=40,
)


@on_guests([CONFIGS[1], CONFIGS[5], CONFIGS[7], CONFIGS[8]])
def test_random_sequences(make: Callable[..., Guest], engine: str, config: Config) -> None:
    guest = make(engine, config)
    serial = 0

    @settings(max_examples=30, suppress_health_check=list(HealthCheck))
    @given(steps)
    def run(sequence: list[tuple[object, ...]]) -> None:
        nonlocal serial
        tracker, fetched, paused, ended = guest.tracker, [], False, 0
        written: set[int] = set()  # since the last end of a cycle
        owed: set[int] = set()  # in the ended cycle, not fetched yet
        for step in sequence:
            serial += 1
            match step:
                case ("write", int(vcpu), list(pages)) if not paused:
                    guest.write(vcpu, pages, serial % 256)
                    written |= set(pages)
                case ("host", int(page), int(length)):
                    guest.ram.host_write(page * 4096 + 1, bytes([serial % 256]) * min(length, 8000))
                    written |= set(range(page, (page * 4096 + min(length, 8000)) // 4096 + 1))
                case ("storm", list(pages)) if not paused and config.kind == "threads":
                    guest.vcpus[0].post(STORM, pages, serial % 256)
                    guest.vcpus[0].stop()
                    written |= set(pages)
                    assert guest.vcpus[0].wait()
                case ("prepare",) | ("exchange",):
                    if ended:
                        with pytest.raises(CycleError):
                            getattr(tracker, step[0])()
                    elif step == ("exchange",):
                        pages = tracker.exchange()
                        assert set(guest.index(pages)) >= written
                        guest.copy(pages)
                        written = set()
                    else:
                        ended = tracker.prepare()
                        assert ended >= len(written)
                        owed, written = written, set()
                case ("fetch",) if ended:
                    fetched.append(tracker.fetch(7))
                    owed -= set(guest.index(fetched[-1]))
                case ("rearm",) if fetched:
                    part = fetched.pop()
                    tracker.rearm(part)
                    guest.copy(part)
                    ended -= len(part)
                    if not ended:
                        assert not owed
                case ("pause",) if not paused:
                    tracker.pause()
                    paused = True
                case ("resume",):
                    tracker.resume()
                    paused = False
                case ("pending",):
                    assert tracker.pending() >= len(written) - PAGES * bool(ended)
                case _:
                    pass
        tracker.resume()
        if ended:
            while len(part := tracker.fetch()):
                fetched.append(part)
        for part in fetched:
            tracker.rearm(part)
            guest.copy(part)
        guest.copy(tracker.exchange())
        assert not guest.stale()

    run()


@pytest.mark.parametrize(
    ("config", "limit", "engine"),
    [
        pytest.param(config, limit, engine, id=f"{limit}-{config}-{engine}")
        for config in (CONFIGS[3], CONFIGS[6], CONFIGS[7], CONFIGS[9])
        for limit in (None, 150)
        for engine in (PAUSING if limit else TRAITS)
        if exists(engine, config)
    ],
    indirect=["engine"],
)
def test_all_at_once(
    make: Callable[..., Guest], engine: str, limit: int | None, config: Config, tmp_path: Path
) -> None:
    """Threads and processes, system calls and GUP, a host that writes, cycles in a pause and without."""
    guest, rng = make(engine, config, limit), random.Random(5)
    tracker, host, done = guest.tracker, threading.Lock(), threading.Event()
    (tmp_path / "data").write_bytes(b"x" * 4096)
    fd = os.open(tmp_path / "data", os.O_RDONLY)

    def host_writes() -> None:
        own = random.Random(6)
        while not done.is_set():
            with host:
                guest.ram.host_write(own.randrange(guest.ram.size - 9000), bytes([own.randrange(256)]) * 9000)
            done.wait(0.001)

    writer = threading.Thread(target=host_writes)
    writer.start()
    kinds = [WRITE] if engine == "inline" else [WRITE, WRITE, READ_FILE]
    gup = [] if engine == "inline" or guest.vm else [PVM]
    try:
        guest.copy(tracker.exchange())
        for round_ in range(ROUNDS):
            # What was pinned before a rearm may be written after it: GUP only where cycles end in a pause.
            calm = round_ >= ROUNDS // 2
            for vcpu in guest.vcpus:
                if vcpu.wait(0):
                    kind = rng.choice([*kinds, *gup] if calm else kinds)
                    vcpu.post(kind, rng.sample(range(PAGES), 100), rng.randrange(256), fd)
            if limit and rng.random() < 0.5:
                tracker.wait_full(0.01)
            if calm or rng.random() < 0.5:
                with host, tracker.paused():
                    guest.copy(tracker.exchange())
                    assert not guest.stale()
            else:
                guest.copy(tracker.exchange())
                with suppress(CycleError):
                    tracker.resume()
    finally:
        done.set()
        writer.join()
        os.close(fd)
    while not all(vcpu.wait(0) for vcpu in guest.vcpus):
        with tracker.paused():
            guest.copy(tracker.exchange())
    guest.copy(tracker.exchange())
    assert not guest.stale()


@pytest.mark.slow
@on_guests([CONFIGS[1], CONFIGS[2], CONFIGS[5], CONFIGS[7], CONFIGS[8]])
def test_ten_thousand_cycles(make: Callable[..., Guest], engine: str, config: Config) -> None:
    guest, rng = make(engine, config), random.Random(11)
    guest.copy(guest.tracker.exchange())
    for cycle in range(10_000):
        for vcpu in guest.vcpus:
            vcpu.post(0, rng.sample(range(PAGES), rng.randrange(40)), cycle % 256)
        if cycle % 3:
            for vcpu in guest.vcpus:
                assert vcpu.wait()
        if cycle % 2:
            guest.copy(guest.tracker.exchange())
        else:
            with guest.tracker.paused():
                guest.copy(guest.tracker.exchange())
                assert not guest.stale()
        for vcpu in guest.vcpus:
            assert vcpu.wait()
    guest.copy(guest.tracker.exchange())
    assert not guest.stale()
