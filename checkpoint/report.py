"""Show results: sizes and times for people, tables, JSON lines."""

from __future__ import annotations

import contextlib
import datetime
import json
import random
import statistics
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import click
from rich.console import Console
from rich.table import Table

from checkpoint.directory import listed
from checkpoint.epoch import EpochRow, TreeRow
from checkpoint.facts import ImageFacts, TreeFacts
from checkpoint.row import Row
from uffdtrack.errors import OutputError


def size(n: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError("unreachable")


def duration(us: float) -> str:
    """1234.0 -> "1.2 ms"."""
    if us < 1000:
        return f"{us:.0f} us"
    return f"{us / 1000:.1f} ms" if us < 1e6 else f"{us / 1e6:.2f} s"


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Raises: OutputError: stdout cannot be written."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write the output: {error.strerror}") from error


def emit(text: str = "") -> None:
    """Print a line to stdout."""
    with writing():
        click.echo(text)


def as_line(row: Row | Mapping[str, object]) -> str:
    """One object as JSON, without the end of a line."""
    return json.dumps(row.to_json() if isinstance(row, Row) else row)


def emit_json(row: Row | Mapping[str, object]) -> None:
    """Print one object as one line."""
    emit(as_line(row))


_WIDEST = 1000
"""Columns of a terminal that no table needs."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich ends the process here."""
        raise


def emit_table(columns: Iterable[str], rows: Iterable[Iterable[str]], left: int = 0) -> None:
    """Print a table to stdout; the first `left` columns are text, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = _Console(highlight=False, markup=False)
    needed = _Console(width=_WIDEST).measure(table).maximum  # with less it would cut cells short
    console.width = max(console.width if console.is_terminal else 200, needed)
    with writing():
        console.print(table)


def moment(ns: int) -> datetime.datetime:
    """A row's `time_ns` as local time."""
    return datetime.datetime.fromtimestamp(ns / 1e9).astimezone()


def moments(rows: Sequence[EpochRow | TreeRow]) -> list[str]:
    """When epochs were taken, in local time: with the day if one was not taken today, no longer than tells
    them apart."""
    taken = [moment(row.time_ns).replace(tzinfo=None) for row in rows]
    days = any(one.date() != datetime.date.today() for one in taken)
    texts: list[str] = []
    for parts in ("seconds", "milliseconds", "microseconds"):
        texts = [one.isoformat("T", parts) for one in taken]
        if len(set(texts)) == len(texts):
            break
    return texts if days else [text.split("T")[1] for text in texts]


def epoch_rows(rows: Sequence[EpochRow | TreeRow]) -> Iterable[list[str]]:
    for row, taken in zip(rows, moments(rows), strict=True):
        times = row.times
        yield [
            f"{row.epoch}" + ("*" if row.base else ""),
            taken,
            f"{row.pages}",
            size(row.bytes),
            duration(times.pause_us),
            duration(times.stop_us),
            duration(times.harvest_us),
            duration(times.copy_us),
            duration(times.rearm_us),
            "-" if times.resume_us is None else duration(times.resume_us),
            f"{row.threads}",
        ]


EPOCH_COLUMNS = (
    "epoch", "taken", "pages", "bytes", "pause", "stop", "harvest", "copy", "rearm", "resume", "threads",
)  # fmt: skip


def described(row: Mapping[str, Any]) -> Iterator[str]:
    """An epoch's row as lines: when it was taken, its pages, its pause."""
    taken = moment(row["time_ns"]).isoformat(timespec="milliseconds")
    yield f"taken     {taken}, engine {row['engine']}"
    yield f"pages     {row['pages']} ({size(row['bytes'])} of contents)"
    names = [k for k in ("stop", "harvest", "copy", "rearm", "resume") if f"{k}_us" in row]
    parts = ", ".join(f"{k} {duration(row[f'{k}_us'])}" for k in names)
    yield f"pause     {duration(row['pause_us'])}: {parts}"


def span(first: int, last: int) -> str:
    """0, 0 -> "epoch 0"; 0, 9 -> "epochs 0 to 9"."""
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"


def several(epochs: Sequence[int]) -> str:
    """0, 1, 2, 5 -> "epochs 0 to 2, 5"."""
    return f"epoch{'s' * (len(epochs) != 1)} {listed(epochs)}"


def parent(facts: ImageFacts | TreeFacts) -> dict[str, int]:
    """The number of an epoch's parent, for JSON, if that is not the epoch before."""
    return {} if facts.parent_epoch is None else {"parent_epoch": facts.parent_epoch}


class Sample:
    """Numbers, of which it keeps some by chance: enough for their median."""

    most: ClassVar[int] = 1000

    def __init__(self) -> None:
        self._kept = array("d")
        self._seen = 0
        self._random = random.Random(0)

    def add(self, number: float) -> None:
        self._seen += 1
        if len(self._kept) < self.most:
            self._kept.append(number)
        elif (at := self._random.randrange(self._seen)) < self.most:
            self._kept[at] = number

    def median(self) -> float:
        return statistics.median(self._kept)


class Missed:
    """Intervals that were missed for one reason.

    Attributes:
        late: how many.
        took: microseconds that it took, each time.
    """

    def __init__(self) -> None:
        self.late = 0
        self.took = Sample()

    def add(self, late: int, took: float) -> None:
        self.late += late
        self.took.add(took)


class Summary:
    """What there is to say of a session's rows, in the same memory for few rows as for very many.

    Args:
        every: seconds from one epoch to the next, as asked for.

    Attributes:
        last: the last row; None: there was none.
        bytes: of all.
        overshoot: the largest.
        processes: in a tree: the most that a row has.
        partial: in a tree: how many rows lack a process.
    """

    def __init__(self, every: float) -> None:
        self.last: EpochRow | TreeRow | None = None
        self.bytes = self.overshoot = self.processes = self.partial = 0
        self._slow = every * 1e6 / 2
        self._count = self._skipped = 0
        self._longest = 0.0
        self._pauses = Sample()
        self._missed = {cause: Missed() for cause in ("writing", "a stop", "")}

    def add(self, row: EpochRow | TreeRow) -> None:
        before, self.last = self.last, row
        self.bytes += row.bytes
        self.overshoot = max(self.overshoot, row.overshoot or 0)
        if isinstance(row, TreeRow):
            self.processes = max(self.processes, len(row.processes or []))
            self.partial += bool(row.left_out)
        self._count += 1
        self._skipped += row.skipped
        self._longest = max(self._longest, row.times.pause_us)
        self._pauses.add(row.times.pause_us)
        if before and row.late:
            # What follows a base waits until that is on disk; what follows another epoch, for a free buffer:
            # that wait comes behind the look at the clock, so it is in the row before the one that is late.
            wait = max(before.write_us or 0.0 if before.base else 0.0, before.waited_us or 0.0)
            took = {"writing": wait, "a stop": before.times.pause_us}
            cause = max(took, key=lambda one: took[one])
            self._missed[cause if took[cause] >= self._slow else ""].add(row.late, took[cause])

    @property
    def span(self) -> str:
        assert self.last
        return span(0, self.last.epoch)

    @property
    def pauses(self) -> str:
        tail = f"; {self._skipped} epoch{'s' * (self._skipped != 1)} skipped" if self._skipped else ""
        median = duration(self._pauses.median())
        return f"pause median {median}, longest {duration(self._longest)}{tail}{self.missed}"

    @property
    def missed(self) -> str:
        """Text about missed intervals, and about what took so long, as far as the rows tell."""
        late = sum(missed.late for missed in self._missed.values())
        if not late:
            return ""
        cause, most = max(self._missed.items(), key=lambda one: one[1].late)
        why = f"{cause} takes {duration(most.took.median())}"
        if not cause:
            pause = duration(self._pauses.median())
            why = f"a stop takes {pause}, so the machine was busy, or the interval is too short for the rest"
        return f"; {late} of {late + self._count - 1} intervals missed: {why}"
