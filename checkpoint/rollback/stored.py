"""The contents of an epoch's pages, from files that are opened once."""

from __future__ import annotations

import resource

import numpy as np
import numpy.typing as npt

from checkpoint.elf import ZERO
from checkpoint.errors import ImageError
from checkpoint.rollback.layout import Stretches
from checkpoint.view import View
from uffdtrack import (
    Places,
    read_places,
)
from uffdtrack.errors import UffdtrackError
from uffdtrack.runs import (
    Pages,
    index_of,
    to_runs,
)

Contents = npt.NDArray[np.uint8]
"""Pages back to back, shape (n, 4096)."""


class Image:
    """The contents of a view, from files that are opened once, before the target is stopped.

    Raises:
        InvalidInputError, ImageError: we cannot open a file.
    """

    def __init__(self, view: View) -> None:
        self.pages = view.pages
        self.runs = to_runs(view.pages)
        # One descriptor for each epoch that has a page, in a process that does nothing else.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        used = np.unique(view.files[view.offsets != ZERO])
        fds = np.full(len(view.sources), -1, np.int64)
        self._files = [view.sources[index].open() for index in used.tolist()]
        fds[used] = [file.fileno() for file in self._files]
        self._within: tuple[Stretches, Pages, Places] | None = None
        zero = view.offsets == ZERO
        self._places: Places = np.stack(
            (np.where(zero, -1, fds[view.files]), np.where(zero, 0, view.offsets)), axis=1
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
