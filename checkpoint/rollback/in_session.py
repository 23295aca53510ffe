"""A rollback by the session that follows the target: it knows what was written since the epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from checkpoint.chain import Chain
from checkpoint.image import EpochFile
from checkpoint.pipeline import Pipeline
from checkpoint.recent import RecentSink
from checkpoint.rollback.apart import Apart, apart
from checkpoint.rollback.identity import check_identity
from checkpoint.rollback.outcome import Outcome
from checkpoint.rollback.own_process import undisturbed, urgent
from checkpoint.rollback.ready import compare_ahead, nothing_ready
from checkpoint.rollback.request import LAST, Request, fingerprint
from checkpoint.rollback.stored import Image
from checkpoint.rollback.work import ProcessRollback
from checkpoint.session import Session
from checkpoint.sink import ChainSink
from checkpoint.stream import Stream
from checkpoint.targets.process import ProcessTarget
from checkpoint.view import View
from uffdtrack import Runs, Standing, look_early, standing
from uffdtrack.errors import (
    InvalidInputError,
    MaxStopError,
    PermissionDeniedError,
    StopTimeoutError,
    StorageError,
)
from uffdtrack.runs import Pages, merge_runs, no_runs, subtract, to_runs

MOST_KNOWN = 1024
"""Files of a chain that we keep parsed."""


class Since:
    """What was written since an epoch: by the chain, what is pending, and a look when the target stands."""

    def __init__(self, target: ProcessTarget, stored: Runs | None, one_of_many: bool = False) -> None:
        """Args:
        stored: where the last epoch may have other contents; None: that is not known.
        one_of_many: others store some of the memory that it shares, so its own epochs do not say what was
            written there: such memory is compared.
        """
        self._one_of_many = one_of_many
        self.pid = target.pid
        self._target = target
        self._stored = stored
        self._known: Runs | None = None
        self.standing: Standing | None = None
        self.is_alone: bool | None = None
        self.ready = nothing_ready()
        self.found = no_runs()
        self.maps: bytes | None = None

    def before(self, image: Image) -> Runs | None:
        """Raises: TargetError: the target cannot be looked at."""
        target, pending = self._target, self._target.pending
        if self._stored is None or pending.everything:
            return None
        look_early(target.space, target.tracee, pending)
        known = merge_runs(self._stored, pending.pages, pending.reset)
        self.ready = compare_ahead(target.space, image, known)
        self._known = subtract(known, self.ready.compared)
        return self._known

    def look(self) -> Runs | None:
        assert self.standing
        if self._one_of_many:  # others of the tree may have written its memory, which "ring" does not see
            self._target.space.passed_over()
        looked = self.standing.look()  # if all is compared, too: "sync" takes traps away where it has looked
        if self._known is None or self._target.pending.everything:
            return None
        self.found = merge_runs(self.found, looked)
        self.is_alone, self.maps = self.standing.is_alone, self.standing.maps
        shared = self.standing.shared if self._one_of_many else no_runs()
        return merge_runs(self._known, self.found, shared)

    def untrap(self, pages: Pages) -> None:
        if self._target.engine == "sync" and len(pages):
            assert self.standing
            self.standing.untrap(to_runs(pages))

    def stands(self) -> float:
        """The target stands, with others; returns for how many us it stood before."""
        target = self._target
        self.standing = Standing(target.space, target.tracee, target.pending)
        stood_us: float = self.standing.stood_us
        return stood_us


class KnownFiles:
    """Opens files of a chain, and parses each once: a file that has its name is never changed."""

    def __init__(self) -> None:
        self._known: dict[Path, EpochFile] = {}

    def __call__(self, path: Path) -> EpochFile:
        known = self._known.get(path)
        if known:
            with suppress(InvalidInputError):  # another one has its name
                known.open().close()
                return known
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[path] = EpochFile(path)
        return self._known[path]


def go_on_from(
    work: ProcessRollback, known: Apart | None, target: ProcessTarget, stream: Stream, sink: ChainSink
) -> None:
    """The next epoch follows that of a rollback, and has all in which its target may differ from it.

    Args:
        known: where that may be; None: not known.
    """
    if not sink.tip.number:
        return  # the epoch is of the chain that this session's base will replace
    if known:
        target.take_back(known.pending)
    else:
        stream.rebase()
    epoch = work.view.epoch
    sink.follow(epoch.epoch, epoch.digest, work.then)


def await_safe(pipeline: Pipeline) -> None:
    """Wait until a session's epochs are safe. Raises: StorageError: some could not be written."""
    if not pipeline.await_idle():
        raise StorageError("the session could not write its last epochs; try again")


class SessionRollback:
    """Rolls the target of a session back, between two of its epochs. The session goes on from there."""

    def __init__(
        self, session: Session, target: ProcessTarget, directory: Path, recent: RecentSink | None = None
    ) -> None:
        """Args:
        directory: of its chain.
        recent: what keeps its epochs instead of the chain.
        """
        self._recent = recent
        self._session = session
        self._target = target
        self._directory = directory
        self._files = KnownFiles()

    def __call__(self, request: Request, begun: Callable[[], None]) -> Outcome:
        """Do it. `begun` is called right before the target is touched.

        Raises:
            RollbackRefusedError, TargetError: as `rollback`.
            StorageError: epochs in flight could not be written.
            InvalidInputError: the chain is not what the client has verified.
            TargetBusyError: we should not stop the target now.
        """
        await_safe(self._session.pipeline)
        with undisturbed():  # no row is printed meanwhile: we are not of the terminal's group then
            begun()
            return self._roll_back(request)

    def _roll_back(self, request: Request) -> Outcome:
        view, where, known = self._find(request)
        check_identity(request.pid, view)
        if request.pid != self._target.pid:
            raise InvalidInputError(f"the session on {self._directory} follows process {self._target.pid}")
        self._target.check_stop()
        since = Since(self._target, where)
        try:
            with ProcessRollback(self._target.pid, view, request.anyway, changes=since) as work:
                work.most = request.max_stop
                outcome = self._stand(work, since)
                if not self._recent:  # there, the next epoch follows the last one, and has what was changed
                    go_on_from(work, known, self._target, self._session.stream, self._session.sink)
                outcome.warnings += work.differences()
        except (PermissionDeniedError, StopTimeoutError) as error:
            raise self._target.why_not_stopped(error) or error from error
        except MaxStopError:
            self._session.stream.rebase()  # all is pending: a stop has no time for that
            raise
        finally:
            self._target.was_changed()
        return outcome

    def _find(self, request: Request) -> tuple[View, Runs | None, Apart | None]:
        """The memory of the epoch that is asked for, and where the last epoch may have other contents."""
        is_due = self._session.stream.is_due
        if self._recent:
            if request.digest:
                raise InvalidInputError(f"{self._directory} was a chain, and is not any more; try again")
            view = self._recent.view(None if request.epoch == LAST else request.epoch)
            return view, None if is_due else self._recent.written_since(view.epoch.epoch), None
        chain = Chain(self._directory, self._files)
        files = chain.files()
        view = chain.view(request.epoch, files)
        if (view.epoch.digest, fingerprint(view)) != (request.digest, request.files):
            raise InvalidInputError(f"{view.epoch.path} was replaced while it was read; try again")
        known = None if is_due else apart(files, self._session.sink.tip.parent, request.epoch)
        return view, known.where if known else None, known

    def _stand(self, work: ProcessRollback, since: Since) -> Outcome:
        target = self._target
        with urgent():
            started = time.perf_counter()
            with standing(target.space, target.tracee, target.pending) as since.standing:
                work.check(target.tracee)
                work.map_back()
                work.apply()
                outcome = work.commit()
            stood = time.perf_counter() - started
        outcome.pause_us = round(stood * 1e6 + since.standing.stood_us, 1)
        return outcome
