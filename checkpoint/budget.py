"""Limits work that follows each epoch to a share of the time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """Says when work may be done again.

    Attributes:
        share: the part of the time that it may take.
        sharers: how many processes share that.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.sharers = 1
        self._due = 0.0

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Do the work in this block. If it fails, it is still due."""
        started = time.monotonic()
        yield
        ended = time.monotonic()
        self._due = started + self.sharers * (ended - started) / self.share
