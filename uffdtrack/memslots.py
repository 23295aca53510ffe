"""What every RAM has: memslots back to back, and trackers that it tells of the host's writes."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from uffdtrack.arguments import whole
from uffdtrack.closing import Closing
from uffdtrack.errors import InvalidInputError
from uffdtrack.runs import PAGE


@dataclass(frozen=True, slots=True)
class Memslot:
    """A range of guest frame numbers.

    Attributes:
        gfn: the first one.
        pages: how many.
    """

    gfn: int
    pages: int


class _Tracker(Protocol):
    def host_wrote(self, first: int, pages: int) -> None: ...


class Ram(Closing):
    """Memory that a tracker tracks; a context manager that closes it.

    Attributes:
        slots: the memslots.
    """

    slots: tuple[Memslot, ...]

    def __init__(self) -> None:
        self._trackers: weakref.WeakSet[_Tracker] = weakref.WeakSet()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(slot.pages for slot in self.slots) * PAGE

    def index(self, gfn: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Rows of `pages()` for guest frame numbers.

        Raises:
            InvalidInputError: a frame in no memslot.
        """
        return index_in(self.slots, gfn)

    def read_into(self, gfn: npt.NDArray[np.uint64], into: npt.NDArray[np.uint8]) -> None:
        """Copy pages to the first rows of an array of shape (n, 4096)."""
        raise NotImplementedError

    def add_tracker(self, tracker: _Tracker) -> None:
        """From now on, tell a tracker of each `host_write()`."""
        self._trackers.add(tracker)

    def drop_tracker(self, tracker: _Tracker) -> None:
        self._trackers.discard(tracker)

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or offset + size > self.size:
            raise InvalidInputError(f"bytes {offset} to {offset + size} are not in the RAM")

    def _wrote(self, offset: int, size: int) -> None:
        first = offset // PAGE
        for tracker in list(self._trackers):
            if size:
                tracker.host_wrote(first, (offset + size - 1) // PAGE - first + 1)


def checked_slots(slots: Iterable[Memslot]) -> tuple[Memslot, ...]:
    out: list[Memslot] = []
    for slot in slots:
        if not isinstance(slot, Memslot):
            raise InvalidInputError(f"slots are Memslots, not {slot!r}")
        slot = Memslot(whole("gfn", slot.gfn, -1), whole("pages", slot.pages))
        if slot.pages <= 0 or slot.gfn < 0 or (out and slot.gfn < out[-1].gfn + out[-1].pages):
            raise InvalidInputError("memslots have pages, and ascending frame numbers that do not overlap")
        out.append(slot)
    if not out:
        raise InvalidInputError("no memslot")
    return tuple(out)


def index_in(slots: Sequence[Memslot], gfn: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Rows of pages that are back to back, for guest frame numbers.

    Raises:
        InvalidInputError: a frame in no memslot.
    """
    out = np.full(len(gfn), -1, np.int64)
    first = 0
    for slot in slots:
        inside = (gfn >= slot.gfn) & (gfn < slot.gfn + slot.pages)
        out[inside] = gfn[inside].astype(np.int64) - slot.gfn + first
        first += slot.pages
    if len(out) and out.min() < 0:
        raise InvalidInputError(f"frame {int(gfn[out < 0][0]):#x} is in no memslot")
    return out
