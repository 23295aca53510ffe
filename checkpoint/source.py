"""Where epochs come from: a process, a virtual machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from checkpoint.facts import TargetFacts
from uffdtrack import Runs, Window

T = TypeVar("T")


class Source(Protocol):
    """What was harvested stays pending here, and nowhere else, until it is acknowledged.

    Each window has it again.

    Attributes:
        pid: of the process, or of the one that holds the VM.
        engine: the tracker's name.
        max_dirty: an epoch is due at so many dirty pages, or None.
    """

    pid: int
    engine: str
    max_dirty: int | None

    def harvest(self, everything: bool) -> tuple[Runs, Runs]:
        """While it runs: what was written since the last time, or all; and what is void of older contents.

        With `everything`, the memory is the one that it has now, and nothing of before is pending.
        """

    def postpone(self, runs: Runs, reset: Runs) -> None:
        """What was harvested is not copied now: it comes with the next window."""

    def copy(self, runs: Runs) -> tuple[Runs, Runs, memoryview]:
        """Copy ranges: those with contents, those that hold zeros, and the contents of the former.

        The contents are valid until the next copy or window.
        """

    def window(self) -> Window:
        """Stop it, take registers and what was written and what is pending, and let it run.

        Raises:
            TargetBusyError: not now, but later.
            MaxStopError: there is more to copy than a stop may.
            NewMemoryError: its memory was exchanged for another; `persist` knows what that means.
        """

    def acknowledge(self) -> None:
        """What the last window had is safe."""

    def describe(self, window: Window) -> tuple[bytes, TargetFacts]:
        """ELF notes, and what it says of its target. It runs again."""

    def persist(self, attempt: Callable[[], T], again: Callable[[], None]) -> T:
        """Do what needs one memory from beginning to end; where that was exchanged meanwhile (exec), anew.

        Args:
            again: called before each further attempt.

        Raises:
            TargetBusyError: that goes on.
            TargetGoneError: it has ended.
        """

    def settle(self, timeout: float) -> bool:
        """Wait, up to some seconds, for what did not stop in time; False: some still did not."""
