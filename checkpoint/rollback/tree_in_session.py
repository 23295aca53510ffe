"""A rollback of a tree of processes by the session that follows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from checkpoint.chain import Chain
from checkpoint.errors import RollbackRefusedError
from checkpoint.rollback.apart import Apart, apart
from checkpoint.rollback.identity import check_identity
from checkpoint.rollback.in_session import Since, await_safe, go_on_from
from checkpoint.rollback.own_process import undisturbed, urgent
from checkpoint.rollback.request import Request, fingerprint_of_all
from checkpoint.rollback.tree import TreeOutcome, check_processes, concluded, prepared, put_back
from checkpoint.rollback.work import ProcessRollback
from checkpoint.tree import Tree, TreeEpoch
from checkpoint.tree_member import Member, lives
from checkpoint.tree_session import TreeSession
from uffdtrack import standing_together
from uffdtrack.errors import InvalidInputError, MaxStopError, PermissionDeniedError, StopTimeoutError


class TreeSessionRollback:
    """Rolls the processes of a session back, between two of its epochs. The session goes on from there."""

    def __init__(self, session: TreeSession, directory: Path) -> None:
        """Args:
        directory: of the tree.
        """
        self._session = session
        self._directory = directory

    def __call__(self, request: Request, begun: Callable[[], None]) -> TreeOutcome:
        """Do it. `begun` is called right before a process is touched.

        Raises:
            RollbackRefusedError, TargetError: as `rollback_tree`.
            StorageError: epochs in flight could not be written.
            InvalidInputError: the tree is not what the client has verified.
            TargetBusyError: we should not stop a process now.
        """
        await_safe(self._session.pipeline)
        with undisturbed():
            begun()
            return self._roll_back(request)

    def _roll_back(self, request: Request) -> TreeOutcome:
        tree = Tree(self._directory)
        tree.entries()
        entry = tree.open(request.epoch)
        views = entry.views()
        if (entry.digest, fingerprint_of_all(views)) != (request.digest, request.files):
            raise InvalidInputError(f"{entry.path} was replaced while it was read; try again")
        check_processes(request.pid, entry, views, request.anyway, check_identity)
        members = self._members_of(entry)
        for member in members.values():
            member.target.check_stop()
        known = {pid: self._apart(member, views[pid].epoch.epoch) for pid, member in members.items()}
        changes = {
            pid: Since(members[pid].target, one.where if one else None, one_of_many=True)
            for pid, one in known.items()
        }
        works: dict[int, ProcessRollback] = {}
        try:
            works = prepared(views, request.anyway, changes)
            for work in works.values():
                work.most = request.max_stop
            outcome = self._stand(works, members, changes, entry, request.anyway)
        except (PermissionDeniedError, StopTimeoutError) as error:
            for member in members.values():
                why = member.target.why_not_stopped(error)
                if why:
                    raise why from error
            raise
        except MaxStopError:
            for member in members.values():
                member.rebase()  # all may be pending: a stop has no time for that
            raise
        finally:
            for work in works.values():
                work.close()
            for member in members.values():
                member.target.was_changed()
        for pid, member in members.items():
            go_on_from(works[pid], known[pid], member.target, member.stream, member.sink)
            member.forget()
        self._session.writer.follow(entry)
        return concluded(outcome, works)

    def _members_of(self, entry: TreeEpoch) -> dict[int, Member]:
        found = {}
        there = {member.chain.directory.name: member for member in self._session.members}
        for process in entry.processes:
            member = there.get(process.directory)
            if not member or member.target.pid != process.pid or not member.sink.tip.number:
                raise RollbackRefusedError(
                    f"the session on {self._directory} does not follow process {process.pid} "
                    f"({process.comm}) of epoch {entry.epoch}: end the session first"
                )
            found[process.pid] = member
        return found

    def _apart(self, member: Member, epoch: int) -> Apart | None:
        if member.stream.is_due:
            return None
        return apart(Chain(member.chain.directory).files(), member.sink.tip.parent, epoch)

    def _stand(
        self,
        works: dict[int, ProcessRollback],
        members: dict[int, Member],
        changes: dict[int, Since],
        entry: TreeEpoch,
        anyway: bool,
    ) -> TreeOutcome:
        session = self._session
        targets = {pid: member.target for pid, member in members.items()}
        others = {m.target.pid for m in session.members} | set(session.roster.left)
        others = {pid for pid in others - session.roster.ours if lives(pid)}
        tracees = {pid: target.tracee for pid, target in targets.items()}
        with urgent():
            with standing_together([(t.space, t.tracee) for t in targets.values()]) as started:
                stood_us = sum(one.stands() for one in changes.values())
                outcome = put_back(works, tracees, entry, anyway, others)
            stood_us += (time.perf_counter() - started) * 1e6
        outcome.pause_us = round(stood_us, 1)
        return outcome
