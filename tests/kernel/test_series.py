"""Windows that are taken in series: each epoch is an instant, whatever comes between two of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.epoch import EpochRow
from checkpoint.recent import RecentSink
from checkpoint.schedule import Schedule, run_session
from checkpoint.session import Session
from tests.helpers import Build, Run, Spawn, broken, session_of, wait_for
from tests.kernel.instants import AT, Instants
from tests.kernel.rolled import Rolled
from tests.kernel.rollee import Rollee
from uffdtrack import PAGE, Series
from uffdtrack.errors import StorageError
from uffdtrack.runs import Rows

EVERY = 0.0005


class Watched:
    """A session that keeps its epochs, and looks at each.

    Attributes:
        when: what is done when an epoch has become safe, by its number; others may have been taken already.
    """

    def __init__(self, stack: ExitStack, target: Instants, directory: Path, engine: str) -> None:
        self.target = target
        self.rolled = Rolled(stack, target.pid, directory, engine, keep=2000)
        self.rows: list[EpochRow] = []
        self.warnings: list[str] = []
        self.when: dict[int, Callable[[], object]] = {}
        self._seen = 0

    @property
    def recent(self) -> RecentSink:
        assert self.rolled.recent
        return self.rolled.recent

    def run(
        self,
        count: int | None = None,
        duration: float | None = None,
        every: float = EVERY,
        ends: Callable[[], bool] = lambda: False,
    ) -> bool:
        """A session; then each of its epochs is looked at. Returns whether the target has ended."""

        def emit(row: EpochRow) -> None:
            self.rows.append(row)
            self.when.pop(row.epoch, lambda: None)()

        schedule = Schedule(every, count, duration)
        try:
            return run_session(self.rolled.session, schedule, lambda _: ends(), emit, self.warnings.append)
        finally:
            self.check()

    def check(self) -> None:
        """Each epoch is an instant that follows the one before, and each has its row."""
        assert [row.epoch for row in self.rows] == [kept.epoch for kept in self.recent.kept]
        for row in self.rows[self._seen :]:
            if row.base:
                self.target.begin_anew()
            wrong = self.target.errors(self.recent, row.epoch)
            assert not wrong, wrong[:3]
        self._seen = len(self.rows)
        times = [row.time_ns for row in self.rows]
        assert times == sorted(times)


@pytest.fixture
def series(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """How many windows each series has, and whether one has failed that would have followed."""
    found: list[tuple[int, bool]] = []
    fill = Series.fill

    def and_note(self: Series, *args: Any) -> None:
        fill(self, *args)
        found.append((self.ahead, bool(self._c.failed)))

    monkeypatch.setattr(Series, "fill", and_note)
    return found


@pytest.fixture
def watch(
    stack: ExitStack, spawn: Spawn, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Watched]:
    monkeypatch.setattr("checkpoint.recent._LEAST", 1 << 30)  # all epochs are kept, however many come
    return lambda engine: Watched(stack, Instants(spawn, build), tmp_path / "c", engine)


@pytest.fixture
def watched(watch: Callable[[str], Watched], process_engine: str) -> Watched:
    return watch(process_engine)


def test_every_epoch_is_an_instant(watched: Watched, series: list[tuple[int, bool]]) -> None:
    assert not watched.run(count=60)
    assert len(watched.rows) == 60 and max(series)[0] > 4
    assert [row.base for row in watched.rows] == [True] + 59 * [False]
    assert {row.threads for row in watched.rows} == {3}
    assert all(row.times.pause_us for row in watched.rows)
    os.kill(watched.target.pid, signal.SIGUSR1)  # its mappings change from here on
    watched.run(ends=lambda: len({row.regions for row in watched.rows}) > 1)


@pytest.mark.slow
def test_many_epochs(watched: Watched) -> None:
    for _ in range(4):
        watched.run(count=400)
        os.kill(watched.target.pid, signal.SIGUSR1)


def test_negative_control(watch: Callable[[str], Watched]) -> None:
    """Where the next window overwrites what was copied, it is seen."""
    watched = watch("ring")
    watched.run(count=2)
    with broken("series"), pytest.raises(AssertionError, match="epoch"):
        watched.run(count=100)


def test_it_calls_exec(watched: Watched) -> None:
    """What was taken before it stays; the new program's epochs begin with a base."""
    pid = watched.target.pid
    watched.when[20] = lambda: os.kill(pid, signal.SIGUSR2)
    bases = lambda: sum(row.base for row in watched.rows)  # noqa: E731
    watched.run(ends=lambda: bases() == 2 and not watched.rows[-1].base)
    assert [row.base for row in watched.rows[:21]] == [True] + 20 * [False]


def test_it_is_killed(watch: Callable[[str], Watched]) -> None:
    watched = watch("ring")
    watched.when[20] = watched.target.process.kill
    assert watched.run()
    assert len(watched.rows) > 20


def test_a_window_fails(watched: Watched, series: list[tuple[int, bool]]) -> None:
    """Those before it stay, and the next one has what was written since; rows and user hear of it."""
    watched.run(count=2)
    with broken("third"):
        watched.run(count=40)
    assert (2, True) in series and len(watched.rows) == 42
    assert sum(row.skipped for row in watched.rows) >= 1 and "traces the process" in watched.warnings[0]


@pytest.mark.parametrize("asked", [False, True])
def test_who_visits_before_the_next_series(
    stack: ExitStack,
    spawn: Spawn,
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: bool,
) -> None:
    """What a tracer writes is no fault of the target's: after a window that it made fail all is looked at.

    Also if somebody asks before that what is pending, as a rollback does.
    """
    process = spawn(build("visited"))
    assert process.stdout and process.stdout.readline()
    rolled = Rolled(stack, process.pid, tmp_path / "c", "ring", keep=100)
    page, fill, visits = AT + 7, Series.fill, 0

    def and_visit(self: Series, *args: Any) -> None:
        nonlocal visits
        fill(self, *args)
        if self._c.failed:
            visits += 1
            self._c.v[self._c.n].times.pause_ns = 0  # as if it had not come to a stop
            with open(f"/proc/{process.pid}/mem", "wb", buffering=0) as memory:
                memory.seek(page * PAGE)
                memory.write(bytes([visits]))

    def wait(_: float) -> bool:
        if asked:
            assert not rolled.target.pending.everything
        return False

    monkeypatch.setattr(Series, "fill", and_visit)
    with broken("third"):
        run_session(rolled.session, Schedule(EVERY, 40, None), wait, lambda _: None, lambda _: None)
    assert visits and rolled.view(39).read(np.array([page], np.uint64))[0, 0] == visits % 256


def test_there_is_no_room(
    watch: Callable[[str], Watched], series: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch of a series cannot be kept: what follows it is dropped, and the next one has it all."""
    watched = watch("ring")
    put, calls = RecentSink.put, 0

    def fail(self: RecentSink, contents: memoryview, base: bool) -> Rows:
        nonlocal calls
        calls += 1
        if calls > 9 and calls % 7 == 0:
            raise StorageError("no room")
        return put(self, contents, base)

    monkeypatch.setattr(RecentSink, "put", fail)
    watched.run(count=60)
    assert len(watched.rows) == 60 and "no room" in watched.warnings[0] and max(series)[0] > 1


def test_what_ends_a_series(watch: Callable[[str], Watched], series: list[tuple[int, bool]]) -> None:
    watched = watch("ring")
    target = watched.rolled.target
    watched.run(count=3)
    assert len(watched.rows) == 3
    watched.run(duration=0.02, every=0.01)
    # Its time may be over with the first one, which has no limit.
    assert watched.rolled.session.rhythm.most <= 3 or len(watched.rows) == 4
    readable = os.eventfd(1)
    target.wake = [readable]
    del series[:]
    watched.run(count=10)
    assert set(series) == {(1, False)}
    os.close(readable)
    target.wake = []
    target.max_dirty = 8  # which ends a wait: so the next epoch has to be taken at once
    session = Session(target, watched.rolled.session.sink.chain, sink=watched.recent)
    assert not session.rhythm.in_series


def test_what_is_late_and_given_up(watch: Callable[[str], Watched]) -> None:
    """Windows may be late by some milliseconds; then what was due meanwhile has none, and a row says so."""
    watched = watch("ring")
    watched.run(count=40, every=1e-6)
    assert sum(row.late for row in watched.rows) > 1000


def test_rollbacks_meanwhile(spawn: Spawn, rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    directory = tmp_path / "c"
    session = session_of(spawn, rollee.pid, directory, "--every", "500us", "--keep", "20")
    wait_for(lambda: (directory / ".kept").exists(), "the session has begun")
    assert rollee.ask("s 1") == "1"
    assert "is back at epoch" in uffdtrack("rollback", rollee.pid, directory).stdout
    session.send_signal(signal.SIGINT)
    assert session.wait() == 0
