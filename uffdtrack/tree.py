"""Several processes at one instant: we stop all of them, then harvest each, then let all run."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from dataclasses import dataclass

from uffdtrack._sys import STOP_TIMEOUT_NS, check, check_own, ffi, lib, runs_of
from uffdtrack.attach import follow_shared
from uffdtrack.errors import TargetBusyError, TargetError
from uffdtrack.space import AddressSpace
from uffdtrack.tracee import CALL_SECONDS, Tracee
from uffdtrack.window import Pending, StopTimes, Window, stop_times

REST = 0.05
"""All run for so many seconds before we try a stop of several again."""


@dataclass(frozen=True, slots=True)
class TreeMember:
    """One process of a tree: its threads, its memory, and what is pending of it."""

    tracee: Tracee
    space: AddressSpace
    pending: Pending


@dataclass(slots=True)
class TreeWindow(StopTimes):
    """The result of one stop of a tree; the times are of the whole tree.

    Attributes:
        windows: of each member, or the reason why there is none: `TargetGoneError`, `NewMemoryError` (exec).
            Empty if nothing was taken, since there are children that are no members.
        born: those children.
    """

    windows: list[Window | TargetError]
    born: list[int]


class ProcessTree:
    """Takes windows of several processes together, so that no message between them is on one side only.

    A shared object in memory (memfd, System V, /dev/shm, shared anonymous memory) is in the window of the
    first member that maps it; the others say where it is (`Window.elsewhere`).

    Attributes:
        failed: the member (index) that we could not stop at the last window that has raised.
    """

    def __init__(self) -> None:
        self.failed: int | None = None
        self._claims = ffi.new("ut_claims *")
        self._next = 0
        self._shares = False

    def join(self, space: AddressSpace) -> int:
        """Make a space that of a member; returns the member's number."""
        self._next += 1
        lib.ut_space_join(space.native, self._claims, self._next)
        return self._next

    def _share(self, members: Sequence[TreeMember]) -> None:
        """Follow shared memory of all, if one has some: of each it has to be known what it forks."""
        wants = [member.space.native.shared_wanted for member in members]  # type: ignore[attr-defined]
        self._shares |= any(wants)
        if self._shares:
            for member in members:
                follow_shared(member.space.pid, member.space.native)

    def window(
        self,
        members: Sequence[TreeMember],
        left: Sequence[int] = (),
        ours: Sequence[int] = (),
        adopter: int = 0,
        without_born: bool = False,
    ) -> TreeWindow:
        """Stop all, take registers, harvest, copy, rearm, resume all: one call of C.

        Args:
            left: processes of the tree that are no members. They are stopped with the others, if we may.
            ours: processes that must not be touched.
            adopter: the process that becomes the parent of the tree's orphans, or 0.
            without_born: treat other children like `left`; else take nothing while there are any.

        Raises:
            StopTimeoutError, PermissionDeniedError, TargetBusyError: of one member; nothing was taken, all
                run on.
        """
        self._share(members)
        native = ffi.new("ut_member_window[]", len(members))
        keep = []
        for at, member in zip(native, members, strict=True):
            pointer, n = runs_of(member.pending.pages)
            keep.append(pointer)
            at.tracee, at.space, at.pending, at.npending = (
                member.tracee.native, member.space.native, pointer, n,
            )  # fmt: skip
            at.flags = lib.UT_FULL if member.pending.everything else 0
        alone = ffi.new("ut_pids *")
        numbers = ffi.new("int32_t[]", list(ours))
        alone.v, alone.n = numbers, len(ours)
        times, born, failed = ffi.new("ut_times *"), ffi.new("ut_pids *"), ffi.new("size_t *")
        try:
            for pid in left:
                check_own(lib.ut_pids_push(born, pid), "note a process")
            result = lib.ut_tree_window(
                native, len(members), self._claims, alone, adopter, int(without_born), STOP_TIMEOUT_NS, born,
                failed, times,
            )  # fmt: skip
            found = [int(born.v[i]) for i in range(len(left), born.n)]
        finally:
            lib.ut_pids_free(born)
        windows: list[Window | TargetError] = []
        if result != -errno.EAGAIN:
            self.failed = failed[0] if failed[0] < len(members) else None
            if result == lib.UT_BUSY and self.failed is not None:
                busy = members[self.failed].tracee
                raise TargetBusyError(f"of process {busy.pid} {busy.busy}")
            if result == -errno.ETIMEDOUT and self.failed is not None:
                raise members[self.failed].tracee.late_error("stop the threads")
            check(result, "stop the threads", members[self.failed or 0].tracee.pid)
            for at, member in zip(native, members, strict=True):
                # Each of them stood for as long as all did.
                for part in ("stop_ns", "pause_ns", "longest_ns"):
                    setattr(at.times, part, getattr(times, part))
                windows.append(_conclude(member, at))
        return TreeWindow(windows, found, **stop_times(times))

    def close(self) -> None:
        """Close the spaces before this. Idempotent."""
        lib.ut_claims_free(self._claims)


def _conclude(member: TreeMember, native: object) -> Window | TargetError:
    try:
        return member.space.conclude(member.tracee, member.pending, native.result, native.times)  # type: ignore[attr-defined]
    except TargetError as error:
        return error


def stop_together(tracees: Sequence[Tracee], patience: float = CALL_SECONDS) -> float:
    """Stop several processes; none stands while we wait for another one's call (`Tracee.stop`).

    Returns:
        When the stop began, in time.perf_counter().

    Raises:
        TargetGoneError, StopTimeoutError, PermissionDeniedError: of one process; all run on.
    """
    end = time.monotonic() + patience
    native = ffi.new("ut_tracee *[]", [tracee.native for tracee in tracees])
    at = ffi.new("size_t *")
    while True:
        left = max(0.0, end - time.monotonic())
        result = lib.ut_await_calls_of(native, len(tracees), int(left * 1e9), at)
        began = time.perf_counter()
        for tracee in tracees:
            tracee.has_run = False
        for i in range(len(tracees) if not result else 0):
            result = lib.ut_tracee_stop_now(native[i], STOP_TIMEOUT_NS)
            if result:
                at[0] = i
                break
        if not result:
            return began
        for tracee in tracees:
            tracee.resume()
        for tracee in tracees:
            tracee.settle(REST)
        if result != lib.UT_BUSY or time.monotonic() >= end:
            break
    one = tracees[at[0]]
    if result == -errno.ETIMEDOUT:
        raise one.late_error("stop the threads")
    check(result, "stop the threads", one.pid)
    return began


def adopt_orphans() -> None:
    """Become the parent of descendants whose parents end (PR_SET_CHILD_SUBREAPER, prctl(2))."""
    check_own(lib.ut_adopt_orphans(), "adopt orphans")
