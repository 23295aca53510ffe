"""Epochs of a tree of processes: all are stopped at one instant."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from checkpoint.epoch import LeftOut, Times, TreeRow
from checkpoint.session import Taker
from checkpoint.side_by_side import side_by_side
from checkpoint.stream import Part
from checkpoint.tree import TreeWriter
from checkpoint.tree_epoch import TakenTree
from checkpoint.tree_member import Again, Member, name_of
from checkpoint.tree_roster import Roster
from uffdtrack import ProcessTree, TreeMember, TreeWindow, Window
from uffdtrack.closing import Closing
from uffdtrack.errors import (
    MaxStopError,
    NewMemoryError,
    PermissionDeniedError,
    StopTimeoutError,
    StorageError,
    TargetBusyError,
    TargetError,
    TargetGoneError,
)

ROUNDS = 4
"""How many stops one epoch may take. We give up all but the last if they find a child not followed yet."""


class TreeSession(Taker[TreeRow], Closing):
    """Takes epochs of a whole tree into one directory."""

    def __init__(
        self,
        root: int,
        writer: TreeWriter,
        engine: str,
        max_dirty: int | None,
        interrupted: Callable[[], bool] = lambda: False,
        adopter: int = 0,
        follow_shared: bool = False,
    ) -> None:
        """Args:
        root: the first process; it has passed `check_target`.
        engine, max_dirty, follow_shared: see `AddressSpace.attach`.
        adopter: the process that becomes the parent of the tree's orphans (PR_SET_CHILD_SUBREAPER), or 0.
        """
        super().__init__()
        self.root = root
        self.writer = writer
        self.tree = ProcessTree()
        self.roster = Roster(root, writer, engine, max_dirty, interrupted, adopter, follow_shared)
        self._reading = 1  # how many have read /proc for an epoch lately

    @property
    def members(self) -> list[Member]:
        return self.roster.members

    def begin(self) -> TakenTree:
        for n in range(ROUNDS):
            last = n == ROUNDS - 1
            self.roster.find()
            members = self._prepared()
            if not members:
                if self.members and not last:
                    continue
                why = self.roster.why_left()
                if why:
                    raise TargetBusyError(f"no process of the tree can be followed: {why}")
                raise TargetGoneError("all processes of the tree have ended")
            try:
                window = self._window(members, last)
            except TargetGoneError:
                continue  # one of them
            whole = self._note_ends(members, window)
            if window.windows and (whole or last):
                epoch = self._epoch(members, window)
                if epoch.whole:
                    return epoch
                _give_up(epoch)
        raise TargetBusyError("processes of the tree begin and end faster than an epoch is taken")

    def _window(self, members: list[Member], without_born: bool) -> TreeWindow:
        for member in members:
            member.target.check_stop()
        try:
            return self.tree.window(
                [TreeMember(m.target.tracee, m.target.space, m.target.pending) for m in members],
                [pid for pid in self.roster.left if pid not in self.roster.ours],
                sorted(self.roster.ours),
                self.roster.adopter,
                without_born,
            )
        except (PermissionDeniedError, StopTimeoutError) as error:
            at = self.tree.failed
            why = None if at is None else members[at].target.why_not_stopped(error)
            if not why:
                raise
            raise why from error

    def _prepared(self) -> list[Member]:
        """The members, all under traps."""
        ready = []
        for member in list(self.members):
            try:
                if member.stream.is_due and member.stream.in_flight:
                    self.pipeline.drain()
                member.prepare(self.tree)
                member.target.share_time(self._reading)
                ready.append(member)
            except (NewMemoryError, TargetGoneError, FileNotFoundError, ProcessLookupError):
                self._renew(member)
            except (StorageError, TargetBusyError, MaxStopError):
                raise
            except (TargetError, PermissionDeniedError) as error:
                self.roster.leave(member, error)
        return ready

    def _renew(self, member: Member) -> None:
        """Handle a member whose memory has gone: it has called exec, or has ended."""
        if member.target.lose():
            member.renew()
        else:
            self.roster.bury(member)

    def _note_ends(self, members: list[Member], window: TreeWindow) -> bool:
        """Whether a window has all members that live.

        Raises:
            MaxStopError: they would have stood for too long.
        """
        whole = True
        late: MaxStopError | None = None
        for member, result in zip(members, window.windows, strict=False):
            if isinstance(result, MaxStopError):
                member.rebase()
                late = late or result
            elif not isinstance(result, Window):
                self._renew(member)
                whole = whole and member not in self.members
        if late:
            raise late
        return whole

    def _epoch(self, members: list[Member], window: TreeWindow) -> TakenTree:
        """An epoch, still to be written, of the processes that have not ended by now."""
        parts: dict[int, Part] = {}
        taken = [
            (member, result)
            for member, result in zip(members, window.windows, strict=True)
            if isinstance(result, Window)
        ]

        def describe(member: Member, result: Window) -> None:
            part = member.part(result)
            if part:
                parts[member.number] = part

        def epoch(left_out: list[LeftOut]) -> TakenTree:
            inside = [pair for pair in taken if pair[0].number in parts]
            times = Times.of(window)
            return TakenTree(self, self.writer, self.roster, circumstances, inside, parts, left_out, times)

        circumstances = self.circumstances()
        try:
            side_by_side(lambda pair: describe(*pair), taken)
        except BaseException:
            _give_up(epoch([]))
            raise
        read = sum(not isinstance(part, Again) for part in parts.values())
        self._reading = max(read, self._reading * 7 // 8, 1)
        left_out = self._left_out(members, taken, window)
        left_out += [
            LeftOut(m.target.pid, name_of(m.target.pid), "it ended, or called exec, a moment after")
            for m, _ in taken
            if m.number not in parts
        ]
        return epoch(left_out)

    def _left_out(
        self, members: list[Member], taken: list[tuple[Member, Window]], window: TreeWindow
    ) -> list[LeftOut]:
        """Processes that lived at the stop and are not in the epoch."""
        reasons = dict(self.roster.left)
        for pid in window.born:
            reasons.setdefault(pid, "it was born a moment before")
        inside = {member.target.pid for member, _ in taken}
        for member in members:
            if member.target.pid not in inside and member in self.members:
                reasons[member.target.pid] = "its memory could not be taken at that moment (exec)"
        return [LeftOut(pid, name_of(pid), why) for pid, why in reasons.items()]

    # -- for who waits ----------------------------------------------------------------------------

    @property
    def fds(self) -> Iterable[int]:
        """Readable once a limit of dirty pages is reached."""
        return [member.target.space.full_fd for member in self.members]

    def ended(self) -> bool:
        """Whether no process of the tree is left."""
        return self.roster.ended()

    def settle(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        results = [m.target.settle(max(0.0, deadline - time.monotonic())) for m in self.members]
        return all(results)

    def close(self) -> None:
        """Take every trap away; all run on. Idempotent."""
        self.roster.close()
        self.tree.close()


def _give_up(epoch: TakenTree) -> None:
    epoch.drop()
    epoch.take_back()
