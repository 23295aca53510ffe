"""An epoch that is kept in memory: where its pages are, and how it is read."""

from __future__ import annotations

import os
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from checkpoint.elf import ZERO
from checkpoint.epoch import Epoch, EpochRow, image_facts
from checkpoint.image import EpochFile, split_notes
from checkpoint.objects import ObjectFacts, increment
from checkpoint.view import Layers, View, stored_ranges
from uffdtrack import PAGE, Runs, exchange_rows
from uffdtrack.runs import Pages, Rows, expand, index_of, indices_within, latest, merge_runs, no_runs

EVERYTHING = np.array([(0, 1 << 56)], np.uint64)
"""With page tables of five levels, too."""
PAGE_SHIFT = np.uint64(12)
FIXED = 4096
"""Bytes that an epoch takes beside all that has a length, about."""
_THREAD = 700
"""Bytes of a thread's registers beside its XSAVE area, about."""
_ENTRY = 400
"""Bytes of a mapping, a descriptor or a file, about."""


@dataclass(slots=True)
class Index:
    """Where pages are. `rows`: of an `Arena`; `ZERO`: a page of zeros."""

    pages: Pages
    rows: Rows

    @classmethod
    def of(cls, data: Runs, rows: Rows, zero: Runs) -> Index:
        """Of ranges whose pages are in `rows`, and of ranges of zeros."""
        if not len(zero):
            return cls(data[:, 0] >> PAGE_SHIFT if len(data) == len(rows) else expand(data), rows)
        none = expand(zero)
        return cls(*latest(np.append(expand(data), none), np.append(rows, np.full(len(none), ZERO))))

    def cut(self, ranges: Runs) -> Rows:
        """Forget the pages in ranges; returns where they were."""
        if not len(ranges) or not len(self.pages):
            return np.empty(0, np.int64)
        at = indices_within(self.pages, merge_runs(ranges))
        dropped = self.rows[at]
        self.pages, self.rows = np.delete(self.pages, at), np.delete(self.rows, at)
        return dropped

    def update(self, later: Index) -> Rows:
        """What is in `later`, which is nobody's from then on, takes the place of what was here.

        Returns:
            Where that was.
        """
        if exchange_rows(self.pages, self.rows, later.pages, later.rows):
            return later.rows
        at = index_of(self.pages, later.pages)
        known = at >= 0
        dropped = self.rows[at[known]]
        self.rows[at[known]] = later.rows[known]
        if not known.all():
            pages, rows = later.pages[~known], later.rows[~known]
            at = np.searchsorted(self.pages, pages)
            self.pages, self.rows = np.insert(self.pages, at, pages), np.insert(self.rows, at, rows)
        return dropped


@dataclass(slots=True)
class Kept:
    """One epoch.

    Attributes:
        size: what `beside` has said last.
        epoch: its number.
        taken: without the pages of its window.
        index: its own pages; of the oldest epoch that is kept: the whole memory.
        reset: ranges whose earlier contents are void.
    """

    epoch: int
    taken: Epoch
    index: Index
    reset: Runs
    size: int = 0

    @classmethod
    def of(cls, taken: Epoch, row: EpochRow, index: Index) -> Kept:
        """An epoch whose pages are kept; the rest of its window goes."""
        window, none = taken.window, no_runs()
        reset = EVERYTHING if row.base else window.reset
        window.contents, window.heads = memoryview(b""), {}
        window.data = window.zero = window.reset = none
        return cls(row.epoch, taken, index, reset)

    @property
    def pages(self) -> Pages:
        return self.index.pages

    def beside(self, before: Kept | None) -> int:
        """About how many bytes it takes beside its pages.

        Args:
            before: the epoch before it, if that is kept; what is the same object there does not count.
        """
        had = before._lists() if before else None
        notes = self.taken.notes.rest
        rest = 0 if before and before.taken.notes.rest is notes else len(notes)
        entries = 0
        for at, some in enumerate(self._lists()):
            if not had or had[at] is not some:
                entries += len(some)
        arrays = self.index.pages.nbytes + self.index.rows.nbytes + self.reset.nbytes
        registers = sum([len(thread.xstate) + _THREAD for thread in self.taken.window.threads])
        self.size = FIXED + rest + registers + arrays + entries * _ENTRY
        return self.size

    def _lists(self) -> tuple[Sized, ...]:
        facts = self.taken.facts
        some = (facts.files, facts.attributes, facts.attributes_unknown)
        objects = (facts.objects.descriptors, facts.objects.state) if facts.objects else ((), ())
        return (self.taken.window.regions, *objects, *(one or () for one in some))


class RecentEpoch(EpochFile):
    """A kept epoch with the whole memory, to be read like one that is in a file."""

    in_memory = True

    def __init__(self, kept: Kept, index: Index, fd: int) -> None:
        taken = kept.taken
        self.path = Path(f"/proc/self/fd/{fd}")
        self.identity = ()
        self.pages = index.pages
        self.offsets = np.where(index.rows >= 0, index.rows * PAGE, ZERO)
        self.deltas = None
        self.notes = [(name, kind, data) for name, kind, data, _ in split_notes(taken.notes.encode())]
        self.digest = self.parent = ""
        target = taken.facts
        objects = increment(None, target.objects) if target.objects else ObjectFacts([])
        self.facts = image_facts(taken, taken.row, ("", None), False, taken.window.regions, objects)
        self.unknown = []
        self.epoch = kept.epoch
        self.parent_epoch = None
        self.regions = taken.window.regions
        self.reset = EVERYTHING
        self._fd = fd

    def open(self) -> BinaryIO:
        return os.fdopen(os.dup(self._fd), "rb")


def view_of(several: Sequence[Kept], fd: int) -> View:
    """The memory of the last of some epochs; the first one has all of its own.

    Args:
        fd: of the pages.
    """
    index = memory_at(several)
    at = indices_within(index.pages, stored_ranges(several[-1].taken.window.regions))
    epoch = RecentEpoch(several[-1], Index(index.pages[at], index.rows[at]), fd)
    none = np.empty(0, np.int64)
    layers = Layers(epoch.pages[:0], none, none)  # no page is stored as a delta
    return View(epoch, [epoch], epoch.pages, np.zeros(len(at), np.int64), epoch.offsets, layers)


def memory_at(several: Sequence[Kept]) -> Index:
    """Where the whole memory of the last of some epochs is; the first one has all of its own."""
    number = np.repeat(np.arange(len(several)), [len(kept.pages) for kept in several])
    pages, rows, number = latest(
        np.concatenate([kept.pages for kept in several]),
        np.concatenate([kept.index.rows for kept in several]),
        number,
    )
    void = np.zeros(len(pages), np.int64)  # by which of them what is older is void
    for at, kept in enumerate(several):
        void[indices_within(pages, kept.reset)] = at
    return Index(pages[number >= void], rows[number >= void])
