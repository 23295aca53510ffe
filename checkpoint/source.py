"""Where epochs come from: a process, a virtual machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from checkpoint.elf import Notes
from checkpoint.facts import TargetFacts
from uffdtrack import Pending, Rhythm, Runs, Window

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Handed:
    """The result of a window, in the hands of who stores it.

    Attributes:
        pending: what it stores; what cannot be stored goes back to the source.
        release: call it once, from any thread, when the contents of the window are no longer needed; further
            windows leave them alone until then.
        safe: call it, from any thread, when it is safe, and all before it.
    """

    pending: Pending
    release: Callable[[], None]
    safe: Callable[[], None] = lambda: None


def nothing_lent() -> None:
    """The `release` of what was written before the next window."""


class Source(Protocol):
    """The harvest stays pending here until it is handed over. Each window has it again.

    Attributes:
        pid: of the process, or of the one that runs the VM.
        engine: the tracker's name.
        max_dirty: an epoch is due at so many dirty pages, or None.
        behind: epochs are late, so they should come fast, even if a stop is longer for that.
        rhythm: when windows are due; it may take several of them in a row.
        ahead: how many it has taken that `window` has not given yet.
    """

    pid: int
    engine: str
    max_dirty: int | None
    behind: bool
    rhythm: Rhythm

    @property
    def ahead(self) -> int: ...

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

    def hand_over(self, at_once: bool = False) -> Handed:
        """What the last window has taken is the caller's now, and nothing of it is pending here any more.

        Args:
            at_once: no other window is taken before its contents are no longer needed.
        """

    def take_back(self, pending: Pending) -> None:
        """It was not stored: the next window has it again."""

    def describe(self, window: Window) -> tuple[Notes, TargetFacts]:
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
