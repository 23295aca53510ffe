"""The contents of an epoch's pages, from files that are opened once."""

from __future__ import annotations

import os
import resource
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from checkpoint.elf import ZERO
from checkpoint.errors import ImageError
from checkpoint.files import write_all
from checkpoint.rollback.layout import Stretches
from checkpoint.view import View
from uffdtrack import PAGE, Places, read_places
from uffdtrack.errors import StorageError, UffdtrackError
from uffdtrack.runs import Pages, batches, index_of, to_runs

Contents = npt.NDArray[np.uint8]
"""Pages back to back, shape (n, 4096)."""


class Image:
    """The contents of a view, from files that are opened once, before the target is stopped.

    What is stored as deltas is put together then, into memory.

    Raises:
        InvalidInputError, ImageError: we cannot open a file, or not read what a delta is to.
        StorageError: there is no memory for what is put together.
    """

    def __init__(self, view: View) -> None:
        self.pages = view.pages
        self.runs = to_runs(view.pages)
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
            self._files.append(_together(view, view.pages[deltas]))
            offsets = np.arange(int(deltas.sum())) * PAGE
            self._places[deltas] = np.stack(
                (np.full(len(offsets), self._files[-1].fileno()), offsets), axis=1
            )

    def within(self, where: Stretches) -> tuple[Pages, Places]:
        """The pages in some stretches, and where their contents are. Asking again costs nothing."""
        if self._within is None or self._within[0] is not where:
            rows = where.rows(self.pages)
            # What the kernel may drop at any time (MAP_DROPPABLE) is dropped now: random-number generators
            # keep their state there, and would give the same numbers again.
            chosen = (rows >= 0) & ~np.append(where.droppable, False)[rows]
            self._within = where, self.pages[chosen], self._places[chosen]
        return self._within[1:]

    def has(self, pages: Pages) -> npt.NDArray[np.bool_]:
        """Which pages the view has."""
        return index_of(self.pages, pages) >= 0

    def places(self, pages: Pages) -> Places:
        """Where the contents are; pages that the view lacks are zeros."""
        out = np.full((len(pages), 2), -1, np.int64)
        at = index_of(self.pages, pages)
        out[at >= 0] = self._places[at[at >= 0]]
        return out

    def read(self, pages: Pages) -> Contents:
        """Read contents. Raises: ImageError: we cannot read a file."""
        try:
            return read_places(self.places(pages))
        except UffdtrackError as error:
            raise ImageError(f"the epoch cannot be read: {error}") from error

    def close(self) -> None:
        for file in self._files:
            file.close()


def _together(view: View, pages: Pages) -> BinaryIO:
    """A file in memory with the contents of some pages, back to back."""
    file = os.fdopen(os.memfd_create("pages", os.MFD_CLOEXEC), "w+b")
    try:
        at = 0
        for part in batches(pages):
            write_all(file.fileno(), [view.read(part).reshape(-1).data], at)
            at += len(part) * PAGE
    except OSError as error:
        file.close()
        raise StorageError(f"cannot put {len(pages)} pages together in memory: {error.strerror}") from error
    return file
