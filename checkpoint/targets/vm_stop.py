"""How a VM is tracked, and stopped: its vCPUs may stand at its tracker's own gate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvmglue import KvmTracker, Vm, bind_vcpus, open_tracker
from uffdtrack import UffdTracker
from uffdtrack.errors import CycleError, PauseTimeoutError, StopTimeoutError, TargetBusyError


@dataclass(frozen=True, slots=True)
class Taken:
    """The result of a stop, before it is sorted.

    Attributes:
        full: which of `pages` are not zeros; the buffer has their contents.
        touched: harvested pages of the RAM, at a threshold and after.
        times: when the stop began, when all had stopped, and when harvest and copy ended.
    """

    pages: npt.NDArray[np.uint64]
    full: npt.NDArray[np.bool_]
    contents: memoryview
    touched: tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]
    times: tuple[float, float, float, float]


@contextmanager
def stopping(for_good: bool = False) -> Iterator[None]:
    """Raise for a vCPU that does not stop what a session expects of a target that cannot be stopped now.

    It is never a reason to end: the guest would end with its session.

    Args:
        for_good: the guest is to stand from then on.

    Raises:
        TargetBusyError, or StopTimeoutError if it is `for_good`: a vCPU did not stop in time; all run on.
    """
    try:
        yield
    except PauseTimeoutError as error:
        if for_good:
            raise StopTimeoutError(str(error)) from error
        raise TargetBusyError("the host is too busy for the guest's vCPUs to stop in time") from error


def resume_full(tracker: KvmTracker | UffdTracker) -> npt.NDArray[np.uint64]:
    """Open a tracker's gate; if its lists are full, harvest them first, and return the pages."""
    pages = np.empty(0, np.uint64)
    while True:
        try:
            tracker.resume()
            return pages
        except CycleError:
            pages = np.union1d(pages, tracker.exchange().gfn)


def leave_own_gate(vm: Vm, tracker: KvmTracker | UffdTracker) -> npt.NDArray[np.uint64]:
    """If a tracker has a gate beside the VM's, make the vCPUs leave it; see `resume_full()`."""
    return np.empty(0, np.uint64) if tracker.gate is vm.gate else resume_full(tracker)


def exchange_running(tracker: KvmTracker | UffdTracker) -> npt.NDArray[np.uint64]:
    """Harvest and rearm while the guest runs; if it stands at its threshold, it goes on. Sorted."""
    pages = np.unique(tracker.exchange().gfn)
    return np.union1d(pages, resume_full(tracker)) if tracker.max_dirty_pages else pages


def track(vm: Vm, engine: str, max_dirty: int | None = None) -> KvmTracker | UffdTracker:
    """An active tracker for who copies what is listed, which is closed with the VM.

    Raises:
        InvalidInputError, UnsupportedError: see `kvmglue.open_tracker`.
    """
    tracker = open_tracker(vm, engine, max_dirty_pages=max_dirty)
    tracker.activate()
    if isinstance(tracker, KvmTracker):
        tracker.leave_hot()
    bind_vcpus(tracker, vm)
    return tracker
