"""Limits work that follows each epoch to a share of the time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_BEHIND = 5
"""Where epochs are late, it rests for so many times as long."""


class Budget:
    """Says when work may be done again.

    Attributes:
        share: the part of the time that it may take.
        sharers: how many processes share that.
        behind: epochs come later than they should: it takes a fifth of its share.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.sharers = 1
        self.behind = False
        self._ended = self._rest = 0.0

    def is_due(self) -> bool:
        rest = self._rest * _BEHIND if self.behind else self._rest
        return time.monotonic() >= self._ended + rest

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Do the work in this block. If it fails, it is still due."""
        started = time.monotonic()
        yield
        ended = time.monotonic()
        self._ended, self._rest = ended, (ended - started) * (self.sharers / self.share - 1)
