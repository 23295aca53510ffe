"""A process inside exec: many files of /proc then say that there is no such process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from uffdtrack import Process
from uffdtrack.errors import NewMemoryError, TargetError, TargetGoneError

T = TypeVar("T")
EXEC_SECONDS = 10
"""How many seconds we try again with a process that does nothing but exec."""
EXEC_POLL = 0.02
"""A process without memory is in exec or at its end; we give it so many seconds to show which."""


def through_exec(
    process: Process,
    attempt: Callable[[], T],
    again: Callable[[], None] = lambda: None,
    late: TargetError | None = None,
) -> T:
    """Try until it succeeds, if the process may call exec meanwhile.

    Args:
        again: called before each further attempt.
        late: raised after `EXEC_SECONDS`, in place of the last attempt's error.

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
