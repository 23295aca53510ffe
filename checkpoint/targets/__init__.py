"""What can be checkpointed: a process, a virtual machine."""

from __future__ import annotations

from typing import Any, Protocol

from uffdtrack import Pending, Runs, Window


class Target(Protocol):
    """What the checkpoint cycle asks of a target (checkpoint/cycle.py).

    Attributes:
        pid: of the process, or of the one that holds the VM.
        engine: the tracker's name.
        max_dirty: an epoch is due at so many dirty pages, or None.
    """

    pid: int
    engine: str
    max_dirty: int | None

    def harvest(self, everything: bool) -> tuple[Runs, Runs]:
        """While it runs: what was written since the last time, or all; and what is void of older contents."""

    def copy(self, runs: Runs) -> tuple[Runs, Runs, memoryview]:
        """Copy ranges: those with contents, those that hold zeros, and the contents of the former."""

    def window(self, pending: Pending) -> Window:
        """Stop it, take registers and what was written and what is pending, and let it run.

        Raises:
            EpochSkippedError: not now, but later.
            MaxStopError: there is more to copy than a stop may.
        """

    def describe(self, window: Window) -> tuple[bytes, dict[str, Any]]:
        """ELF notes, and facts for the image's JSON (docs/image.md).

        In place of `descriptors` and `state` there may be `objects`, a Snapshot, of which an epoch stores
        what has changed.
        """

    def reattach(self) -> None:
        """Its memory was exchanged for another.

        Raises:
            EpochSkippedError: not now, but later.
        """

    def ended(self, seconds: float = 0) -> bool:
        """Whether it has ended, or does within some seconds."""

    def settle(self, timeout: float) -> bool:
        """Wait, up to some seconds, for what did not stop in time; False: some still did not."""
