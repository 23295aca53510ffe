"""A process of its own for what must not be cut short."""

from __future__ import annotations

import gc
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from uffdtrack import verdict_on
from uffdtrack.errors import TargetError, UffdtrackError

T = TypeVar("T")


PARTLY = "its memory is partly that of the epoch: roll it back again, or end it"


def in_own_process(work: Callable[[], T]) -> T:
    """Run `work` in a child that has left our session: kill -9 of ours does not cut it short."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        os.close(reader)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        try:
            result: Any = work()
        except BaseException as error:
            result = (
                error
                if isinstance(error, UffdtrackError)
                else TargetError(f"rollback failed: {type(error).__name__}: {error}")
            )
        try:
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(result, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    if not data:
        verdict = verdict_on(child)
        if verdict:
            raise TargetError(f"{verdict}; {PARTLY.replace('is', 'may be', 1)}")
        raise TargetError("the rollback's own process died; the state of the target is not known")
    result = pickle.loads(data)
    if isinstance(result, BaseException):
        raise result
    return result  # type: ignore[no-any-return]


@contextmanager
def urgent() -> Iterator[None]:
    """Take priority over other processes while the target stands, if we may (root)."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.sched_setscheduler(0, policy, parameters)


@contextmanager
def undisturbed() -> Iterator[None]:
    """In a session: neither the collector of garbage nor a kill of our process group comes between."""
    group, collects = os.getpgrp(), gc.isenabled()
    with suppress(PermissionError):  # we lead a session
        os.setpgid(0, 0)
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
        with suppress(PermissionError):  # nobody else is left in it
            os.setpgid(0, group)
