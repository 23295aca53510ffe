"""Epochs of a tree of processes: a process, its descendants, and those that are born meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from checkpoint.chain import ChainWriter
from checkpoint.epoch import EpochRow, LeftOut, Times, TreeRow
from checkpoint.targets.process import EXEC_POLL, ProcessTarget
from checkpoint.tree import TreeWriter
from checkpoint.tree_member import Member, Part, command_name, lives, make_safe, side_by_side
from uffdtrack import ProcessTree, TreeMember, TreeWindow, Window, children, shares_memory
from uffdtrack.errors import (
    EpochSkippedError,
    MaxStopError,
    NewMemoryError,
    PermissionDeniedError,
    StopTimeoutError,
    StorageError,
    TargetError,
    TargetGoneError,
)

ROUNDS = 4
"""Stops for one epoch. All but the last are given up where a child is found that is not followed yet."""
VFORK_SECONDS = 0.05
"""How long a child that has its parent's memory (vfork) is waited for, to call exec."""
REFUSED_SECONDS = 1.0
"""After that a process that could not be attached to is tried again: it may have called exec."""
UNKNOWN = -1
"""A parent of which nothing is known."""


class TreeSession:
    """Takes epochs of a whole tree into one directory.

    A process whose parent has ended stays a member while it lives.

    Attributes:
        members: in the order in which they joined: who maps an object in memory first stores it for all.
        left: processes that live and are not followed, with the reason.
    """

    def __init__(
        self,
        root: int,
        writer: TreeWriter,
        engine: str,
        max_dirty: int | None,
        interrupted: Callable[[], bool] = lambda: False,
        adopter: int = 0,
    ) -> None:
        """Args:
        root: the first process; it has passed `check_target`.
        adopter: of which orphans of the tree become children (PR_SET_CHILD_SUBREAPER), 0 if there is none.
        """
        self.writer = writer
        self.engine = engine
        self.max_dirty = max_dirty
        self.interrupted = interrupted
        self.adopter = adopter
        self.root = root
        self.tree = ProcessTree()
        self.members: list[Member] = []
        self.left: dict[int, str] = {}
        self._tried: dict[int, float] = {}
        self._reading = 1  # how many have read /proc for an epoch lately
        self._ours = {os.getpid(), os.getppid()}
        self.target = self
        self.skipped = 0
        self.skip_reason = ""
        self.late = 0
        self._attach(root, 0)

    # -- who belongs to it ------------------------------------------------------------------------

    def find(self) -> None:
        """Follow all descendants that show. Who is born after that is found at the stop."""
        for member in list(self.members):
            if member.target.ended():
                self._bury(member)
        known = {member.target.pid for member in self.members}
        self.left = {pid: why for pid, why in self.left.items() if lives(pid)}
        look = [*known, *self.left, *([self.adopter] if self.adopter else [])]
        while look:
            parent = look.pop()
            for pid in children(parent):
                if pid in known or pid in self._ours:
                    continue
                if parent == self.adopter and (self._is_ours(pid) or self._reap(pid)):
                    continue
                if self._is_due(pid):
                    self._attach(pid, parent)
                look.append(pid)
                known.add(pid)
        # Whose parents are none of the tree: the first process, and orphans.
        for pid in [pid for pid in self.left if pid not in known and self._is_due(pid)]:
            self._attach(pid, UNKNOWN)

    def _is_due(self, pid: int) -> bool:
        return pid not in self.left or time.monotonic() > self._tried[pid] + REFUSED_SECONDS

    def _attach(self, pid: int, parent: int) -> None:
        self.left.pop(pid, None)
        self._tried[pid] = time.monotonic()
        try:
            if parent > 0 and parent != self.adopter and not _has_memory_of_its_own(pid, parent):
                self.left[pid] = "it has the memory of its parent (vfork)"
                self._tried[pid] = 0.0
                return
            target = ProcessTarget(pid, self.engine, self.max_dirty)
        except (TargetGoneError, FileNotFoundError, ProcessLookupError):
            if not parent:
                raise
            return
        except (TargetError, PermissionDeniedError) as error:
            if not parent:
                raise
            self.left[pid] = str(error)
            return
        try:
            chain = ChainWriter(self.writer.place(pid), self.writer.key, force=False)
        except BaseException:
            target.close()
            raise
        self.members.append(Member(target, chain, self.interrupted))

    def _bury(self, member: Member) -> None:
        self.members.remove(member)
        member.close()
        if self.adopter and member.target.pid != self.root:
            self._reap(member.target.pid)

    def _is_ours(self, pid: int) -> bool:
        """A child of ours that helps us: it has our command line, since it has not called exec."""
        try:
            ours = Path(f"/proc/{pid}/cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes()
        except OSError:
            return False
        if ours:
            self._ours.add(pid)
        return ours

    def _reap(self, pid: int) -> bool:
        """Whether it was a child of ours that has ended."""
        if pid == self.root:
            return False
        try:
            return os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:
            return False

    # -- epochs -----------------------------------------------------------------------------------

    def take(self) -> TreeRow:
        """Take one epoch of the whole tree and return its row.

        Raises:
            StorageError: a part of it could not be written; its pages come with the next one.
            StopTimeoutError: a thread did not stop; nothing was taken.
            EpochSkippedError: it cannot be taken now; nothing is lost, and the next one has it all.
            MaxStopError: they would have stood for too long; what is due is copied while they run.
            TargetGoneError: all processes have ended.
            SessionInterrupted: a base was under way and has been dropped.
        """
        for n in range(ROUNDS):
            last = n == ROUNDS - 1
            self.find()
            members = self._prepared()
            if not members:
                if self.members and not last:
                    continue
                if self.left:
                    raise EpochSkippedError(f"no process of the tree can be followed: {self._why_left()}")
                raise TargetGoneError("all processes of the tree have ended")
            try:
                window = self._window(members, last)
            except TargetGoneError:
                continue  # one of them
            whole = self._note_ends(members, window)
            if window.windows and (whole or last):
                row = self._write(members, window)
                if row:
                    return row
        raise EpochSkippedError("processes of the tree begin and end faster than an epoch is taken")

    def _why_left(self) -> str:
        return "; ".join(f"process {pid} ({command_name(pid)}): {why}" for pid, why in self.left.items())

    def _window(self, members: list[Member], without_born: bool) -> TreeWindow:
        for member in members:
            member.target.check_stop()
        try:
            return self.tree.window(
                [TreeMember(m.target.tracee, m.target.space, m.session.pending) for m in members],
                [pid for pid in self.left if pid not in self._ours],
                sorted(self._ours),
                self.adopter,
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
                member.prepare(self.tree)
                member.target.share_time(self._reading)
                ready.append(member)
            except (NewMemoryError, TargetGoneError, FileNotFoundError, ProcessLookupError):
                self._renew(member)
            except (StorageError, EpochSkippedError, MaxStopError):
                raise
            except (TargetError, PermissionDeniedError) as error:
                # What it has become by exec is nothing that can be followed.
                self.left[member.target.pid] = str(error)
                self._tried[member.target.pid] = time.monotonic()
                self._bury(member)
        return ready

    def _renew(self, member: Member) -> None:
        """Its memory has gone: it has called exec, or has ended."""
        if member.target.ended(EXEC_POLL):
            self._bury(member)
        else:
            member.renew()

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

    def _write(self, members: list[Member], window: TreeWindow) -> TreeRow | None:
        """Make an epoch; None: one that stores memory for others has ended before it was described."""
        started = time.perf_counter()
        taken = [
            (member, result)
            for member, result in zip(members, window.windows, strict=True)
            if isinstance(result, Window)
        ]
        left_out = self._left_out(members, taken, window)
        storing = {number for _, result in taken for *_, number in result.elsewhere}
        parts: dict[int, Part] = {}

        def draft(member: Member, result: Window) -> None:
            part = member.draft(result, parts)
            if part:
                parts[member.number] = part

        try:
            # Those that store shared memory first, in the order in which they joined: the others name
            # their epochs.
            for member, result in taken:
                if member.number in storing:
                    draft(member, result)
                    if member.number not in parts:
                        break
            whole = storing <= parts.keys()
            if whole:
                others = [pair for pair in taken if pair[0].number not in storing]
                side_by_side(lambda pair: draft(*pair), others)
            # Also where it is not whole: a base was long in the making.
            drafts = [part.draft for part in parts.values() if part.draft]
            make_safe([draft.file for draft in drafts])
        except BaseException:
            for part in parts.values():
                part.drop()
            raise
        for part in parts.values():
            part.member.keep(part)
        self._reading = max(len(drafts), self._reading * 7 // 8, 1)
        if not whole or not parts:
            return None
        rows = {number: part.row for number, part in parts.items()}
        left_out += [
            LeftOut(m.target.pid, command_name(m.target.pid), "it ended, or called exec, a moment after")
            for m, _ in taken
            if m.number not in rows
        ]
        row = self._commit([rows[m.number] for m, _ in taken if m.number in rows], left_out, window, started)
        for part in parts.values():
            part.member.session.untold = []
        return row

    def _left_out(
        self, members: list[Member], taken: list[tuple[Member, Window]], window: TreeWindow
    ) -> list[LeftOut]:
        """Processes that lived at the stop and are not in it."""
        reasons = dict(self.left)
        for pid in window.born:
            reasons.setdefault(pid, "it was born a moment before")
        inside = {member.target.pid for member, _ in taken}
        for member in members:
            if member.target.pid not in inside and member in self.members:
                reasons[member.target.pid] = "its memory could not be taken at that moment (exec)"
        return [LeftOut(pid, command_name(pid), why) for pid, why in reasons.items()]

    def _commit(
        self, rows: list[EpochRow], left_out: list[LeftOut], window: TreeWindow, started: float
    ) -> TreeRow:
        row = TreeRow(
            epoch=self.writer.next_epoch,
            pid=self.root,
            engine=self.engine,
            base=all(r.base for r in rows),
            pages=sum(r.pages for r in rows),
            bytes=sum(r.bytes for r in rows),
            threads=sum(r.threads for r in rows),
            regions=sum(r.regions for r in rows),
            compared=sum(r.compared for r in rows),
            times=Times.of(window),
            left_out=left_out,
            skipped=self.skipped,
            skip_reason=self.skip_reason,
            late=self.late,
            time_ns=time.time_ns(),
            max_dirty=self.max_dirty or None,
            overshoot=max(r.overshoot or 0 for r in rows) if self.max_dirty else None,
        )
        keys = ("pid", "start_time", "comm", "directory", "epoch", "digest")
        processes = [{k: stored[k] for k in keys} for stored in (r.to_json() for r in rows)]
        digest = self.writer.commit(processes, [one.to_json() for one in left_out], row.to_json())
        self.skipped, self.skip_reason = 0, ""
        write_us = round((time.perf_counter() - started) * 1e6, 1)
        return replace(row, write_us=write_us, digest=digest, processes=rows)

    # -- what the loop asks of a target -----------------------------------------------------------

    @property
    def fds(self) -> Iterable[int]:
        """Readable once a limit of dirty pages is reached."""
        return [member.target.space.full_fd for member in self.members]

    def ended(self) -> bool:
        """Whether no process of the tree is left."""
        lost = any(lives(pid) for pid in self.left)
        return not lost and all(member.target.ended() for member in self.members)

    def settle(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        results = [m.target.tracee.settle(max(0.0, deadline - time.monotonic())) for m in self.members]
        return all(results)

    def close(self) -> None:
        """Take every trap away; all run on. Idempotent."""
        for member in list(self.members):
            self.members.remove(member)
            member.close()
        self.tree.close()

    def __enter__(self) -> TreeSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _has_memory_of_its_own(pid: int, parent: int) -> bool:
    deadline = time.monotonic() + VFORK_SECONDS
    while shares_memory(pid, parent):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True
