"""How much memory the chains of a process have for copies, and which share of it each."""

from __future__ import annotations

import threading
from typing import Protocol
from weakref import WeakSet

from uffdtrack import PAGE

LIMIT = 128 << 20
"""All chains of a process together keep so many bytes of copies."""
_PIECE = 256
"""A chain gets so many pages at a time."""


class Holder(Protocol):
    """What one chain has of the room.

    Attributes:
        held: so many pages.
        wants: it has asked for some, so it has a share.
        level: copies are of use for one page of 2 ** level: it has no more than that part of the room.
    """

    held: int
    wants: bool
    level: int


class Room:
    """What several chains share, so that all together keep no more than `size` pages."""

    def __init__(self, size: int = LIMIT // PAGE) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._all: WeakSet[Holder] = WeakSet()

    def join(self, one: Holder) -> None:
        with self._lock:
            self._all.add(one)

    def take(self, one: Holder, wanted: int) -> None:
        """Let it hold so many pages, if there is room; at most its share."""
        with self._lock:
            one.wants = True
            others = sum(other.held for other in self._all if other is not one)
            wanted += -wanted % _PIECE
            one.held = max(one.held, min(wanted, self._share(one), self.size - others))

    def share(self, one: Holder) -> int:
        """It should hold no more pages than that."""
        if one.level == 0 and len(self._all) == 1:
            return self.size
        with self._lock:
            return self._share(one)

    def _share(self, one: Holder) -> int:
        sharing = sum(other.wants for other in self._all)
        return min(self.size // max(sharing, 1), self.size >> one.level)
