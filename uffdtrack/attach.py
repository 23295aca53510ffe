"""A userfaultfd of another process's memory."""

from __future__ import annotations

import errno
import os
from typing import Any

from uffdtrack._sys import check, ffi, lib
from uffdtrack.errors import MaxStopError, PermissionDeniedError, UffdtrackError
from uffdtrack.guard import verdict_on
from uffdtrack.tracee import late_error


def attach_uffd(pid: int, features: int, waits: bool) -> int:
    """Make a userfaultfd in the name of a process; the process keeps no copy of it.

    Args:
        features: those to request of the kernel (UFFDIO_API).
        waits: faults wait for an answer, the kernel's own too (engine "sync"); else no fault waits for us.

    Returns:
        The descriptor, which the caller owns. Nothing is armed yet.

    Raises:
        PermissionDeniedError, TargetGoneError, StopTimeoutError, MaxStopError, UnsupportedError: as they say.
    """
    uffd = lib.ut_attach_uffd(pid, int(not waits))
    if waits and uffd == -errno.EPERM:
        raise PermissionDeniedError(
            f"process {pid} may not have the kernel's own faults answered, which engine sync needs: "
            "sysctl vm.unprivileged_userfaultfd=1, or use another engine"
        )
    if uffd == -errno.ETIMEDOUT:
        late = lib.ut_attach_late()
        raise late_error(pid, [late] if late else [], "stop the threads")
    if uffd == lib.UT_OVERDUE:
        raise verdict_on(lib.ut_attach_late()) or MaxStopError(f"process {pid} stood still for too long")
    check(uffd, "make a userfaultfd in the name", pid)
    try:
        check(lib.ut_uffd_api(uffd, features, ffi.NULL), "set the userfaultfd up", pid)
    except BaseException:
        os.close(uffd)
        raise
    return int(uffd)


def follow_shared(pid: int, space: Any) -> None:
    """Follow shared memory that only the process can write, or the tree that it is in, by a userfaultfd for
    that memory alone; if the user wants that. It is tried once: if it cannot be, it stays compared.

    Args:
        space: the core's; it has joined its tree.
    """
    if not space.may_share:
        return
    space.may_share = space.shared_wanted = 0
    wanted = lib.UFFD_FEATURE_WP_ASYNC | lib.UFFD_FEATURE_EVENT_REMAP | lib.UFFD_FEATURE_EVENT_REMOVE
    try:
        uffd = attach_uffd(pid, wanted, waits=False)
    except UffdtrackError:
        return
    if lib.ut_space_share(space, uffd):
        os.close(uffd)
