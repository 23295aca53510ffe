"""One process of a tree: its chain, and its part in each epoch of the tree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from checkpoint.chain_writer import ChainWriter
from checkpoint.epoch import Membership
from checkpoint.facts import Elsewhere
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


class Again(Part):
    """A part of an earlier epoch again: nothing of it is new."""

    def __init__(self, stream: Stream, last: Part) -> None:
        row = replace(last.row, base=False, pages=0, bytes=0, warnings=stream.untold)
        super().__init__(stream, row, None)
        stream.untold = []
        self._of = last

    def write(self, elsewhere: list[Elsewhere] | None = None) -> None:
        last = self._of.row
        assert last.member
        self.row = replace(last, base=False, pages=0, bytes=0, warnings=self.row.warnings,
                           member=replace(last.member, unchanged=True))  # fmt: skip


class Member:
    """One process of the tree, with a chain of its own."""

    def __init__(self, target: ProcessTarget, chain: ChainWriter, interrupted: Callable[[], bool]) -> None:
        self.target = target
        self.chain = chain
        self.sink = ChainSink(chain)
        self.stream = Stream(target, self.sink, interrupted)
        self.number = -1
        self._last: tuple[Any, Part] | None = None

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

    def part(self, window: Window) -> Part | None:
        """Its part in an epoch of the tree; None: the process has ended meanwhile.

        A process that has not run at all has no new epoch: the tree's epoch names its last one again.
        """
        state = _state_of(window)
        # What was copied for a base is in no window, so that a window like the last one says nothing of it.
        if self._last and state and state == self._last[0] and not self.stream.in_base:
            self.target.hand_over().release()
            return Again(self.stream, self._last[1])
        try:
            part = self.stream.part(window)
        except (TargetGoneError, NewMemoryError):
            return None
        start_time, comm = self.target.process.identity.start_time, name_of(self.target.pid)
        part.member = Membership(start_time, comm, self.chain.directory.name, unchanged=False)
        self._last = state, part
        return part

    def forget(self) -> None:
        """Its last part is not stored: the next epoch has to have one."""
        self._last = None

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
