"""The members of a tree of processes: a process, its descendants, and those that are born meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from checkpoint.chain_writer import ChainWriter
from checkpoint.targets.process import ProcessTarget
from checkpoint.tree import TreeWriter
from checkpoint.tree_member import Member, lives, name_of
from uffdtrack import children, procfs, shares_memory
from uffdtrack.errors import PermissionDeniedError, TargetError, TargetGoneError

VFORK_SECONDS = 0.05
"""How many seconds we wait for a child that has its parent's memory (vfork) to call exec."""
REFUSED_SECONDS = 1.0
"""After so many seconds we try again to attach to a process: it may have called exec."""
UNKNOWN = -1
"""An unknown parent."""


class Roster:
    """The processes of a tree: members, and those that are left out. A process whose parent has ended stays.

    Attributes:
        members: in the order in which they joined: the first that maps an object in memory stores it for all.
        left: living processes that we do not follow, with the reason.
    """

    def __init__(
        self,
        root: int,
        writer: TreeWriter,
        engine: str,
        max_dirty: int | None,
        interrupted: Callable[[], bool],
        adopter: int,
        follow_shared: bool,
    ) -> None:
        """Args: see `TreeSession`."""
        self.root = root
        self.writer = writer
        self.engine = engine
        self.max_dirty = max_dirty
        self.interrupted = interrupted
        self.adopter = adopter
        self.follow_shared = follow_shared
        self.members: list[Member] = []
        self.left: dict[int, str] = {}
        self.ours = {os.getpid(), os.getppid()}
        self._tried: dict[int, float] = {}
        self._attach(root, 0)

    def find(self) -> None:
        """Follow all descendants that we see. The stop finds processes that are born after that."""
        for member in list(self.members):
            if member.target.ended():
                self.bury(member)
        known = {member.target.pid for member in self.members}
        self.left = {pid: why for pid, why in self.left.items() if lives(pid)}
        look = [*known, *self.left, *([self.adopter] if self.adopter else [])]
        while look:
            parent = look.pop()
            for pid in _visible_children(parent):
                if pid in known or pid in self.ours:
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
            target = ProcessTarget(pid, self.engine, self.max_dirty, self.follow_shared)
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

    def bury(self, member: Member) -> None:
        self.members.remove(member)
        member.close()
        if self.adopter and member.target.pid != self.root:
            self._reap(member.target.pid)

    def _is_ours(self, pid: int) -> bool:
        """Whether it is a child of ours that helps us: it has our command line, as it has not called exec."""
        line = procfs.glance(f"/proc/{pid}/cmdline")
        ours = bool(line) and line == procfs.glance("/proc/self/cmdline")
        if ours:
            self.ours.add(pid)
        return ours

    def _reap(self, pid: int) -> bool:
        """Reap it if it was a child of ours that has ended; returns whether it was."""
        if pid == self.root:
            return False
        try:
            return os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:
            return False

    def leave(self, member: Member, why: TargetError | PermissionDeniedError) -> None:
        """Leave it out: we cannot follow what it has become by exec."""
        self.left[member.target.pid] = str(why)
        self._tried[member.target.pid] = time.monotonic()
        self.bury(member)

    def why_left(self) -> str:
        return "; ".join(f"process {pid} ({name_of(pid)}): {why}" for pid, why in self.left.items())

    def ended(self) -> bool:
        """Whether no process of the tree is left."""
        lost = any(lives(pid) for pid in self.left)
        return not lost and all(member.target.ended() for member in self.members)

    def close(self) -> None:
        """Let all run on, untracked. Idempotent."""
        for member in list(self.members):
            self.members.remove(member)
            member.close()


def _has_memory_of_its_own(pid: int, parent: int) -> bool:
    deadline = time.monotonic() + VFORK_SECONDS
    while shares_memory(pid, parent):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def _visible_children(pid: int) -> list[int]:
    """Without those of a process that we may not look into: that one is left out, and so are they."""
    try:
        return children(pid)
    except PermissionDeniedError:
        return []
