"""When a session takes epochs, and what it does if it cannot take one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from checkpoint.precopy import SessionInterrupted
from checkpoint.session import REST, R, Taker
from uffdtrack.errors import (
    MaxStopError,
    StopTimeoutError,
    StorageError,
    TargetBusyError,
    TargetGoneError,
)

ATTEMPTS = 3
"""Epochs in a row that may fail before a session gives up."""


@dataclass(frozen=True)
class Schedule:
    """When a session takes epochs, in seconds; `count` includes the base. None: no limit."""

    every: float
    count: int | None
    duration: float | None


def _skip(session: Taker[Any], error: TargetBusyError, warn: Callable[[str], None]) -> None:
    """Count an epoch that could not be taken, and say why, once."""
    session.skipped += 1
    if error.reason != session.skip_reason:
        session.skip_reason = error.reason
        warn(f"epochs are skipped while {error.reason}")


def _rest(session: Taker[Any], wait: Callable[[float], bool], seconds: float) -> bool:
    """Wait for the next attempt. If a thread that was asked to stop does so now, let it go at once.

    `wait` may return early every time: the limit of dirty pages stays reached.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        settled = session.settle(min(left, REST))
        if wait(max(0.0, end - time.monotonic()) if settled else 0):
            return True
        if settled:
            time.sleep(max(0.0, min(REST, end - time.monotonic())))
    return wait(0)


def run_session(
    session: Taker[R],
    schedule: Schedule,
    wait: Callable[[float], bool],
    emit: Callable[[R], None],
    warn: Callable[[str], None],
) -> bool:
    """Take epochs as `schedule` says.

    Args:
        wait: sleeps for some seconds, or until the target's limit of dirty pages is reached; True: the
            session has to end, or the target has ended.
        emit: gets the row of each epoch.
        warn: gets text about failures that do not end the session.

    Returns:
        Whether the target has ended.

    Raises:
        StorageError: we could not write `ATTEMPTS` epochs in a row, or the last one.
    """
    started = due = time.monotonic()
    taken = 0
    failed = 0
    failure: StorageError | None = None

    def pause(seconds: float) -> bool:
        return _rest(session, wait, seconds) if session.skipped else wait(seconds)

    while schedule.count is None or taken < schedule.count:
        session.late = int((time.monotonic() - due) / schedule.every) if taken else 0
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
        except TargetBusyError as error:
            _skip(session, error, warn)
        except (StorageError, StopTimeoutError, MaxStopError) as error:
            session.settle(0)
            failed += 1
            failure = error if isinstance(error, StorageError) else None
            if not taken or failed == ATTEMPTS:
                raise
            warn(f"{error}; what it would have held comes with the next epoch")
        if schedule.count is not None and taken >= schedule.count:
            break
        due += schedule.every
        if schedule.duration is not None and max(due, time.monotonic()) >= started + schedule.duration:
            left = started + schedule.duration - time.monotonic()
            # It may end early, at a limit of dirty pages: then there is an epoch to take, and time left.
            if left <= 0 or pause(left) or time.monotonic() >= started + schedule.duration:
                break
            due = time.monotonic()
            continue
        if pause(max(0.0, due - time.monotonic())):
            break
        due = min(due, time.monotonic())
    if failure:
        raise failure
    return False
