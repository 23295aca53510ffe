"""The algebra of page numbers and address ranges.

`Pages` are page numbers, `Runs` address ranges in bytes. Unless a function says otherwise, its arguments and
results are sorted and do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

PAGE = 4096
"""Bytes."""
BATCH = 8192
"""How many pages we read at a time: 32 MiB."""

Pages = npt.NDArray[np.uint64]
"""Page numbers: shape (n,)."""
Runs = npt.NDArray[np.uint64]
"""Address ranges: shape (n, 2), bytes, start inclusive and end exclusive."""
Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
"""Indices, -1 for none."""


def no_runs() -> Runs:
    """An empty list of ranges."""
    return np.empty((0, 2), np.uint64)


def size_of(runs: Runs) -> int:
    """Bytes in ranges."""
    return int((runs[:, 1] - runs[:, 0]).sum()) if len(runs) else 0


# -- from the one to the other -------------------------------------------------------------------------


def expand(runs: Runs) -> Pages:
    """The page numbers of address ranges, in the order of the ranges, which need not be sorted."""
    if not len(runs):
        return np.empty(0, np.uint64)
    if size_of(runs) == len(runs) * PAGE:
        return runs[:, 0] // PAGE
    first, end = (runs // PAGE).astype(np.int64).T
    return spread(first, end - first).astype(np.uint64)


def spread(first: Rows, counts: Rows) -> Rows:
    """So many numbers from each `first` on, one after the other."""
    before = np.cumsum(counts) - counts
    numbers: Rows = np.repeat(first - before, counts) + np.arange(int(counts.sum()))
    return numbers


def run_starts(pages: Pages) -> Rows:
    """Where in `pages` a run of consecutive numbers begins."""
    new = np.ones(len(pages), bool)
    new[1:] = pages[1:] != pages[:-1] + np.uint64(1)
    return new.nonzero()[0]


def page_runs(pages: Pages) -> npt.NDArray[np.uint64]:
    """Page numbers as ranges of page numbers: shape (n, 2), start inclusive and end exclusive."""
    first = run_starts(pages)
    runs = np.empty((len(first), 2), np.uint64)
    runs[:, 0] = pages[first]
    if len(first):
        runs[:-1, 1], runs[-1, 1] = pages[first[1:] - 1], pages[-1]
        runs[:, 1] += np.uint64(1)
    return runs


def to_runs(pages: Pages) -> Runs:
    """Page numbers as address ranges."""
    return page_runs(pages) * np.uint64(PAGE)


# -- sets of addresses ---------------------------------------------------------------------------------


def merge_runs(*several: Runs) -> Runs:
    """The union of lists of ranges, in any order and overlapping; touching ranges become one."""
    some = [runs for runs in several if len(runs)]
    if not some:
        return no_runs()
    runs = np.concatenate(some).astype(np.uint64, copy=False)
    if len(runs) < 2 or (runs[1:, 0] > runs[:-1, 1]).all():
        return runs
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    ends = np.maximum.accumulate(runs[:, 1])
    first = np.concatenate(([True], runs[1:, 0] > ends[:-1]))
    last = np.concatenate((first[1:], [True]))
    return np.stack((runs[first, 0], ends[last]), axis=1)


def subtract(a: Runs, b: Runs) -> Runs:
    """The parts of `a` that are in no range of `b`. A range may come back in pieces that touch."""
    cuts = np.unique(np.concatenate((a.ravel(), b.ravel())))
    starts, ends = cuts[:-1], cuts[1:]
    keep = (rows_of(starts, a) >= 0) & (rows_of(starts, b) < 0)
    return np.stack((starts[keep], ends[keep]), axis=1)


def intersect(a: Runs, b: Runs) -> Runs:
    """The parts that are in ranges of both. A range may come back in pieces that touch."""
    return subtract(a, subtract(a, b))


def rows_of(numbers: npt.NDArray[np.uint64], ranges: npt.NDArray[np.uint64]) -> Rows:
    """The range that each number lies in, -1 for none.

    Args:
        numbers: in any order; addresses or page numbers.
        ranges: shape (n, 2), of the same unit.
    """
    if not len(ranges):
        return np.full(len(numbers), -1, np.int64)
    at = np.searchsorted(ranges[:, 0], numbers, side="right") - 1
    return np.where((at >= 0) & (numbers < ranges[np.maximum(at, 0), 1]), at, -1)


def inside(pages: Pages, ranges: Runs) -> Mask:
    """A mask of the page numbers that lie in address ranges; both in any order."""
    return rows_of(pages * np.uint64(PAGE), merge_runs(ranges)) >= 0


def bridged(runs: Runs, gap: int) -> Runs:
    """The same ranges, with those made one that are at most `gap` bytes apart."""
    if not len(runs):
        return runs
    first = np.append(True, runs[1:, 0] > runs[:-1, 1] + np.uint64(gap))
    last = np.append(first[1:], True)
    return np.stack((runs[first, 0], runs[last, 1]), axis=1)


# -- tables by page ------------------------------------------------------------------------------------


def latest(pages: Pages, *columns: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Sort a table by page; of several rows of one page keep the last.

    Args:
        pages: in any order, with repetitions.
        columns: the rows' other columns, each of shape (n,).
    """
    order = np.argsort(pages, kind="stable")
    ordered = pages[order]
    keep = np.ones(len(ordered), bool)
    keep[:-1] = ordered[1:] != ordered[:-1]
    return (ordered[keep], *(column[order][keep] for column in columns))


def index_of(pages: Pages, wanted: Pages) -> Rows:
    """The index in `pages` of each wanted page, -1 if it is not there; `wanted` in any order."""
    if not len(pages):
        return np.full(len(wanted), -1, np.int64)
    at = np.searchsorted(pages, wanted)
    return np.where(pages[np.minimum(at, len(pages) - 1)] == wanted, at, -1)


def between(pages: Pages, start: int, end: int) -> slice:
    """The part of `pages` that lies between two addresses."""
    lo, hi = np.searchsorted(pages, [start // PAGE, end // PAGE])
    return slice(int(lo), int(hi))


def indices_within(pages: Pages, runs: Runs) -> Rows:
    """The indices of the pages that lie in address ranges: cheap for few ranges and many pages."""
    if not len(runs):
        return np.empty(0, np.int64)
    first, end = np.searchsorted(pages, runs // np.uint64(PAGE)).T
    return spread(first, end - first)


# -- in parts ------------------------------------------------------------------------------------------


def equal_neighbours(values: npt.NDArray[Any]) -> Iterator[slice]:
    """Where in `values` each stretch of one value is."""
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)]).tolist()
    for start, end in pairwise([*starts, len(values)]):
        yield slice(start, end)


def slices(count: int, size: int) -> Iterator[slice]:
    """`count` rows in parts of at most `size`."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def batches(pages: Pages, size: int = BATCH) -> Iterator[Pages]:
    """Page numbers in parts of at most `size`."""
    return (pages[part] for part in slices(len(pages), size))


def chunks(runs: Runs, size: int) -> Iterator[Runs]:
    """Cut ranges into lists of at most `size` bytes each; `size` is a multiple of the page size."""
    parts: list[tuple[int, int]] = []
    room = size
    for first, end in runs.tolist():
        start = first
        while start < end:
            n = min(room, end - start)
            parts.append((start, start + n))
            start += n
            room -= n
            if room < PAGE:
                yield np.array(parts, np.uint64)
                parts, room = [], size
    if parts:
        yield np.array(parts, np.uint64)
