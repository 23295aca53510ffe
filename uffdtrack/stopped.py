"""A stop of an attached process in which its memory may be changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from uffdtrack._sys import STOP_TIMEOUT_NS, check, ffi, lib, runs_array, runs_of
from uffdtrack.runs import Runs, merge_runs, no_runs
from uffdtrack.space import AddressSpace
from uffdtrack.tracee import Tracee
from uffdtrack.tree import stop_together
from uffdtrack.window import Pending


def trapped(space: AddressSpace) -> Runs:
    """Memory of which each look finds what was written, by traps alone; there may be more."""
    return runs_array(space.native.history.spans)  # type: ignore[attr-defined]


def look_early(space: AddressSpace, tracee: Tracee, pending: Pending) -> None:
    """Find what a process that runs has written in anonymous memory since its last window.

    It goes into `pending`. Then calls under way come to an end, for which it stands for a moment: they may
    write what they have pinned. With a limit of dirty pages nothing is looked for, nor with "sync".

    Raises:
        TargetGoneError, StopTimeoutError, PermissionDeniedError, MaxStopError: as `Tracee.stop`.
    """
    want = ffi.new("ut_runs *")
    try:
        result = lib.ut_look_early(space.native, tracee.native, STOP_TIMEOUT_NS, want)
        pending.add(runs_array(want), no_runs())
    finally:
        lib.runs_free(want)
    check(result, "stop the threads", space.pid)


class Standing:
    """Tells what an attached process has written, while it stands.

    What it tells of goes into `pending`, too: it is under traps again, so the next window has to copy it.

    Attributes:
        stood_us: how long the process has stood before this stop and since its last window, in looks.
    """

    def __init__(self, space: AddressSpace, tracee: Tracee, pending: Pending) -> None:
        self._space = space
        self._tracee = tracee
        self._pending = pending
        native = space.native
        self.stood_us = native.stood_ns / 1e3  # type: ignore[attr-defined]
        native.stood_ns = native.longest_ns = 0  # type: ignore[attr-defined]

    @property
    def is_alone(self) -> bool:
        """Whether no other process shares its pages since a fork(2), by the last look."""
        return not self._space.native.reader.shared  # type: ignore[attr-defined]

    @property
    def maps(self) -> bytes:
        """/proc/PID/maps, as the last look has read it."""
        maps = self._space.native.maps  # type: ignore[attr-defined]
        return bytes(ffi.buffer(maps.text, maps.len))

    @property
    def shared(self) -> Runs:
        """Mappings that others may write as well, as the last look has found them."""
        found = [(region.start, region.end) for region in self._space.regions() if region.shared]
        return np.array(found, np.uint64).reshape(-1, 2)

    def untrap(self, runs: Runs) -> None:
        """Let memory be read and written by /proc/PID/mem, where traps of "sync" would keep us from it.

        It counts as written, and what is not there becomes zeros.
        """
        pointer, n = runs_of(runs)
        check(lib.ut_untrap(self._space.native, pointer, n), "take traps away", self._space.pid)

    def look(self) -> Runs:
        """Where memory was written since the last window or look; mappings that have come belong to it.

        Raises:
            TargetGoneError, NewMemoryError, MaxStopError: as they say; all is pending then.
        """
        space, pending = self._space.native, self._pending
        times = ffi.new("ut_times *")
        everything, pending.everything = pending.everything, True  # until it is known what was found
        result = lib.ut_look(self._tracee.native, space, times)
        check(result, "look at the memory", self._space.pid)
        found, early = space.harvest.all, space.early  # type: ignore[attr-defined]
        void = merge_runs(*map(runs_array, (found.gone, early.gone, found.fresh)))
        want = runs_array(found.want)
        pending.add(want, void)
        pending.everything = everything
        return merge_runs(want, void)


@contextmanager
def standing(space: AddressSpace, tracee: Tracee, pending: Pending) -> Iterator[Standing]:
    """Stop a process for the block, in which its memory may be written from outside.

    Args:
        pending: what was harvested and not handed over; see `Standing`.

    Raises:
        TargetGoneError, StopTimeoutError, PermissionDeniedError: as `Tracee.stop`.
    """
    lib.ut_stopping(space.native)
    try:
        tracee.stop()
        yield Standing(space, tracee, pending)
    finally:
        # Writes from outside are no faults of its threads: the next window looks everywhere.
        space.passed_over()
        lib.ut_resumed(space.native)
        tracee.resume()


@contextmanager
def standing_together(several: Sequence[tuple[AddressSpace, Tracee]]) -> Iterator[float]:
    """The same for several processes at one instant; gives when their stop began, in time.perf_counter().

    Raises:
        TargetGoneError, StopTimeoutError, PermissionDeniedError: as `stop_together`.
    """
    for space, _ in several:
        lib.ut_stopping(space.native)
    try:
        yield stop_together([tracee for _, tracee in several])
    finally:
        for space, _ in several:
            space.passed_over()
            lib.ut_resumed(space.native)
        for _, tracee in several:
            tracee.resume()
