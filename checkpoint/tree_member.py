"""One process of a tree: its chain, and its part in each epoch of the tree."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from checkpoint.chain import ChainWriter
from checkpoint.cycle import Draft, Session
from checkpoint.epoch import EpochRow, Membership
from checkpoint.image import EpochWriter
from checkpoint.targets.process import ProcessTarget
from uffdtrack import ProcessTree, Window, task_directory
from uffdtrack.errors import NewMemoryError, TargetGoneError

SMALL = 64 << 10
"""Contents of an epoch up to this size are compared with those of the one before."""
WRITERS = 4
"""Epochs that are written side by side: most of it is waiting for the disk, and digests."""

T = TypeVar("T")
Place = tuple[str, int, str]
"""Directory, epoch and digest of a member's epoch."""


def command_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="surrogateescape").rstrip("\n")
    except OSError:
        return "?"


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
        self.session = Session(target, chain, interrupted)
        self.number = -1
        self._last: tuple[Any, EpochRow] | None = None

    def prepare(self, tree: ProcessTree) -> None:
        """Have it under traps, and its base copied.

        Raises:
            NewMemoryError, TargetGoneError, StorageError: as they say.
        """
        if self.number < 0:
            self.session.attach()
            self.number = tree.join(self.target.space)
        self.session.prepare()

    def rebase(self) -> None:
        """It would have stood for too long: its next epoch is a base."""
        self.session.rebase()
        self._last = None

    def renew(self) -> None:
        self.session.renew()
        self.number = -1
        self._last = None

    def draft(self, window: Window, parts: Mapping[int, Part]) -> Part | None:
        """Write an epoch of a window, None where the process has ended meanwhile.

        One that has not run at all has no new epoch: the tree's epoch names its last one again.

        Args:
            parts: of the members that store shared memory for others.
        """
        state = None
        if len(window.contents) <= SMALL and not window.heads:
            # The kernel itself writes to the rseq(2) area of a thread that it lets run: so contents count.
            runs = (window.data.tolist(), window.zero.tolist(), window.reset.tolist())
            state = (window.threads, window.regions, window.elsewhere, runs, bytes(window.contents))
        # What was copied for a base is in no window, so that a window like the last one says nothing of it.
        if self._last and state and state == self._last[0] and not self.session.in_base:
            self.session.pending.clear()
            last = self._last[1]
            assert last.member
            again = replace(last.member, unchanged=True)
            row = replace(last, base=False, pages=0, bytes=0, member=again, warnings=self.session.untold)
            return Part(self, row, state, None)
        elsewhere = [[start, end, at, *parts[number].place] for start, end, at, number in window.elsewhere]
        try:
            draft = self.session.draft(window, {"elsewhere": elsewhere})
        except (TargetGoneError, NewMemoryError):
            return None
        start_time, comm = self.target.identity.start_time, command_name(self.target.pid)
        draft.row = replace(
            draft.row, member=Membership(start_time, comm, self.chain.directory.name, unchanged=False)
        )
        return Part(self, draft.row, state, draft)

    def keep(self, part: Part) -> None:
        """It is safe."""
        if part.draft:
            self.session.keep(part.draft)
            part.row = part.draft.row
            self._last = part.state, part.row

    def close(self) -> None:
        self.session.abandon()
        self.target.close()
        self.chain.close()
        if not self.chain.next_epoch:
            with contextlib.suppress(OSError):
                (self.chain.directory / ".lock").unlink()
                self.chain.directory.rmdir()


@dataclass(slots=True)
class Part:
    """A member's part in an epoch of the tree. `draft` is None where that is its last epoch again."""

    member: Member
    row: EpochRow
    state: Any
    draft: Draft | None

    @property
    def place(self) -> Place:
        assert self.row.member and self.row.digest
        return self.row.member.directory, self.row.epoch, self.row.digest

    def drop(self) -> None:
        """There is no such epoch, nor a file of its name."""
        if self.draft:
            self.draft.file.withdraw()


def side_by_side(function: Callable[[T], object], items: Iterable[T]) -> None:
    """Call it for each, `WRITERS` at a time, or as many as there may be threads (RLIMIT_NPROC, pids.max).

    Raises:
        BaseException: what a call has raised. No further call is begun then.
    """
    waiting = list(enumerate(items))
    errors: list[BaseException | None] = [None] * len(waiting)
    lock = threading.Lock()

    def stop() -> None:
        with lock:
            waiting.clear()

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                n, item = waiting.pop(0)
            try:
                function(item)
            except BaseException as error:
                errors[n] = error
                stop()

    helpers: list[threading.Thread] = []
    try:
        with contextlib.suppress(RuntimeError):
            for _ in range(min(WRITERS, len(waiting)) - 1):
                helper = threading.Thread(target=work)
                helper.start()
                helpers.append(helper)
        work()
    finally:
        stop()
        for helper in helpers:
            helper.join()
    for error in errors:
        if error:
            raise error


def make_safe(files: list[EpochWriter]) -> None:
    """All together: each step waits for the disk, which writes for several at once."""
    for step in (EpochWriter.sync, EpochWriter.rename, EpochWriter.sync_name):
        side_by_side(step, files)
