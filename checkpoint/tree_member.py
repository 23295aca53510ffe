"""One process of a tree: its chain, and its part in each epoch of the tree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from checkpoint.chain_writer import ChainWriter
from checkpoint.epoch import EpochRow, Membership
from checkpoint.sink import ChainSink
from checkpoint.stream import Part, Stream
from checkpoint.targets.process import ProcessTarget
from uffdtrack import ProcessTree, Window, command_name, task_directory
from uffdtrack.errors import NewMemoryError, TargetGoneError

SMALL = 64 << 10
"""Contents of an epoch up to this size are compared with those of the one before."""


def name_of(pid: int) -> str:
    return command_name(pid) or "?"


def lives(pid: int) -> bool:
    """Whether a process, of which we may have no pidfd, has not ended."""
    try:
        task_directory(pid)  # a first thread may have ended while others go on
    except TargetGoneError:
        return False
    return True


class Member:
    """One process of the tree, with a chain of its own."""

    def __init__(self, target: ProcessTarget, chain: ChainWriter, interrupted: Callable[[], bool]) -> None:
        self.target = target
        self.chain = chain
        self.stream = Stream(target, ChainSink(chain), interrupted)
        self.number = -1
        self._state: Any = None
        self._last: tuple[Any, EpochRow] | None = None

    def prepare(self, tree: ProcessTree) -> None:
        """Put it under traps, and copy its base.

        Raises:
            NewMemoryError, TargetGoneError, StorageError: as they say.
        """
        if self.number < 0:
            self.target.attach()
            self.number = tree.join(self.target.space)
        self.stream.prepare()

    def rebase(self) -> None:
        """Make its next epoch a base: it would have stood for too long."""
        self.stream.rebase()
        self._last = None

    def renew(self) -> None:
        """Start anew with its new memory."""
        self.rebase()
        self.number = -1

    def draft(self, window: Window, parts: Mapping[int, Part]) -> Part | None:
        """Write an epoch of a window; None: the process has ended meanwhile.

        A process that has not run at all has no new epoch: the tree's epoch names its last one again.

        Args:
            parts: of the members that store shared memory for others, by number.
        """
        self._state = _state_of(window)
        # What was copied for a base is in no window, so that a window like the last one says nothing of it.
        if self._last and self._state and self._state == self._last[0] and not self.stream.in_base:
            return self._again(self._last[1])
        elsewhere = [(start, end, at, *parts[n].row.place) for start, end, at, n in window.elsewhere]
        try:
            part = self.stream.draft(window, elsewhere=elsewhere)
        except (TargetGoneError, NewMemoryError):
            return None
        start_time, comm = self.target.process.identity.start_time, name_of(self.target.pid)
        member = Membership(start_time, comm, self.chain.directory.name, unchanged=False)
        part.row = replace(part.row, member=member)
        return part

    def _again(self, last: EpochRow) -> Part:
        """Its last epoch again: nothing of it is new, and all of it is safe."""
        self.target.acknowledge()
        assert last.member
        member, warnings = replace(last.member, unchanged=True), self.stream.untold
        row = replace(last, base=False, pages=0, bytes=0, member=member, warnings=warnings)
        return Part(self.stream, row, None, 0.0)

    def kept(self, part: Part) -> None:
        """Note that its part of the epoch is safe."""
        if part.draft:
            self._last = self._state, part.row

    def close(self) -> None:
        self.stream.abandon()
        self.target.close()
        self.chain.close()
        if not self.chain.next_epoch:
            with contextlib.suppress(OSError):
                (self.chain.directory / ".lock").unlink()
                self.chain.directory.rmdir()


def _state_of(window: Window) -> Any:
    """The state that two windows share if the process has not run in between; None: do not ask."""
    if len(window.contents) > SMALL or window.heads:
        return None
    # The kernel itself writes to the rseq(2) area of a thread that it lets run: so contents count.
    runs = (window.data.tolist(), window.zero.tolist(), window.reset.tolist())
    return window.threads, window.regions, window.elsewhere, runs, bytes(window.contents)
