"""Show results: sizes and times for people, tables, JSON lines."""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

import click
from rich.console import Console
from rich.table import Table

from checkpoint.directory import listed
from checkpoint.epoch import EpochRow, TreeRow
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


def pause_summary(rows: Sequence[EpochRow | TreeRow]) -> str:
    pauses = [row.times.pause_us for row in rows]
    skipped = sum(row.skipped for row in rows)
    tail = f"; {skipped} epochs skipped" if skipped else ""
    tail += missed(rows)
    return f"pause median {duration(statistics.median(pauses))}, longest {duration(max(pauses))}{tail}"


def missed(rows: Sequence[EpochRow | TreeRow]) -> str:
    """Text about missed intervals, and about what took so long."""
    late = sum(row.late for row in rows)
    slow = [(before, row) for before, row in itertools.pairwise(rows) if row.late]
    if not slow:
        return ""
    # What follows a base waits until that is on disk; what follows another epoch, for a free buffer.
    waits = [(before.write_us if before.base else row.waited_us) or 0.0 for before, row in slow]
    writing = statistics.median(waits)
    pause = statistics.median(before.times.pause_us for before, _ in slow)
    why = f"writing takes {duration(writing)}" if writing > pause else f"a stop takes {duration(pause)}"
    return f"; {late} of {late + len(rows) - 1} intervals missed: {why}"
