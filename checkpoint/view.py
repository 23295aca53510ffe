"""The whole memory of one epoch, from the files of its chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from checkpoint.branches import depth_first, made_from
from checkpoint.deltas import FIRST
from checkpoint.elf import ZERO, Offsets
from checkpoint.errors import ImageError
from checkpoint.files import malformed
from checkpoint.image import EpochFile
from uffdtrack import PAGE, Region, Runs
from uffdtrack.runs import (
    BATCH,
    Mask,
    Pages,
    Rows,
    batches,
    between,
    equal_neighbours,
    index_of,
    inside,
    latest,
    spread,
)

Contents = npt.NDArray[np.uint8]
MOST_KEPT = 2 * BATCH
"""Pages that a check of a chain has at the same time, of all epochs: 64 MiB."""


@dataclass(frozen=True, slots=True)
class Layers:
    """What pages that the newest epoch has as deltas are made of: columns of one row for each part.

    Attributes:
        pages: page numbers, sorted; of each page first its newest full copy, then the deltas since that
            change something.
        files, offsets: as of a `View`.
    """

    pages: Pages
    files: Rows
    offsets: Offsets

    def of(self, pages: Pages) -> tuple[Rows, Rows, Offsets]:
        """For some pages: which of them each part is of, its file, and its place there."""
        first, end = (np.searchsorted(self.pages, pages, side) for side in ("left", "right"))
        counts = end - first
        rows = spread(first, counts)
        return np.repeat(np.arange(len(pages)), counts), self.files[rows], self.offsets[rows]


@dataclass(frozen=True)
class View:
    """The whole memory of one epoch: for each page the newest file of the chain that has it.

    Attributes:
        pages: page numbers, sorted.
        files: index into `sources` for each page.
        offsets: place in that file, as of an `EpochFile`.
        layers: of the pages that are deltas there.
    """

    epoch: EpochFile
    sources: list[EpochFile]
    pages: Pages
    files: Rows
    offsets: Offsets
    layers: Layers

    @classmethod
    def of(cls, sources: list[EpochFile]) -> View:
        """The memory of the last one of some epochs: a base, and each the parent of the next.

        Raises:
            ImageError: a delta lacks what it is to.
        """
        every = np.concatenate([f.pages for f in sources])
        index = np.repeat(np.arange(len(sources)), [len(f.pages) for f in sources])
        offsets = np.concatenate([f.offsets for f in sources])
        order = np.argsort(every, kind="stable")
        every, index, offsets = every[order], index[order], offsets[order]
        is_last = np.append(every[1:] != every[:-1], True)[: len(every)]
        last = np.flatnonzero(is_last)
        pages = every[last]
        # A page is void where a later epoch has cut its history.
        cut = np.full(len(pages), -1)
        for i, file in enumerate(sources):
            for start, end in file.reset.tolist():
                cut[between(pages, start, end)] = i
        keep = (cut <= index[last]) & inside(pages, stored_ranges(sources[-1].regions))
        last, cut = last[keep], cut[keep]
        # The newest full copy at or before each row, which is of another page if this page has none.
        full = np.maximum.accumulate(np.where(offsets > FIRST, np.arange(len(every)), -1))[last]
        wrong = (full < 0) | (every[full] != every[last]) | (index[full] < cut)
        if wrong.any():
            at = last[wrong][0]
            raise ImageError(f"{sources[index[at]].path} is damaged: {_no_base(int(every[at]))}")
        counts = np.where(full < last, last - full + 1, 0)
        rows = spread(full, counts)
        rows = rows[~np.concatenate([_unchanged(f) for f in sources])[order][rows]]
        layers = Layers(every[rows], index[rows], offsets[rows])
        return cls(sources[-1], sources, every[last], index[last], offsets[last], layers)

    def read(self, wanted: Pages) -> Contents:
        """The contents of pages of this view, shape (n, 4096).

        Raises:
            ImageError: a file is damaged, or cannot be read.
        """
        out = np.zeros((len(wanted), PAGE), np.uint8)
        at = np.searchsorted(self.pages, wanted)
        files, offsets = self.files[at], self.offsets[at]
        full, deltas = np.flatnonzero(offsets > ZERO), np.flatnonzero(offsets <= FIRST)
        self._each(read_full, out, full, files[full], offsets[full])
        if len(deltas):
            rows, of, places = self.layers.of(wanted[deltas])
            rows = deltas[rows]
            full, more = np.flatnonzero(places > ZERO), np.flatnonzero(places <= FIRST)
            self._each(read_full, out, rows[full], of[full], places[full])
            self._each(add_deltas, out, rows[more], of[more], places[more])
            self._each(check_deltas, out, deltas, files[deltas], offsets[deltas])
        return out

    def _each(
        self,
        do: Callable[[EpochFile, Contents, Rows, Offsets], None],
        out: Contents,
        rows: Rows,
        files: Rows,
        places: Offsets,
    ) -> None:
        """Do something with rows of `out` and their places in each file."""
        order = np.argsort(files, kind="stable")
        rows, files, places = rows[order], files[order], places[order]
        for part in equal_neighbours(files):
            do(self.sources[files[part.start]], out, rows[part], places[part])

    @property
    def own_sources(self) -> list[EpochFile]:
        """The sources without those of other processes of a tree."""
        return [file for file in self.sources if file.path.parent == self.epoch.path.parent]

    def of_region(self, region: Region) -> slice:
        """The part of `pages` in a mapping."""
        return between(self.pages, region.start, region.end)


def read_full(file: EpochFile, out: Contents, rows: Rows, places: Offsets) -> None:
    """Read whole pages of a file into rows of `out`. Raises: ImageError: as `View.read`."""
    with malformed(file.path):
        data = file.data()
        if int(places[-1]) - int(places[0]) == (len(places) - 1) * PAGE and (np.diff(places) == PAGE).all():
            first = int(places[0])
            out[rows] = data[first : first + len(places) * PAGE].reshape(-1, PAGE)
        else:
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                out[row] = data[place : place + PAGE]


def add_deltas(file: EpochFile, out: Contents, rows: Rows, places: Offsets) -> None:
    """XOR deltas of a file into rows of `out`. Raises: ImageError: as `View.read`."""
    assert file.deltas
    with malformed(file.path), file.open() as opened:
        file.deltas.xor_into(opened, out, rows, FIRST - places)


def check_deltas(file: EpochFile, out: Contents, rows: Rows, places: Offsets) -> None:
    """Raises: ImageError: rows of `out` are not what a file's deltas were made of."""
    assert file.deltas
    with malformed(file.path):
        file.deltas.check(out, rows, FIRST - places)


@dataclass(frozen=True, slots=True)
class Shared:
    """Memory that another process stores: its addresses there, and how far it is from there to here."""

    view: View
    start: int
    end: int
    shift: int


def join(own: View, others: Sequence[Shared]) -> View:
    """A view with what other processes store for it; that comes before what it has itself."""
    if not others:
        return own
    sources = [*own.sources]
    columns = [(own.pages, own.files, own.offsets, np.zeros(len(own.pages), np.int64))]
    layers = [
        (own.layers.pages, own.layers.files, own.layers.offsets, np.zeros(len(own.layers.pages), np.int64))
    ]
    for n, other in enumerate(others, 1):
        for table, into in ((other.view, columns), (other.view.layers, layers)):
            part = between(table.pages, other.start, other.end)
            pages = (table.pages[part].astype(np.int64) + other.shift // PAGE).astype(np.uint64)
            files = table.files[part] + len(sources)
            into.append((pages, files, table.offsets[part], np.full(len(pages), n)))
        sources += other.view.sources
    pages, files, offsets, of = latest(*(np.concatenate(column) for column in zip(*columns, strict=True)))
    below = [np.concatenate(column) for column in zip(*layers, strict=True)]
    # Of a page that two have, the layers of the one that counts.
    at = index_of(pages, below[0])
    order = np.flatnonzero(of[at] == below[3])
    order = order[np.argsort(below[0][order], kind="stable")]
    return View(own.epoch, sources, pages, files, offsets, Layers(*(column[order] for column in below[:3])))


def check_all_deltas(files: Sequence[EpochFile]) -> None:
    """Check that each delta in some epochs is to what the epochs before have.

    Args:
        files: of a whole chain.

    Raises:
        ImageError: one is not, or a file cannot be read.
    """
    order, waiting = depth_first(files)
    every = np.unique(
        np.concatenate([file.deltas.pages for file in order if file.deltas] or [np.empty(0, np.uint64)])
    )
    # What an epoch has is kept until the last one that is made of it is checked.
    last = {made_from(file): file.epoch for file in order}
    for pages in batches(every, min(BATCH, MOST_KEPT // (1 + waiting))):
        states: dict[int | None, tuple[Contents, Mask]] = {}
        for file in order:
            parent = made_from(file)
            if parent not in states:
                before = np.zeros((len(pages), PAGE), np.uint8), np.zeros(len(pages), bool)
            elif last[parent] == file.epoch:
                before = states.pop(parent)
            else:
                before = states[parent][0].copy(), states[parent][1].copy()
            _check_deltas_of(file, pages, *before)
            if file.epoch in last:
                states[file.epoch] = before


def _check_deltas_of(file: EpochFile, pages: Pages, contents: Contents, known: Mask) -> None:
    """Check some pages of one epoch, and make of them what it has.

    Args:
        contents, known: what its parent has of these pages, and of which it has something.
    """
    for start, end in file.reset.tolist():
        known[between(pages, start, end)] = False
    at = index_of(file.pages, pages)
    rows = np.flatnonzero(at >= 0)
    places = file.offsets[at[rows]]
    deltas = places <= FIRST
    if not known[rows[deltas]].all():
        page = int(pages[rows[deltas][~known[rows[deltas]]][0]])
        raise ImageError(f"{file.path} is damaged: {_no_base(page)}")
    contents[rows[places == ZERO]] = 0
    known[rows] = True
    for do, some in ((read_full, places > ZERO), (add_deltas, deltas), (check_deltas, deltas)):
        if some.any():
            do(file, contents, rows[some], places[some])
    known &= inside(pages, stored_ranges(file.regions))


def stored_ranges(regions: Sequence[Region]) -> Runs:
    """Where an epoch with these mappings can have pages."""
    return np.array([(r.start, r.end) for r in regions if r.stored], np.uint64).reshape(-1, 2)


def _unchanged(file: EpochFile) -> Mask:
    """Which pages of a file are deltas that change nothing."""
    out = np.zeros(len(file.pages), bool)
    if file.deltas:
        rows = np.flatnonzero(file.offsets <= FIRST)
        out[rows] = file.deltas.unchanged[FIRST - file.offsets[rows]]
    return out


def _no_base(page: int) -> str:
    return f"the page at {page * PAGE:#x} is a delta, and no epoch before has it"
