"""The checkpoint cycle: stop, copy, resume, write; what is not safe on disk stays pending."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from checkpoint.chain import ChainWriter
from checkpoint.epoch import EpochRow, Times, TreeRow
from checkpoint.image import SCHEMA, EpochWriter
from checkpoint.objects import Snapshot, increment
from checkpoint.once import Once
from checkpoint.targets import Target
from checkpoint.targets.process import EXEC_POLL, EXEC_SECONDS
from uffdtrack import PAGE, Pending, Region, Runs, Window
from uffdtrack.errors import (
    EpochSkippedError,
    MaxStopError,
    NewMemoryError,
    StopTimeoutError,
    StorageError,
    TargetGoneError,
)

CHUNK = 32 << 20
QUIET = 4 << 20
"""Bytes dirtied while the base was copied that the stop may as well copy."""
ATTEMPTS = 3
"""Epochs in a row that may fail before a session gives up."""
REST = 0.05
"""Seconds between two looks at a target of which no epoch can be taken."""
PATIENCE = 3
"""Seconds in which the stop that ends a base is tried again."""


R = TypeVar("R", EpochRow, TreeRow)
R_co = TypeVar("R_co", EpochRow, TreeRow, covariant=True)


@dataclass(frozen=True)
class Plan:
    """When a session takes epochs, in seconds; `count` includes the base. None: no limit."""

    every: float
    count: int | None
    duration: float | None


class Settling(Protocol):
    """What can be waited for, up to some seconds, after a stop that has failed."""

    def settle(self, timeout: float) -> bool: ...


class Taker(Protocol[R_co]):
    """What the loop of a session asks of it: of one target's, or of a tree's."""

    skipped: int
    skip_reason: str
    late: int

    @property
    def target(self) -> Settling: ...

    def take(self) -> R_co: ...


@dataclass(slots=True)
class Draft:
    """An epoch that is written and not safe yet."""

    file: EpochWriter
    row: EpochRow
    objects: Snapshot | None
    started: float


class SessionInterrupted(Exception):  # noqa: N818 - it is no error
    """The user has asked for the end while a base was copied."""


class Session:
    """Takes epochs of one target into one directory.

    Attributes:
        late: intervals that have passed since the next epoch was due.
        untold: warnings that stand in no row which was given out.
        skipped: epochs that could not be taken since the last row; `skip_reason` says why, or is "".
    """

    def __init__(
        self,
        target: Target,
        chain: ChainWriter,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Args:
        interrupted: asked while a base is copied; where it says so the base is dropped.
        """
        self.target = target
        self.interrupted = interrupted
        self.chain = chain
        self.pending = Pending()
        self.late = 0
        self.untold: list[str] = []
        self.skipped = 0
        self.skip_reason = ""
        self._attached = True
        self._based = False
        self._objects: Snapshot | None = None
        self._described = Once(_describe_regions)
        self._begun: EpochWriter | None = None

    def take(self) -> EpochRow:
        """Take one epoch, the base first, and return its row.

        Raises:
            StorageError: it could not be written; its pages come with the next one.
            StopTimeoutError: a thread did not stop; nothing was taken.
            EpochSkippedError: it cannot be taken now; nothing is lost, and the next one has it all.
            MaxStopError: the target would have stood for too long; the next one is copied while it runs.
            TargetGoneError: the target has ended.
            SessionInterrupted: a base was under way and has been dropped.
        """
        deadline = time.monotonic() + EXEC_SECONDS
        while True:
            try:
                self.prepare()
                return self.write(self._window())
            except (NewMemoryError, TargetGoneError) as error:
                self.renew()
                if isinstance(error, TargetGoneError) and self.target.ended(EXEC_POLL):
                    raise
                if self.interrupted():
                    raise SessionInterrupted from error
                if time.monotonic() > deadline:
                    raise EpochSkippedError("it calls exec faster than a base is taken") from error
            except BaseException:
                self.abandon()
                raise

    @property
    def in_base(self) -> bool:
        """Whether a base has been begun that the next `draft` makes whole."""
        return self._begun is not None

    def _window(self) -> Window:
        if self._begun:
            return self._close_base()
        try:
            return self.target.window(self.pending)
        except MaxStopError:
            self.rebase()
            raise

    def attach(self) -> None:
        """Have the memory that the process has now."""
        if not self._attached:
            self.target.reattach()
            self._attached = True

    def prepare(self) -> None:
        """Where a base is due: arm, and copy while the target runs. The window is to stop it only for what it
        wrote meanwhile, and `draft` makes the base whole."""
        if self._based or self._begun:
            return
        self.attach()
        self.pending.clear()
        self._begun = self.chain.begin()
        try:
            self._copy_running(self._begun)
        except BaseException:
            self.abandon()
            raise

    def write(self, window: Window) -> EpochRow:
        """Make an epoch of a window that was taken with this session's `pending`; returns its row.

        Raises:
            StorageError: it could not be written; its pages come with the next one.
            TargetGoneError: the target has ended meanwhile.
        """
        draft = self.draft(window, {})
        try:
            draft.file.make_safe()
        except BaseException:
            draft.file.abort()
            raise
        self.keep(draft)
        self.untold = []
        return draft.row

    def draft(self, window: Window, more: dict[str, Any]) -> Draft:
        """`write`, up to where the file is to be made safe.

        Args:
            more: further facts for the image.
        """
        begun, self._begun = self._begun, None
        try:
            return self._write(lambda: begun or self.chain.begin(), window, bool(begun), more)
        except BaseException:
            if begun:
                begun.abort()
            raise

    def keep(self, draft: Draft) -> None:
        """It is safe, so that what it holds is no more pending."""
        self.pending.clear()
        self.skipped, self.skip_reason = 0, ""
        assert draft.row.digest
        self.chain.committed(draft.row.digest)
        self._objects = draft.objects
        self._based = True
        draft.row = replace(draft.row, write_us=round((time.perf_counter() - draft.started) * 1e6, 1))

    def _close_base(self) -> Window:
        """The stop that ends a base. A base is not thrown away for one that is late."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.target.window(self.pending)
            except EpochSkippedError:
                if time.monotonic() > deadline:
                    raise
            if self.interrupted():
                raise SessionInterrupted
            if self.target.settle(REST):
                time.sleep(REST)

    def rebase(self) -> None:
        """A stop has lasted for too long: the next epoch is a base, which is copied while the target runs."""
        self.abandon()
        self._based = False

    def renew(self) -> None:
        """The memory has been exchanged for another, so the next epoch is a base."""
        self.rebase()
        self._attached = False

    def abandon(self) -> None:
        """Drop a base that was begun. Idempotent."""
        if self._begun:
            self._begun.abort()
            self._begun = None

    def _copy_running(self, writer: EpochWriter) -> None:
        size = 1 << 62
        everything = True
        while True:
            runs, reset = self.target.harvest(everything)
            writer.void(reset)
            before, size = size, int((runs[:, 1] - runs[:, 0]).sum())
            if size <= QUIET or size > before // 2:
                self.pending.add(runs, reset)
                return
            for part in chunks(runs, CHUNK):
                if self.interrupted():
                    raise SessionInterrupted
                data, zero, contents = self.target.copy(part)
                writer.add(data, contents)
                writer.add_zero(zero)
            everything = False

    def _write(
        self, begin: Callable[[], EpochWriter], window: Window, base: bool, more: dict[str, Any]
    ) -> Draft:
        started = time.perf_counter()
        rows: list[EpochRow] = []
        mappings, left_out, left_out_bytes = self._described(window.regions)
        limit = self.target.max_dirty

        def describe(pages: int, content: int) -> dict[str, Any]:
            row = EpochRow(
                epoch=self.chain.next_epoch,
                base=base,
                pid=self.target.pid,
                engine=self.target.engine,
                pages=pages,
                bytes=content,
                scanned=window.scanned,
                times=Times.of(window),
                threads=len(window.threads),
                regions=len(window.regions),
                compared=window.compared,
                unreadable=window.unreadable,
                left_out=left_out,
                left_out_bytes=left_out_bytes,
                warnings=self.untold,
                late=self.late,
                skipped=self.skipped,
                skip_reason=self.skip_reason,
                time_ns=time.time_ns(),
                max_dirty=limit or None,
                overshoot=(0 if base else max(0, (window.touched or pages) - limit)) if limit else None,
            )
            rows.append(row)
            return {**self._meta(row, window), "regions": mappings, **described, **more}

        writer = None
        try:
            notes, described = self.target.describe(window)
            self.untold = [*self.untold, *described.pop("warnings", [])]
            objects = described.pop("objects", None)
            if objects:
                described.update(increment(None if base else self._objects, objects))
            writer = begin()
            writer.void(window.reset)
            writer.add(window.data, window.contents)
            writer.add_zero(window.zero)
            _, digest = writer.finish(describe, notes, window.regions, self.chain.key)
        except BaseException:
            if writer:
                writer.abort()
            raise
        return Draft(writer, replace(rows[0], digest=digest), objects, started)

    def _meta(self, row: EpochRow, window: Window) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "epoch": self.chain.next_epoch,
            "base": row.base,
            "parent": self.chain.parent,
            "keyed": bool(self.chain.key),
            "row": row.to_json(),
            "reset": window.reset.tolist(),
            "threads": [t.tid for t in window.threads if not t.worker],
            "kernel_threads": [t.tid for t in window.threads if t.worker],
        }


def _describe_regions(regions: list[Region]) -> tuple[list[list[Any]], int, int]:
    """As an image has them; how many are left out, and of how many bytes."""
    out = [r.size for r in regions if r.left_out]
    rows = [[r.start, r.end, r.permissions, r.offset, r.device, r.inode, r.name, r.kind] for r in regions]
    return rows, len(out), sum(out)


def chunks(runs: Runs, size: int) -> Iterator[Runs]:
    """Cut ranges into lists of at most `size` bytes each."""
    parts: list[tuple[int, int]] = []
    room = size
    for first, end in runs.tolist():
        start = first
        while start < end:
            n = min(room, end - start)
            parts.append((start, start + n))
            start += n
            room -= n
            if room < PAGE:
                yield np.array(parts, np.uint64)
                parts, room = [], size
    if parts:
        yield np.array(parts, np.uint64)


def _skip(session: Taker[R], error: EpochSkippedError, warn: Callable[[str], None]) -> None:
    """Count an epoch that could not be taken, and say why, once."""
    session.skipped += 1
    if error.reason != session.skip_reason:
        session.skip_reason = error.reason
        warn(f"epochs are skipped while {error.reason}")


def _rest(session: Taker[R], wait: Callable[[float], bool], seconds: float) -> bool:
    """Wait for the next attempt. A thread that was asked to stop, and does so now, is let go at once.

    `wait` may come back early all the time: the limit of dirty pages stays reached.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        settled = session.target.settle(min(left, REST))
        if wait(max(0.0, end - time.monotonic()) if settled else 0):
            return True
        if settled:
            time.sleep(max(0.0, min(REST, end - time.monotonic())))
    return wait(0)


def run_session(
    session: Taker[R],
    plan: Plan,
    wait: Callable[[float], bool],
    emit: Callable[[R], None],
    warn: Callable[[str], None],
) -> bool:
    """Take epochs as planned.

    Args:
        wait: sleeps for some seconds, or until the target's limit of dirty pages is reached; True: the
            session is to end, or the target has.
        emit: gets the row of each epoch.
        warn: gets what went wrong and did not end the session.

    Returns:
        Whether the target has ended.

    Raises:
        StorageError: `ATTEMPTS` epochs in a row could not be written, or the last one.
    """
    started = due = time.monotonic()
    taken = 0
    failed = 0
    failure: StorageError | None = None

    def pause(seconds: float) -> bool:
        return _rest(session, wait, seconds) if session.skipped else wait(seconds)

    while plan.count is None or taken < plan.count:
        session.late = int((time.monotonic() - due) / plan.every) if taken else 0
        if session.late:
            due = time.monotonic()
        try:
            row = session.take()
            if row.skipped:
                warn(f"epochs go on: {row.skipped} {'was' if row.skipped == 1 else 'were'} skipped")
            emit(row)
            taken += 1
            failed, failure = 0, None
        except TargetGoneError:
            if not taken:
                raise
            return True
        except SessionInterrupted:
            break
        except EpochSkippedError as error:
            _skip(session, error, warn)
        except (StorageError, StopTimeoutError, MaxStopError) as error:
            session.target.settle(0)
            failed += 1
            failure = error if isinstance(error, StorageError) else None
            if not taken or failed == ATTEMPTS:
                raise
            warn(f"{error}; what it would have held comes with the next epoch")
        if plan.count is not None and taken >= plan.count:
            break
        due += plan.every
        if plan.duration is not None and max(due, time.monotonic()) >= started + plan.duration:
            left = started + plan.duration - time.monotonic()
            # It may end early, at a limit of dirty pages: then there is an epoch to take, and time left.
            if left <= 0 or pause(left) or time.monotonic() >= started + plan.duration:
                break
            due = time.monotonic()
            continue
        if pause(max(0.0, due - time.monotonic())):
            break
        due = min(due, time.monotonic())
    if failure:
        raise failure
    return False
