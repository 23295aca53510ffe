"""A process inside of exec: much of what can be asked says then that there is none."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import TypeVar

from uffdtrack.errors import NewMemoryError, TargetError, TargetGoneError

T = TypeVar("T")
EXEC_SECONDS = 10
"""How long a process that does nothing but exec is tried again."""
EXEC_POLL = 0.02
"""Seconds that a process without memory, in exec or at its end, is given to become one of the two."""


def has_ended(pidfd: int, seconds: float = 0) -> bool:
    """Whether a process has ended, or does within some seconds.

    Its pidfd knows. All else that can be asked says the same of one that is just inside of exec.
    """
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def through_exec(
    pidfd: int,
    attempt: Callable[[], T],
    again: Callable[[], None] = lambda: None,
    late: TargetError | None = None,
) -> T:
    """Try until it succeeds, where the process may call exec meanwhile.

    Args:
        again: called before each further attempt.
        late: raised when it has been tried for `EXEC_SECONDS`, in place of what the last attempt has raised.

    Raises:
        TargetGoneError: it has ended.
    """
    deadline = time.monotonic() + EXEC_SECONDS
    while True:
        try:
            return attempt()
        except (NewMemoryError, TargetGoneError) as error:
            if isinstance(error, TargetGoneError) and has_ended(pidfd, EXEC_POLL):
                raise
            again()
            if time.monotonic() > deadline:
                if late:
                    raise late from error
                raise
