"""The threads of a process beside those of an epoch: what makes a rollback impossible."""

from __future__ import annotations

from collections.abc import Mapping

from checkpoint.errors import RollbackRefusedError
from checkpoint.image import EpochFile
from uffdtrack import ThreadState, status_field


def check_shadow_stacks(pid: int) -> None:
    """Raises: RollbackRefusedError: it has some."""
    if "shstk" in status_field(pid, "x86_Thread_features"):
        raise RollbackRefusedError(
            "its threads have shadow stacks, whose pointers are not in an epoch: the next return would "
            "end the process"
        )


def born_since(epoch: EpochFile, threads: Mapping[int, ThreadState]) -> list[int]:
    """Those of a process's threads, by their ids, that the epoch does not have.

    Raises:
        RollbackRefusedError: one of the epoch has ended, or its registers cannot be put back.
    """
    then = {t.tid: t for t in epoch.threads}
    now = {tid: t for tid, t in threads.items() if not t.worker}
    gone = sorted(then.keys() - now.keys())
    if gone:
        several = len(gone) > 1
        raise RollbackRefusedError(
            f"thread{'s' * several} {', '.join(map(str, gone))} of epoch {epoch.epoch} "
            f"{'have' if several else 'has'} ended since and cannot be made again"
        )
    if any(len(t.xstate) != len(now[tid].xstate) for tid, t in then.items()):
        raise RollbackRefusedError("the registers of that epoch are of another kind of processor")
    return sorted(now.keys() - then.keys())
