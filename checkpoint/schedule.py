"""When a session takes epochs, and what it does if it cannot take one."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from checkpoint.errors import StandbyAwayError
from checkpoint.precopy import SessionInterrupted
from checkpoint.session import REST, R, TakenEpoch, Taker
from uffdtrack.errors import (
    MaxStopError,
    StopTimeoutError,
    StorageError,
    TargetBusyError,
    TargetGoneError,
    UffdtrackError,
    WatchdogGoneError,
)

ATTEMPTS = 3
"""Epochs in a row that may fail before a session gives up."""


@dataclass(frozen=True)
class Schedule:
    """When a session takes epochs, in seconds. None: no limit.

    Attributes:
        count: of epochs, the base included.
        duration: from when the base is safe.
    """

    every: float
    count: int | None
    duration: float | None


def run_session(
    session: Taker[R],
    schedule: Schedule,
    wait: Callable[[float], bool],
    emit: Callable[[R], None],
    warn: Callable[[str], None],
    announce: Callable[[int, TakenEpoch[R]], None] = lambda number, epoch: None,
) -> bool:
    """Take epochs as `schedule` says; they are written meanwhile.

    Args:
        wait: sleeps for some seconds, until the target's limit of dirty pages is reached, or the pipeline has
            news; True: the session has to end, or the target has ended.
        emit: gets the row of each epoch when it is safe, in any thread.
        warn: gets text about failures that do not end the session, in any thread.
        announce: gets each epoch when it was taken, with the number that it has when it is safe.

    Returns:
        Whether the target has ended.

    Raises:
        StorageError: we could not write `ATTEMPTS` epochs in a row, or the last one.
        WatchdogGoneError: no further stop may begin; the epochs before are safe.
        OutputError: `emit` has raised it.
    """
    return _Run(session, schedule, wait, emit, warn, announce).run()


class _Run(Generic[R]):
    """A session while it runs.

    Attributes:
        taken, safe: how many epochs are; those between may still be dropped.
        failed: how many attempts in a row have failed; `failure` is the last, if it was the disk's.
    """

    def __init__(
        self,
        session: Taker[R],
        schedule: Schedule,
        wait: Callable[[float], bool],
        emit: Callable[[R], None],
        warn: Callable[[str], None],
        announce: Callable[[int, TakenEpoch[R]], None],
    ) -> None:
        self.session: Taker[R] = session
        self.schedule = schedule
        self.wait = wait
        self.emit: Callable[[R], None] = emit
        self.warn = warn
        self.announce: Callable[[int, TakenEpoch[R]], None] = announce
        self.taken = self.safe = self.failed = 0
        self.failure: StorageError | None = None

    def run(self) -> bool:
        pipeline = self.session.pipeline
        pipeline.tell = self._tell
        try:
            ended = self._take_all()
        except BaseException:
            with contextlib.suppress(UffdtrackError):  # that comes of it
                pipeline.close()
            raise
        pipeline.close()
        return ended

    def _tell(self, epoch: TakenEpoch[R]) -> None:
        self.safe += 1
        self.failed, self.failure = 0, None
        row = epoch.row
        if row.skipped:
            self.warn(f"epochs go on: {row.skipped} {'was' if row.skipped == 1 else 'were'} skipped")
        self.emit(row)

    def _take_all(self) -> bool:
        schedule = self.schedule
        started = due = time.monotonic()
        while True:
            self.session.late = 0
            if not self.session.ahead:
                self._come_due(due if self.taken else time.monotonic(), started)
            try:
                self.session.put(lambda epoch: self.announce(self.taken, epoch))
                self.taken += 1
                if self.taken == 1:
                    started = self.session.rhythm.due = time.monotonic()
                if self.taken == schedule.count:
                    self.session.pipeline.drain()
                    return False
            except TargetGoneError:
                if not self.taken:
                    raise
                self.session.pipeline.drain()
                return True
            except SessionInterrupted:
                break
            except WatchdogGoneError:
                self.session.pipeline.drain()  # what was taken is whole
                raise
            except StandbyAwayError as error:
                self._wait_for_standby(error)
            except TargetBusyError as error:
                self._skip(error)
            except (StorageError, StopTimeoutError, MaxStopError) as error:
                self._note(error)
            if self.session.ahead:
                continue
            due = self.session.rhythm.due + schedule.every
            if schedule.duration is not None and max(due, time.monotonic()) >= started + schedule.duration:
                left = started + schedule.duration - time.monotonic()
                # It may end early, at a limit of dirty pages: then there is an epoch to take, and time left.
                if left <= 0 or self._pause(left) or time.monotonic() >= started + schedule.duration:
                    break
                due = time.monotonic()
                continue
            if self._pause(max(0.0, due - time.monotonic())):
                break
            due = min(due, time.monotonic())
        self.session.pipeline.drain()
        if self.failure:
            raise self.failure
        return False

    def _come_due(self, due: float, started: float) -> None:
        """The next epoch is taken now; say how many may be taken with it."""
        schedule, session = self.schedule, self.session
        most = sys.maxsize if schedule.count is None else schedule.count - self.taken
        if schedule.duration is not None and self.taken:
            most = min(most, 1 + int(max(0.0, started + schedule.duration - due) / schedule.every))
        session.late = session.rhythm.come_due(due, schedule.every, most)

    def _pause(self, seconds: float) -> bool:
        """Wait for the next attempt; True: the session has to end."""
        end = time.monotonic() + seconds
        while True:
            left = max(0.0, end - time.monotonic())
            if self._rest(left) if self.session.skipped else self.wait(left):
                return True
            if not self.session.pipeline.failed:
                return False
            try:
                self.session.pipeline.check()
            except StandbyAwayError as error:
                self._wait_for_standby(error)
            except StorageError as error:
                self._note(error)

    def _wait_for_standby(self, error: StandbyAwayError) -> None:
        self.taken = self.safe
        self._skip(error)

    def _note(self, error: StorageError | StopTimeoutError | MaxStopError) -> None:
        """Count a failure. Raises: it, if there were too many."""
        self.session.settle(0)
        self.failed += 1
        self.failure = None
        if isinstance(error, StorageError):
            self.failure, self.taken = error, self.safe
        if not self.safe or self.failed == ATTEMPTS:
            raise error
        self.warn(f"{error}; what it would have held comes with the next epoch")

    def _skip(self, error: TargetBusyError) -> None:
        """Count an epoch that could not be taken, and say why, once."""
        self.session.skipped += 1
        if error.reason != self.session.skip_reason:
            self.session.skip_reason = error.reason
            self.warn(f"epochs are skipped while {error.reason}")

    def _rest(self, seconds: float) -> bool:
        """Wait for the next attempt. If a thread that was asked to stop does so now, let it go at once.

        `wait` may return early every time: the limit of dirty pages stays reached.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            settled = self.session.settle(min(left, REST))
            if self.wait(max(0.0, end - time.monotonic()) if settled else 0):
                return True
            if settled:
                time.sleep(max(0.0, min(REST, end - time.monotonic())))
        return self.wait(0)
