"""Put a live process back to an epoch: memory, mappings, registers.

A process of its own makes the change; a kill of the command does not reach it.
"""

from __future__ import annotations

import gc
import time

from checkpoint.rollback.ahead import Ahead
from checkpoint.rollback.identity import check_identity, check_no_vm
from checkpoint.rollback.outcome import Outcome
from checkpoint.rollback.own_process import in_own_process, urgent
from checkpoint.rollback.work import ProcessRollback
from checkpoint.targets.refusals import check_target
from checkpoint.view import View
from uffdtrack import MAX_STOP, probe, watchdog


def rollback(pid: int, view: View, anyway: bool = False, max_stop: float = MAX_STOP) -> Outcome:
    """Put process `pid` back to the epoch of `view`, which the caller has verified.

    Args:
        anyway: also if it tears the process's memory from its state in the kernel (`torn`).
        max_stop: seconds that the process may stand. If half of them are over before the end, all is undone.

    Raises:
        RollbackRefusedError: we cannot do it, and have touched nothing.
        TargetError: it failed on the way; the message says in what state the target is.
    """
    check_no_vm(view)
    check_same_process(pid, view)
    probe()  # here: what it finds out is known in the child, too
    with watchdog(max_stop):
        return in_own_process(lambda: _rollback(pid, view, anyway))


def check_same_process(pid: int, view: View) -> None:
    """Raises: RollbackRefusedError, TargetError: it is not the epoch's process, or we cannot handle it."""
    check_target(pid)
    check_identity(pid, view)


def _rollback(pid: int, view: View, anyway: bool) -> Outcome:
    # Nothing of it may wait for the collector of garbage while the target stands.
    gc.disable()
    with Ahead(pid) as ahead, ProcessRollback(pid, view, anyway, changes=ahead) as work:
        started = time.perf_counter()
        with urgent(), ahead.stopped() as tracee:
            work.check(tracee)
            work.map_back()
            work.apply()
            outcome = work.commit()
        outcome.pause_us = round((time.perf_counter() - started) * 1e6 + ahead.stood_us, 1)
    outcome.warnings += work.differences()
    return outcome
