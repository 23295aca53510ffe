"""Whether a process is the one that an epoch was taken of."""

from __future__ import annotations

from checkpoint.errors import RollbackRefusedError
from checkpoint.view import View
from uffdtrack import identify


def check_no_vm(view: View) -> None:
    """Raises: RollbackRefusedError: the epoch is of a VM."""
    if view.epoch.facts.vm:
        raise RollbackRefusedError(
            f"{view.epoch.path} is an epoch of a VM: `uffdtrack vm resume` continues it in a fresh process"
        )


def check_identity(pid: int, view: View) -> None:
    """Raises: RollbackRefusedError, TargetGoneError: it is another process, or none."""
    then = view.epoch.facts.process
    now = identify(pid)
    if (now.boot_id, now.start_time, pid) != (then.boot_id, then.start_time, then.pid):
        raise RollbackRefusedError(
            f"process {pid} is not the one that epoch {view.epoch.epoch} was taken of "
            f"(that was process {then.pid}, {then.comm})"
        )
