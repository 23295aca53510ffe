"""The watchdog: it ends a process of ours that stops a target for too long, which frees the target."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from uffdtrack._sys import check_own, ffi, lib
from uffdtrack.errors import MaxStopError

MAX_STOP = 5.0
"""A target may stand for so many seconds, unless the user says otherwise."""


def start_watchdog(max_stop: float) -> int:
    """Limit the stops of this process, and of those that it forks from now on.

    The watchdog is a process of its own, in a session of its own. It ends when all of them have ended.

    Args:
        max_stop: seconds; a stop gives up by itself after half of them, and the watchdog kills after all.

    Returns:
        Its pid, for `end_watchdog`; 0 if there is one already.
    """
    return check_own(lib.ut_guard_start(int(max_stop * 1e9)), "start the watchdog")


def leave_watchdog() -> None:
    """Tell the watchdog that this process itself stops nothing, so that it does not wait for it."""
    lib.ut_guard_leave()


@contextmanager
def watchdog(max_stop: float) -> Iterator[None]:
    """`start_watchdog` for the block. If there is one already, that one stays and its bound applies."""
    pid = start_watchdog(max_stop)
    try:
        yield
    finally:
        if pid:
            end_watchdog(pid)


def end_watchdog(pid: int) -> None:
    """Forget the watchdog that this process has started, and reap it.

    It ends now, unless a process of ours still waits for a thread to stop.
    """
    lib.ut_guard_forget()
    with suppress(OSError):  # somebody else has waited for all children
        pidfd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(1000)
            os.waitpid(pid, os.WNOHANG)
        finally:
            os.close(pidfd)


def verdict_on(pid: int) -> MaxStopError | None:
    """Why the watchdog has ended process `pid`; None if it has not."""
    verdict = ffi.new("ut_guard_verdict *")
    if not lib.ut_guard_verdict_of(pid, verdict):
        return None
    where = {
        lib.UT_GUARD_LATE: "while a thread that was late in stopping stood",
        lib.UT_GUARD_STOPPING: "while it was being stopped",
    }.get(verdict.phase, "while its memory was looked at")
    if verdict.injecting:
        where = f"while a system call was made in the name of its thread {verdict.injecting}"
    return MaxStopError(
        f"process {verdict.target} stood still for {verdict.stood_ns / 1e9:.1f} s {where}, longer than it "
        f"may (--max-stop {lib.ut_guard_max_ns() / 1e9:g}s): the watchdog has ended this, and the process "
        "runs on"
    )
