"""Keeps what is done after each epoch to a share of the time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

SHARE = 20
"""What takes long is done so often that it takes this part of the time."""


class Budget:
    """Says when work may be done again.

    Attributes:
        sharers: how many have that part of the time together.
    """

    def __init__(self, free: float = 0.0) -> None:
        """Args:
        free: seconds that the work of all sharers may take without a thought.
        """
        self.sharers = 1
        self._free = free
        self._due = 0.0

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    @contextmanager
    def spending(self) -> Iterator[None]:
        """The work. Where it fails it is due still."""
        started = time.monotonic()
        yield
        ended = time.monotonic()
        self._due = ended + SHARE * max(0.0, self.sharers * (ended - started) - self._free)
