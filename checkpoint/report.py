"""Show results: sizes and times for people, tables, JSON lines."""

from __future__ import annotations

import contextlib
import json
import random
import statistics
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

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


def emit_json(row: Row | Mapping[str, object]) -> None:
    """Print one object as one line."""
    emit(json.dumps(row.to_json() if isinstance(row, Row) else row))


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
    if not console.is_terminal:
        console = _Console(highlight=False, markup=False, width=200)
    with writing():
        console.print(table)


def epoch_rows(rows: Iterable[EpochRow | TreeRow]) -> Iterable[list[str]]:
    for row in rows:
        times = row.times
        yield [
            f"{row.epoch}" + ("*" if row.base else ""),
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
    "epoch", "pages", "bytes", "pause", "stop", "harvest", "copy", "rearm", "resume", "threads",
)  # fmt: skip


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


class Summary:
    """What there is to say of a session's rows, in the same memory for few rows as for very many.

    Attributes:
        last: the last row; None: there was none.
        bytes: of all.
        overshoot: the largest.
        processes: in a tree: the most that a row has.
        partial: in a tree: how many rows lack a process.
    """

    def __init__(self) -> None:
        self.last: EpochRow | TreeRow | None = None
        self.bytes = self.overshoot = self.processes = self.partial = 0
        self._count = self._skipped = self._late = 0
        self._longest = 0.0
        self._pauses, self._slow_pauses, self._waits = Sample(), Sample(), Sample()

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
            self._late += row.late
            # What follows a base waits until that is on disk; what follows another epoch, for a free buffer.
            self._waits.add((before.write_us if before.base else row.waited_us) or 0.0)
            self._slow_pauses.add(before.times.pause_us)

    @property
    def span(self) -> str:
        assert self.last
        return span(0, self.last.epoch)

    @property
    def pauses(self) -> str:
        tail = f"; {self._skipped} epochs skipped" if self._skipped else ""
        median = duration(self._pauses.median())
        return f"pause median {median}, longest {duration(self._longest)}{tail}{self.missed}"

    @property
    def missed(self) -> str:
        """Text about missed intervals, and about what took so long."""
        if not self._late:
            return ""
        writing, pause = self._waits.median(), self._slow_pauses.median()
        why = f"writing takes {duration(writing)}" if writing > pause else f"a stop takes {duration(pause)}"
        return f"; {self._late} of {self._late + self._count - 1} intervals missed: {why}"
