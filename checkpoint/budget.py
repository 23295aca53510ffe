"""Limits work that follows each epoch to a share of the time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

SHARE = 20
"""Long work is done only so often that it takes this part of the time."""


class Budget:
    """Says when work may be done again.

    Attributes:
        sharers: how many processes share that part of the time.
    """

    def __init__(self, free: float = 0.0) -> None:
        """Args:
        free: seconds that the work of all sharers may always take.
        """
        self.sharers = 1
        self._free = free
        self._due = 0.0

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Do the work in this block. If it fails, it is still due."""
        started = time.monotonic()
        yield
        ended = time.monotonic()
        self._due = ended + SHARE * max(0.0, self.sharers * (ended - started) - self._free)
