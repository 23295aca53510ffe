"""What a session says at its end: how long stops took, which intervals were missed, and why."""

from __future__ import annotations

import datetime
import random
import re
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoint.epoch import EpochRow, Times
from checkpoint.pipeline import Pipeline
from checkpoint.report import Sample, Summary, moments
from checkpoint.schedule import Schedule, run_session
from uffdtrack import Rhythm


class Slow:
    """A session each of whose epochs takes a time, by a clock of its own."""

    skipped = ahead = 0
    skip_reason = ""

    def __init__(self, clock: list[float], takes: float) -> None:
        self.clock, self.takes, self.late = clock, takes, 0
        self.pipeline = Pipeline()
        self.rhythm = Rhythm()

    def put(self, announce: Any) -> None:
        self.clock[0] += self.takes
        times = Times(1000.0, 0.0, 0.0, 0.0, 0.0)
        row = EpochRow(
            epoch=0,
            base=False,
            pid=1,
            engine="scan",
            pages=0,
            bytes=0,
            times=times,
            threads=1,
            late=self.late,
            waited_us=self.takes * 1e6,
        )
        self.pipeline.tell(SimpleNamespace(row=row))


@pytest.mark.parametrize(("takes", "late"), [(0.05, 0), (0.35, 2), (2.6, 25)])
def test_late_epochs_are_counted(monkeypatch: pytest.MonkeyPatch, takes: float, late: int) -> None:
    clock = [1000.0]
    monkeypatch.setattr("checkpoint.schedule.time.monotonic", lambda: clock[0])

    def wait(seconds: float) -> bool:
        clock[0] += seconds
        return False

    rows: list[EpochRow] = []
    session: Any = Slow(clock, takes)
    run_session(session, Schedule(0.1, 4, None), wait, rows.append, print)
    # The second is due 0.1 s after the base is safe, each other one so long after the one before was begun.
    assert [row.late for row in rows] == [0, 0, late, late]
    summary = Summary(0.1)
    for row in rows:
        summary.add(row)
    writing = "350.0 ms" if late == 2 else "2.60 s"
    said = f"; {2 * late} of {2 * late + 3} intervals missed: writing takes {writing}"
    assert summary.missed == (said if late else "")


def test_times_are_as_short_as_tells_them_apart() -> None:
    now = datetime.datetime.now().replace(hour=12, minute=1, second=2, microsecond=0)

    def of(*milliseconds: float) -> list[str]:
        times = [now + datetime.timedelta(milliseconds=after) for after in milliseconds]
        return moments([replace(row_that(1), time_ns=round(one.timestamp() * 1e9)) for one in times])

    assert of(0, 1000) == ["12:01:02", "12:01:03"]
    assert of(0, 20) == ["12:01:02.000", "12:01:02.020"]
    assert of(0, 0.02) == ["12:01:02.000000", "12:01:02.000020"]
    assert of(0, -86_400_000)[0] == f"{now.date()}T12:01:02"
    assert of() == []


def row_that(pause: float, late: int = 0, waited: float = 0.0) -> EpochRow:
    times = Times(pause, 0, 0, 0, 0)
    return EpochRow(epoch=0, base=False, pid=1, engine="scan", pages=1, bytes=10, times=times, threads=1,
                    late=late, waited_us=waited)  # fmt: skip


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (row_that(60_000), "a stop takes 60.0 ms"),
        (row_that(3800, waited=400_000), "writing takes 400.0 ms"),
        (row_that(3800, waited=900), "a stop takes 3.8 ms, so the machine was busy, or the interval is"),
    ],
)
def test_summary_names_no_false_cause(before: EpochRow, why: str) -> None:
    """A stop of 3.8 ms misses no interval of 50 ms; of several causes the one counts that has missed most."""
    summary = Summary(0.05)
    for row in (before, row_that(3800, late=7), row_that(3800, late=1), before, row_that(3800, late=7)):
        summary.add(row)
    assert summary.missed.startswith(f"; 15 of 19 intervals missed: {why}")


def test_a_summary_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20,000 epochs it says the same as of all numbers, about, with few of them."""
    monkeypatch.setattr(Sample, "most", 100)
    summary, pauses = Summary(1e-4), random.Random(3)
    tracemalloc.start()
    for n in range(20_000):
        times = Times(pauses.uniform(100, 300), 0, 0, 0, 0)
        summary.add(EpochRow(epoch=n, base=not n, pid=1, engine="scan", pages=1, bytes=10, times=times,
                             threads=1, late=n % 2, overshoot=n % 7))  # fmt: skip
        if n == 1000:
            before, _ = tracemalloc.get_traced_memory()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 4096
    assert (summary.bytes, summary.overshoot, summary.span) == (200_000, 6, "epochs 0 to 19999")
    said = re.fullmatch(r"pause median (\d+) us, longest 300 us; 10000 of 29999 intervals missed: a stop .*",
                        summary.pauses)  # fmt: skip
    assert said and 170 < int(said[1]) < 230
