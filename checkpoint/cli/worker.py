"""The process that runs a session, and the one that waits for it."""

from __future__ import annotations

import os
import signal
import sys

from checkpoint.cli.common import say
from checkpoint.cli.waits import ENDINGS
from uffdtrack import (
    choose_for_process,
    end_watchdog,
    leave_watchdog,
    probe,
    start_watchdog,
    verdict_on,
)

SWITCH = 0.0002
"""Seconds after which a thread of the interpreter lets others run."""


def become_worker(engine: str, max_dirty: int | None, max_stop: float) -> int:
    """If the engine works on this host, go on in a child; our own process only waits for it.

    A kill of the process that the user started hits the one that waits. The worker, which stops the target
    and mends its system calls, sees that, finishes the epoch and ends.

    Returns:
        A file descriptor that becomes readable when the waiting process has died.

    Raises:
        InvalidInputError: the engine cannot meet the request.
        UnsupportedError: it does not work here.
    """
    choose_for_process(engine, probe(), max_dirty)
    watchdog = start_watchdog(max_stop)
    lifeline, held = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(held)
        # The thread of the session must not wait long for those that write, after a stop.
        sys.setswitchinterval(SWITCH)
        return lifeline
    os.close(lifeline)
    leave_watchdog()
    for number in ENDINGS:
        signal.signal(number, lambda n, frame: os.kill(child, n))
    # Its number stays its own until no signal is passed on to it any more.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    verdict = verdict_on(child)
    if verdict:
        say(f"error: {verdict}, untracked")
        status = verdict.exit_code
    elif status < 0:
        say(f"error: the worker was killed by {signal.Signals(-status).name}; the target runs on")
        status = 128 - status
    if watchdog:
        end_watchdog(watchdog)
    # The worker has said everything, and has flushed what it said.
    os._exit(status)
