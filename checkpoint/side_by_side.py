"""Work that threads do for each other: most of it is waiting for the disk, and digests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
AT_ONCE = 4


def side_by_side(function: Callable[[T], object], items: Iterable[T]) -> None:
    """Call it for each, `AT_ONCE` at a time, or as many as we may have threads (RLIMIT_NPROC, pids.max).

    Raises:
        BaseException: a call has raised it. No further call begins then.
    """
    waiting = list(enumerate(items))
    if len(waiting) == 1:
        function(waiting[0][1])
        return
    errors: list[BaseException | None] = [None] * len(waiting)
    lock = threading.Lock()

    def stop() -> None:
        with lock:
            waiting.clear()

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                n, item = waiting.pop(0)
            try:
                function(item)
            except BaseException as error:
                errors[n] = error
                stop()

    helpers: list[threading.Thread] = []
    try:
        with contextlib.suppress(RuntimeError):
            for _ in range(min(AT_ONCE, len(waiting)) - 1):
                helper = threading.Thread(target=work)
                helper.start()
                helpers.append(helper)
        work()
    finally:
        stop()
        for helper in helpers:
            helper.join()
    for error in errors:
        if error:
            raise error
