"""Pages that are compared before the stop, so that the stop has only to write them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from checkpoint.rollback.layout import Stretches
from checkpoint.rollback.stored import Contents, Image
from uffdtrack import DIFFERS, PAGE, UNREADABLE, AddressSpace, Runs, task_directory, trapped
from uffdtrack.runs import Pages, equal_neighbours, indices_within, inside, intersect, no_runs, to_runs

MOST = 1 << 14
"""Pages."""
_PIECES = 64
"""So many are handed over as they are; more are put together."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Pages in memory under traps, compared while the process runs; a look in the stop tells which are void.

    Attributes:
        compared: where all of them are, those that are as at the epoch, too.
        pages, held, contents: those that are not, what they hold, and what they get.
    """

    compared: Runs
    pages: Pages
    held: Contents
    contents: Contents

    def valid(self, found: Runs, where: Stretches) -> Iterator[tuple[Pages, Contents, Contents]]:
        """The columns, without pages that a look has found, or that are not anonymous memory of `where`."""
        rows = where.rows(self.pages)
        # The last element is for pages that are nowhere.
        good = np.append(where.anonymous & ~where.droppable, False)[rows] & ~inside(self.pages, found)
        parts = [part for part in equal_neighbours(good) if good[part.start]]
        if len(parts) > _PIECES:
            yield self.pages[good], self.held[good], self.contents[good]
            return
        for part in parts:
            yield self.pages[part], self.held[part], self.contents[part]


def nothing_ready() -> Ready:
    return Ready(no_runs(), np.empty(0, np.uint64), *(np.empty((0, PAGE), np.uint8) for _ in range(2)))


def compare_ahead(space: AddressSpace, image: Image, among: Runs) -> Ready:
    """Compare pages of a process that runs with an image; calls that were under way have ended.

    Args:
        among: only pages in these ranges.

    Raises:
        TargetGoneError, ImageError: as they say.
    """
    at = indices_within(image.pages, intersect(trapped(space), among))[:MOST]
    pages = image.pages[at]
    held = np.zeros((len(pages), PAGE), np.uint8)
    task = task_directory(space.pid)
    shared = space.native.reader.shared  # type: ignore[attr-defined]
    memory = os.open(task / "mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = image.compare(memory, at, 0 if shared else int(task.name), held)
    finally:
        os.close(memory)
    known = (flags & UNREADABLE) == 0
    differs = known & ((flags & DIFFERS) != 0)
    return Ready(to_runs(pages[known]), pages[differs], held[differs], image.read(pages[differs]))
