"""The contents of an epoch's pages, from files that are opened once."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from checkpoint.elf import ZERO
from checkpoint.errors import ImageError
from checkpoint.files import write_all
from checkpoint.rollback.layout import Stretches
from checkpoint.view import View
from uffdtrack import PAGE, Places, Runs, compare_copies, compare_pages, read_places
from uffdtrack.errors import StorageError, UffdtrackError
from uffdtrack.runs import BATCH, Mask, Pages, Rows, index_of, indices_within, slices, to_runs

Contents = npt.NDArray[np.uint8]
"""Pages back to back, shape (n, 4096)."""
STAGED = 1 << 16
"""Pages."""


@contextmanager
def reading_epoch() -> Iterator[None]:
    """In the block an error means that a file of the epoch cannot be read. Raises: ImageError: it says so."""
    try:
        yield
    except UffdtrackError as error:
        raise ImageError(f"the epoch cannot be read: {error}") from error


class Image:
    """The contents of a view, from files that are opened once, before the target is stopped.

    What is stored as deltas is put together then, into a file without a name in the chain's directory: all of
    it, since nobody knows before the stop what the target will have written by then.

    Raises:
        InvalidInputError, ImageError: we cannot open a file, or not read what a delta is to.
        StorageError: there is no room for what is put together.
    """

    def __init__(self, view: View) -> None:
        self.pages = view.pages
        self.runs = to_runs(view.pages)
        self._in_memory = all(file.in_memory for file in view.sources)
        # One descriptor for each epoch that has a page, in a process that does nothing else.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        used = np.unique(view.files[view.offsets > ZERO])
        fds = np.full(len(view.sources), -1, np.int64)
        self._files: list[BinaryIO] = [view.sources[index].open() for index in used.tolist()]
        fds[used] = [file.fileno() for file in self._files]
        self._within: tuple[Stretches, Pages, Places] | None = None
        full = view.offsets > ZERO
        self._places: Places = np.stack(
            (np.where(full, fds[view.files], -1), np.where(full, view.offsets, 0)), axis=1
        )
        deltas = view.offsets < ZERO
        if deltas.any():
            try:
                self._files.append(_together(view, view.pages[deltas]))
            except UffdtrackError:
                self.close()
                raise
            offsets = np.arange(int(deltas.sum())) * PAGE
            self._places[deltas] = np.stack(
                (np.full(len(offsets), self._files[-1].fileno()), offsets), axis=1
            )

    def within(self, where: Stretches, among: Runs | None = None) -> tuple[Pages, Places]:
        """The pages in some stretches, and where their contents are. Asking again costs nothing.

        Args:
            among: only the pages in these ranges.
        """
        if among is not None:
            at = indices_within(self.pages, among)
            at = at[_is_kept(self.pages[at], where)]
            return self.pages[at], self._places[at]
        if self._within is None or self._within[0] is not where:
            chosen = _is_kept(self.pages, where)
            self._within = where, self.pages[chosen], self._places[chosen]
        return self._within[1:]

    def stage(self, among: Runs) -> None:
        """Read contents that will be needed into memory of ours: up to `STAGED` pages, if there is room.

        Raises:
            ImageError: we cannot read a file.
        """
        if self._in_memory:
            return
        at = indices_within(self.pages, among)
        at = at[self._places[at, 0] >= 0][:STAGED]
        if not len(at):
            return
        with suppress(OSError):
            file = os.fdopen(os.memfd_create("uffdtrack-rollback", os.MFD_CLOEXEC), "rb", buffering=0)
            self._files.append(file)
            for part in slices(len(at), BATCH):
                rows = at[part]
                contents = self._read(self._places[rows])
                write_all(file.fileno(), [contents.reshape(-1).data], part.start * PAGE)
                self._places[rows] = np.stack(
                    (np.full(len(rows), file.fileno()), np.arange(part.start, part.stop) * PAGE), axis=1
                )

    def runs_within(self, among: Runs) -> Runs:
        """The pages of the view in some ranges, as ranges."""
        return to_runs(self.pages[indices_within(self.pages, among)])

    def has(self, pages: Pages) -> npt.NDArray[np.bool_]:
        """Which pages the view has."""
        return index_of(self.pages, pages) >= 0

    def places(self, pages: Pages) -> Places:
        """Where the contents are; pages that the view lacks are zeros."""
        out = np.full((len(pages), 2), -1, np.int64)
        at = index_of(self.pages, pages)
        out[at >= 0] = self._places[at[at >= 0]]
        return out

    def compare(self, memory: int, at: Rows, tid: int, held: Contents) -> npt.NDArray[np.uint8]:
        """Compare some of the view's pages with those of a process: see `compare_pages`.

        Raises:
            ImageError: we cannot read a file.
        """
        with reading_epoch():
            return compare_pages(memory, self.pages[at], self._places[at], tid, held)

    def same(self, pages: Pages, contents: Contents) -> Rows:
        """The indices in the view's pages of those that have these contents there.

        Raises:
            ImageError: we cannot read a file.
        """
        at = index_of(self.pages, pages)
        there = at >= 0
        if not there.all():
            at, contents = at[there], contents[there]
        with reading_epoch():
            same: Rows = at[compare_copies(contents, self._places[at]) == 0]
        return same

    def read(self, pages: Pages) -> Contents:
        """Read contents. Raises: ImageError: we cannot read a file."""
        return self._read(self.places(pages))

    def _read(self, places: Places) -> Contents:
        with reading_epoch():
            return read_places(places)

    def close(self) -> None:
        for file in self._files:
            file.close()


def _together(view: View, pages: Pages) -> BinaryIO:
    """A file without a name that has the contents of some pages, back to back.

    It is on disk when this returns: memory can do without it at any time, and no write of it fails later.
    """
    directory = view.epoch.path.parent
    try:
        with ExitStack() as stack:
            file = stack.enter_context(_nameless(directory))
            for part in slices(len(pages), BATCH):
                write_all(file.fileno(), [view.read(pages[part]).reshape(-1).data], part.start * PAGE)
            os.fdatasync(file.fileno())
            stack.pop_all()
    except OSError as error:
        raise StorageError(
            f"cannot put {len(pages)} pages together that are stored as deltas: {error.strerror}. They need "
            f"{len(pages) * PAGE / 1e6:.1f} MB in {directory} for a while; make room there"
        ) from error
    return file


def _nameless(directory: Path) -> BinaryIO:
    """A new file without a name; where we may not write, in the directory for temporary files."""
    try:
        return TemporaryFile(buffering=0, dir=directory)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return TemporaryFile(buffering=0)


def _is_kept(pages: Pages, where: Stretches) -> Mask:
    """Which pages are in some stretches, and get the contents of then.

    What the kernel may drop at any time (MAP_DROPPABLE) is dropped now: random-number generators keep their
    state there, and would give the same numbers again.
    """
    rows = where.rows(pages)
    kept: Mask = (rows >= 0) & ~np.append(where.droppable, False)[rows]
    return kept
