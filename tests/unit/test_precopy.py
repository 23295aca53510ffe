"""Pre-copy, and what it leaves, with a source of a few pages that writes while it is copied."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from checkpoint import stream
from checkpoint.precopy import CHUNK, Round, SessionInterrupted, precopy
from uffdtrack import PAGE, Runs
from uffdtrack.runs import expand

PAGES = 300
NONE: Runs = np.empty((0, 2), np.uint64)


def runs_of(pages: set[int]) -> Runs:
    return np.array([(p * PAGE, (p + 1) * PAGE) for p in sorted(pages)], np.uint64).reshape(-1, 2)


class Busy:
    """A memory that is written at each harvest, less and less of it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.memory = [self.rng.randrange(3) for _ in range(PAGES)]
        self.dirty: set[int] = set()
        self.writes = PAGES // 2
        self.postponed: list[int] | None = None

    def write(self) -> None:
        for _ in range(self.writes):
            page = self.rng.randrange(PAGES)
            self.memory[page] = self.rng.randrange(3)
            self.dirty.add(page)
        self.writes = self.writes * 2 // 3

    def postpone(self, runs: Runs, reset: Runs) -> None:
        self.postponed = expand(runs).tolist()

    def harvest(self, everything: bool) -> tuple[Runs, Runs]:
        self.write()
        found = set(range(PAGES)) if everything else self.dirty
        self.dirty = set()
        return runs_of(found), NONE

    def copy(self, runs: Runs) -> tuple[Runs, Runs, memoryview]:
        self.write()  # what is copied may be newer than the harvest, never older
        pages = expand(runs).tolist()
        full = [p for p in pages if self.memory[p]]
        contents = b"".join(bytes([self.memory[p]]) * PAGE for p in full)
        return runs_of(set(full)), runs_of(set(pages) - set(full)), memoryview(contents)


class Copy:
    """Takes it."""

    def __init__(self) -> None:
        self.memory = [-1] * PAGES
        self.added = 0

    def begin(self, base: bool = False) -> Copy:
        return self

    def void(self, ranges: Runs) -> None:
        for page in expand(ranges).tolist():
            self.memory[page] = -1

    def add(self, data: Runs, zero: Runs, contents: memoryview) -> None:
        self.added += len(expand(data)) + len(expand(zero))
        for i, page in enumerate(expand(data).tolist()):
            self.memory[page] = contents[i * PAGE]
        for page in expand(zero).tolist():
            self.memory[page] = 0


def at_most(pages: int, seen: list[Round]) -> Callable[[Round], bool]:
    def enough(done: Round) -> bool:
        seen.append(done)
        return done.left <= pages * PAGE

    return enough


@pytest.mark.parametrize("seed", range(20))
def test_what_is_not_copied_is_the_rest(seed: int) -> None:
    source, copy, seen = Busy(seed), Copy(), list[Round]()
    rest, _ = precopy(source, copy, at_most(10, seen))  # type: ignore[arg-type]
    stale = {p for p in range(PAGES) if copy.memory[p] != source.memory[p]}
    assert stale <= set(expand(rest).tolist()) | source.dirty
    assert [done.number for done in seen] == list(range(len(seen)))
    assert (seen[0].sent, seen[0].left) == (0, PAGES * PAGE)
    assert [done.sent for done in seen[1:]] == [done.left for done in seen[:-1]]


def test_a_source_that_is_small_is_the_rest() -> None:
    source, copy = Busy(1), Copy()
    rest, _ = precopy(source, copy, lambda done: True)  # type: ignore[arg-type]
    assert copy.memory == [-1] * PAGES
    assert expand(rest).tolist() == list(range(PAGES))


def test_an_interruption_ends_it() -> None:
    source, copy = Busy(1), Copy()
    with pytest.raises(SessionInterrupted):
        precopy(source, copy, lambda done: False, lambda: True)  # type: ignore[arg-type]
    assert copy.memory == [-1] * PAGES and CHUNK >= PAGES * PAGE


class Hot(Busy):
    """All of it is written between two harvests."""

    def write(self) -> None:
        self.memory = [self.rng.randrange(3) for _ in range(PAGES)]
        self.dirty = set(range(PAGES))


@pytest.mark.parametrize(("kind", "postpones"), [(Busy, False), (Hot, True)])
def test_a_base_copies_its_rest_before_the_stop_if_that_is_little(
    monkeypatch: pytest.MonkeyPatch, kind: type[Busy], postpones: bool
) -> None:
    """Else it would be in the base three times: first, as the rest, and as what was written meanwhile."""
    monkeypatch.setattr(stream, "QUIET", 40 * PAGE)
    source, copy = kind(1), Copy()
    stream.Stream(source, copy, lambda: False).prepare()  # type: ignore[arg-type]
    assert source.postponed == (list(range(PAGES)) if postpones else None)
    if postpones:
        assert copy.added == PAGES
    stale = {p for p in range(PAGES) if copy.memory[p] != source.memory[p]}
    assert stale <= source.dirty | set(source.postponed or [])
