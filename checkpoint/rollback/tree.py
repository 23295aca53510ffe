"""Put a whole tree of live processes back to an epoch: all of them, or none."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from checkpoint.epoch import LeftOut
from checkpoint.errors import RollbackRefusedError
from checkpoint.rollback.order import check_same_process
from checkpoint.rollback.outcome import Outcome
from checkpoint.rollback.own_process import in_own_process, urgent
from checkpoint.rollback.plan import Changes
from checkpoint.rollback.sharers import Mappers
from checkpoint.rollback.work import ProcessRollback
from checkpoint.tree import TreeEpoch
from checkpoint.tree_member import lives, name_of
from checkpoint.view import View
from uffdtrack import MAX_STOP, Tracee, children, stop_together, watchdog
from uffdtrack.errors import TargetError, TargetGoneError, UffdtrackError

BORN_SECONDS = 0.1
"""So long we wait, while all others stand, for a call of a process that will be ended (`Tracee.stop`)."""

SETTLING = 1.0
"""Seconds that a process which was killed may need."""


@dataclass(slots=True)
class TreeOutcome:
    """What a rollback did.

    Attributes:
        processes: what it did to each, by pid.
        ended: processes born since the epoch, which it has ended.
    """

    epoch: int
    processes: dict[int, Outcome]
    ended: list[int] = field(default_factory=list)
    pause_us: float = 0.0
    warnings: list[str] = field(default_factory=list)


def tree_outcome_row(pid: int, outcome: TreeOutcome) -> dict[str, Any]:
    """The line of `--json`."""
    return {"schema": "uffdtrack/tree-rollback/1", "pid": pid, **dataclasses.asdict(outcome)}


def tree_outcome_of(answer: Mapping[str, Any]) -> TreeOutcome:
    """Read what `tree_outcome_row` has made, from JSON."""
    parts = {part.name: answer[part.name] for part in dataclasses.fields(TreeOutcome)}
    parts["processes"] = {int(pid): Outcome(**one) for pid, one in parts["processes"].items()}
    return TreeOutcome(**parts)


def rollback_tree(
    pid: int, entry: TreeEpoch, views: dict[int, View], anyway: bool = False, max_stop: float = MAX_STOP
) -> TreeOutcome:
    """Put all processes back to an epoch of a tree, which the caller has verified.

    Args:
        pid: one of them.
        views: one of each, by pid, without what others store for it.
        anyway: end processes that were born since, and ignore those that lived and are not in the epoch.
        max_stop: see `rollback`.

    Raises:
        RollbackRefusedError: we cannot do it; all are as they were.
        TargetError: it failed on the way; the message says in what state they are.
    """
    check_processes(pid, entry, views, anyway, check_same_process)
    with watchdog(max_stop):
        return in_own_process(lambda: _rollback(entry, views, anyway))


def check_processes(
    pid: int, entry: TreeEpoch, views: dict[int, View], anyway: bool, check: Callable[[int, View], None]
) -> None:
    """Check that an epoch's processes live, and that `pid` is one of them; see `rollback_tree`.

    Args:
        check: raises what is wrong with one of them.

    Raises:
        RollbackRefusedError: they do not, or it is none.
    """
    if pid not in views:
        raise RollbackRefusedError(
            f"process {pid} does not belong to epoch {entry.epoch} of {entry.path.parent}"
        )
    if entry.left_out and not anyway:
        raise RollbackRefusedError(
            f"epoch {entry.epoch} lacks {_named(entry.left_out)}; the rest would be put back without it"
        )
    for process in entry.processes:
        try:
            check(process.pid, views[process.pid])
        except (TargetGoneError, RollbackRefusedError) as error:
            raise RollbackRefusedError(
                f"process {process.pid} ({process.comm}) of epoch {entry.epoch} has ended"
            ) from error


def _named(processes: list[LeftOut]) -> str:
    return ", ".join(f"process {p.pid} ({p.comm}: {p.reason})" for p in processes)


def _rollback(entry: TreeEpoch, views: dict[int, View], anyway: bool) -> TreeOutcome:
    # Nothing of it may wait for the collector of garbage while the processes stand.
    gc.disable()
    works = prepared(views, anyway)
    with ExitStack() as stack:
        tracees = {pid: stack.enter_context(Tracee(pid)) for pid in views}
        try:
            started = stop_together(list(tracees.values()))
        except TargetGoneError as error:
            raise RollbackRefusedError(f"of epoch {entry.epoch} {error}") from error
        with urgent():
            outcome = put_back(works, tracees, entry, anyway, set())
        for tracee in tracees.values():
            tracee.resume()
        outcome.pause_us = round((time.perf_counter() - started) * 1e6, 1)
    return concluded(outcome, works)


def prepared(
    views: dict[int, View], anyway: bool, changes: Mapping[int, Changes] | None = None
) -> dict[int, ProcessRollback]:
    """The work on each process, planned as far as that goes while they run.

    Args:
        changes: of each; None: all of their memory is compared.
    """
    works: dict[int, ProcessRollback] = {}
    mappers = Mappers(views)
    try:
        for pid, view in views.items():
            with _about(pid):
                known = changes[pid] if changes else None
                works[pid] = ProcessRollback(pid, view, anyway, _shared_elsewhere(view), known, mappers)
        mappers.look_anew()
    except BaseException:
        for work in works.values():
            work.close()
        raise
    return works


def put_back(
    works: dict[int, ProcessRollback],
    tracees: dict[int, Tracee],
    entry: TreeEpoch,
    anyway: bool,
    others: set[int],
) -> TreeOutcome:
    """Do the work on all processes, which stand, and end those that were born since.

    Args:
        others: further processes of the tree.

    Raises: as `rollback_tree`.
    """

    def find() -> list[int]:
        found = {*_born(list(works), entry), *(others - {*works, *(p.pid for p in entry.left_out)})}
        return sorted(pid for pid in found if lives(pid))

    born = find()
    if born and not anyway:
        names = ", ".join(f"{pid} ({name_of(pid)})" for pid in born)
        raise RollbackRefusedError(
            f"processes born since epoch {entry.epoch} would be unknown to the others: {names}; end "
            "them first, or give --anyway; all are as they were"
        )
    with ExitStack() as stack:
        born = _hold(stack, born, find)
        for work in works.values():
            work.sharing.mappers.together |= set(born)
        _apply_all(works, tracees)
        outcomes, failure = _commit_all(works)
        for pid in born:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if failure:
        raise failure
    return TreeOutcome(entry.epoch, outcomes, born)


def _hold(stack: ExitStack, new: list[int], find: Callable[[], list[int]]) -> list[int]:
    """Stop processes that will be ended, with those that they make meanwhile: they share memory with others.

    When `stack` closes, they run on, if they live.
    """
    held: list[int] = []
    while new:
        for pid in new:
            tracee = stack.enter_context(Tracee(pid))
            stack.callback(tracee.settle, SETTLING)  # who has been killed is reaped
            stack.callback(tracee.resume)
            with suppress(TargetGoneError), _about(pid):
                tracee.stop(patience=BORN_SECONDS)
        held += new
        new = [pid for pid in find() if pid not in held]
    return held


def concluded(outcome: TreeOutcome, works: dict[int, ProcessRollback]) -> TreeOutcome:
    """With its times and its warnings; all run."""
    said: dict[str, list[str]] = {}
    for pid, one in outcome.processes.items():
        one.pause_us = outcome.pause_us
        for word in [*one.warnings, *works[pid].differences()]:
            said.setdefault(word, []).append(f"{pid} ({name_of(pid)})")
    for word, of in said.items():
        outcome.warnings.append(f"process{'es' * (len(of) > 1)} {', '.join(of)}: {word}")
    return outcome


def _apply_all(works: dict[int, ProcessRollback], tracees: dict[int, Tracee]) -> None:
    for pid, work in works.items():
        with _about(pid):
            work.check(tracees[pid])
    done: list[int] = []
    # Nothing that may be refused is left when the first thread ends.
    for pid, step in [(p, s) for s in (ProcessRollback.map_back, ProcessRollback.apply) for p in works]:
        try:
            with _about(pid):
                step(works[pid])
        except UffdtrackError as error:
            states = {one: works[one].taken_back(error) for one in reversed(done) if one != pid}
            torn = [before for before, state in states.items() if type(state) is TargetError]
            if not torn:
                raise type(error)(f"{error}; so are the others" if states else str(error)) from error
            raise TargetError(
                f"{error}; what was put back already could not be taken back of {torn}"
            ) from error
        if pid not in done:
            done.append(pid)


def _commit_all(works: dict[int, ProcessRollback]) -> tuple[dict[int, Outcome], UffdtrackError | None]:
    """Commit all, which cannot be undone; report a failure of one when all others are done."""
    outcomes: dict[int, Outcome] = {}
    failure: UffdtrackError | None = None
    for pid, work in works.items():
        try:
            with _about(pid):
                outcomes[pid] = work.commit()
        except UffdtrackError as error:
            failure = failure or error
    return outcomes, failure


@contextmanager
def _about(pid: int) -> Iterator[None]:
    """Add to an error which process it was."""
    try:
        yield
    except UffdtrackError as error:
        raise type(error)(f"process {pid} ({name_of(pid)}): {error}") from error


def _shared_elsewhere(view: View) -> list[tuple[int, int]]:
    """The ranges that another process of the tree has stored, and puts back."""
    return [(start, end) for start, end, *_ in view.epoch.facts.elsewhere or ()]


def _born(pids: list[int], entry: TreeEpoch) -> list[int]:
    """Living descendants that are not in the epoch. The processes of the epoch stand."""
    known = {*pids, *(p.pid for p in entry.left_out), os.getpid(), os.getppid()}
    found: list[int] = []
    look = list(pids)
    while look:
        for pid in children(look.pop()):
            if pid in known or not lives(pid):
                continue
            known.add(pid)
            found.append(pid)
            look.append(pid)
    return sorted(found)
