"""Pre-copy: memory goes to a sink while the source runs, in rounds, until little is left."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from checkpoint.sink import PageSink
from checkpoint.source import Source
from uffdtrack import Runs
from uffdtrack.runs import chunks, no_runs, size_of

CHUNK = 32 << 20
"""How many bytes we copy at a time."""


class SessionInterrupted(Exception):  # noqa: N818 - it is no error
    """The user has interrupted the session while memory was copied."""


@dataclass(frozen=True, slots=True)
class Round:
    """A round that is over.

    Attributes:
        number: 0: nothing was sent yet. 1: everything was sent once.
        sent: bytes that the round sent to the sink.
        left: bytes that were written meanwhile; before the first round, all.
        seconds: how long it took.
    """

    number: int
    sent: int
    left: int
    seconds: float


def precopy(
    source: Source,
    sink: PageSink,
    enough: Callable[[Round], bool],
    interrupted: Callable[[], bool] = lambda: False,
) -> tuple[Runs, Runs]:
    """Copy all memory of a source, then what was written meanwhile, until little is left.

    Args:
        enough: whether the rest is little, or will not become less.

    Returns:
        The rest, which is not copied, and what became void with it. What is written from now on, the next
        window has in any case; of the rest it has what is pending.

    Raises:
        SessionInterrupted: `interrupted` has returned True.
    """
    sent, runs = 0, no_runs()
    for number in itertools.count():
        started = time.perf_counter()
        send(source, sink, runs, interrupted)
        runs, reset = source.harvest(everything=not number)
        sink.void(reset)
        left = size_of(runs)
        if enough(Round(number, sent, left, time.perf_counter() - started)):
            return runs, reset
        sent = left
    raise AssertionError("endless")


def send(source: Source, sink: PageSink, runs: Runs, interrupted: Callable[[], bool]) -> None:
    """Copy what the last harvest has found. Raises: as `precopy`."""
    for part in chunks(runs, CHUNK):
        if interrupted():
            raise SessionInterrupted
        sink.add(*source.copy(part))
