"""Where epochs come from: a process, a virtual machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from checkpoint.facts import TargetFacts
from uffdtrack import Runs, Window

T = TypeVar("T")


class Source(Protocol):
    """The harvest stays pending here, and nowhere else, until it is acknowledged.

    Each window has it again.

    Attributes:
        pid: of the process, or of the one that runs the VM.
        engine: the tracker's name.
        max_dirty: an epoch is due at so many dirty pages, or None.
    """

    pid: int
    engine: str
    max_dirty: int | None

    def harvest(self, everything: bool) -> tuple[Runs, Runs]:
        """While it runs, find what was written since the last time, or all; and which contents are void.

        With `everything`, use the memory that it has now; then nothing from before is pending.
        """

    def postpone(self, runs: Runs, reset: Runs) -> None:
        """Do not copy the harvest now: the next window has it."""

    def copy(self, runs: Runs) -> tuple[Runs, Runs, memoryview]:
        """Copy ranges; returns those with contents, those of zeros, and the contents of the former.

        The contents are valid until the next copy or window.
        """

    def window(self) -> Window:
        """Stop it, take registers, written and pending pages, and let it run.

        Raises:
            TargetBusyError: try again later.
            MaxStopError: there is more to copy than a stop may copy.
            NewMemoryError: it has another memory now; `persist` knows what that means.
        """

    def acknowledge(self) -> None:
        """Note that the pages of the last window are safe."""

    def describe(self, window: Window) -> tuple[bytes, TargetFacts]:
        """ELF notes, and facts of its target. It runs again."""

    def persist(self, attempt: Callable[[], T], again: Callable[[], None]) -> T:
        """Do work that needs one memory from beginning to end; after an exec, do it anew.

        Args:
            again: called before each further attempt.

        Raises:
            TargetBusyError: it calls exec again and again.
            TargetGoneError: it has ended.
        """

    def settle(self, timeout: float) -> bool:
        """Wait, up to some seconds, for threads that did not stop in time; False: some still have not."""
