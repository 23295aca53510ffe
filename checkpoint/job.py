"""What a session has taken, on its way through the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from checkpoint.sink import Draft


class Job(Protocol):
    """An epoch that was taken, until it is safe.

    Attributes:
        size: bytes of contents that it holds in memory until it is written.
        base: nothing may follow it before it is safe.
        at_once: it is written, and safe, before the session goes on.
        taken: when its target ran on, in time.perf_counter().
    """

    size: int
    base: bool
    at_once: bool
    taken: float

    def write(self) -> Sequence[Draft]:
        """Write it; returns what has to become safe, all together. Raises: StorageError: we could not."""

    def commit(self, last: bool) -> None:
        """Note that it is safe; `last`: it is the last one of its group.

        Raises:
            StorageError: what completes it could not be written.
        """

    def drop(self) -> None:
        """Remove what was written of it, unless it is safe. By the thread that has failed."""

    def take_back(self) -> None:
        """After `drop`: its source and sink go on as if it had never been taken. By the session's thread."""
