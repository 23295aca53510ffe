"""A process inside of exec: much of what can be asked says then that there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from uffdtrack import Process
from uffdtrack.errors import NewMemoryError, TargetError, TargetGoneError

T = TypeVar("T")
EXEC_SECONDS = 10
"""How long a process that does nothing but exec is tried again."""
EXEC_POLL = 0.02
"""Seconds that a process without memory, in exec or at its end, is given to become one of the two."""


def through_exec(
    process: Process,
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
            if isinstance(error, TargetGoneError) and process.has_ended(EXEC_POLL):
                raise
            again()
            if time.monotonic() > deadline:
                if late:
                    raise late from error
                raise
