"""The only importer of the compiled core: numbers become exceptions here, pointers become arrays."""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np

from uffdtrack._native._core import ffi, lib
from uffdtrack.errors import (
    MaxStopError,
    NewMemoryError,
    PermissionDeniedError,
    StopTimeoutError,
    TargetError,
    TargetGoneError,
    TrackerError,
    UnsupportedError,
    WatchdogGoneError,
)
from uffdtrack.rights import how_to_be_allowed
from uffdtrack.runs import Runs, no_runs

STOP_TIMEOUT_NS = 500_000_000
"""How long the threads that have stopped stand at most for one that has not."""

__all__ = ["check", "check_own", "ffi", "lib", "runs_array", "runs_of"]


def check(result: int, doing: str, pid: int) -> int:
    """Turn a negative errno of the core into the exception that fits `doing` on process `pid`."""
    if result >= 0:
        return result
    if result == lib.UT_NEW_MM:
        raise NewMemoryError(f"process {pid} has replaced its program (exec)")
    if result == lib.UT_SECCOMP:
        raise PermissionDeniedError(
            f"cannot {doing} of process {pid}: it is under a seccomp filter, which may end it for a call of "
            "ours. Only root with CAP_SYS_ADMIN that is under no filter itself can suspend one (so not from "
            "inside of a container); a program that uffdtrack run has started has the filters of its own side"
        )
    if result == lib.UT_BUSY:
        raise StopTimeoutError(
            f"cannot {doing}: a thread of process {pid} is in a long system call that a stop would begin "
            "anew (one that a seccomp supervisor answers?); all its threads run on"
        )
    if result == lib.UT_OVERDUE:
        raise MaxStopError(f"cannot {doing}: process {pid} stood still for longer than it may; it runs on")
    if result == lib.UT_UNGUARDED:
        raise WatchdogGoneError(
            f"cannot {doing} of process {pid}: our watchdog (uffdtrack-guard) has ended or does not hear us, "
            "so nothing would limit how long the process stands (--max-stop). It runs on. Find out what has "
            "killed the watchdog (the kernel's log names what was out of memory), and begin anew"
        )
    code = -result
    why = os.strerror(code)
    if code in (errno.ESRCH, errno.ECHILD):
        raise TargetGoneError(f"process {pid} has ended")
    if code == errno.ETIMEDOUT:
        raise StopTimeoutError(
            f"cannot {doing}: a thread of process {pid} did not stop in time (in an "
            "uninterruptible system call?); all its threads run on"
        )
    if code == errno.ETIME:
        raise MaxStopError(
            f"cannot {doing} of process {pid} while it stands: that takes longer than half of what it "
            f"may stand (--max-stop {lib.ut_guard_max_ns() / 1e9:g}s); it runs on"
        )
    if code in (errno.EPERM, errno.EACCES):
        raise PermissionDeniedError(f"cannot {doing} of process {pid}: {why}. {how_to_be_allowed(pid)}")
    if code in (errno.ENOSYS, errno.ENOTTY):
        raise UnsupportedError(f"cannot {doing}: this kernel lacks it ({why}); see uffdtrack doctor")
    if code == errno.EAGAIN:
        why = f"{why}. Has a limit of processes and threads been reached (ulimit -u, pids.max of a cgroup)?"
    if code == errno.EMFILE:
        why = "all its file descriptors are in use, and only root can raise its hard limit (prlimit --nofile)"
    raise TargetError(f"cannot {doing} of process {pid}: {why}")


def check_own(result: int, doing: str) -> int:
    """Turn a negative errno of the core into the exception that fits `doing` in this process."""
    if result >= 0:
        return result
    code = -result
    why = os.strerror(code)
    if code in (errno.EPERM, errno.EACCES):
        raise PermissionDeniedError(f"cannot {doing}: {why}; see uffdtrack doctor")
    if code in (errno.ENOSYS, errno.ENOTTY, errno.EOPNOTSUPP):
        raise UnsupportedError(f"cannot {doing}: this kernel lacks it ({why}); see uffdtrack doctor")
    raise TrackerError(f"cannot {doing}: {why}")


def runs_array(runs: Any) -> Runs:
    """A copy of a list of the core's, as an array of shape (n, 2)."""
    if not runs.n:
        return no_runs()
    flat = np.frombuffer(ffi.buffer(runs.v, runs.n * 16), np.uint64)
    return flat.reshape(-1, 2).copy()


def runs_of(array: Runs) -> tuple[Any, int]:
    """An array of shape (n, 2) as the core takes it. The array must outlive the call."""
    return ffi.from_buffer("ut_run[]", np.ascontiguousarray(array, np.uint64)), len(array)
