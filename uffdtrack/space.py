"""The memory of an attached process: traps, what was written, copies."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from uffdtrack._sys import STOP_TIMEOUT_NS, check, ffi, lib, runs_array, runs_of
from uffdtrack.attach import attach_uffd, follow_shared
from uffdtrack.buffers import Buffers
from uffdtrack.closing import Closing
from uffdtrack.errors import (
    TargetBusyError,
    TargetGoneError,
    UffdtrackError,
    UnsupportedError,
)
from uffdtrack.features import probe
from uffdtrack.maps import Region
from uffdtrack.regions import regions_of
from uffdtrack.results import view_of, window_of
from uffdtrack.runs import Runs, merge_runs, size_of
from uffdtrack.tracee import Tracee
from uffdtrack.window import Heads, Pending, Window

_TASK_SIZE = 1 << 47
_REGION_SIZE = ffi.sizeof("ut_region")


class AddressSpace(Closing):
    """Tracks one process's memory by userfaultfd write-protect (WP_ASYNC) and PAGEMAP_SCAN.

    Made by `attach`. Closing it, or the death of this process, takes every trap away; the target
    runs on. Sources: Documentation/admin-guide/mm/{userfaultfd,pagemap}.rst.

    Attributes:
        full_fd: readable once `max_dirty` pages were touched since the last window; -1: no such limit.
    """

    full_fd = -1

    def __init__(self, pid: int, uffd: int, diff_all: bool = False) -> None:
        self.pid = pid
        out = ffi.new("ut_space **")
        check(lib.ut_space_open(pid, uffd, int(diff_all), out), "track the memory", pid)
        self._c = out[0]
        self._mapped: tuple[tuple[bytes, bytes], list[Region]] | None = None
        self._buffers = Buffers()
        self._result = ffi.gc(ffi.new("ut_result *"), lib.ut_result_free)

    @classmethod
    def attach(
        cls, pid: int, engine: str = "scan", max_dirty: int | None = None, follow_shared: bool = False
    ) -> AddressSpace:
        """Make a userfaultfd of the target's memory; nothing is armed yet.

        Args:
            engine: "scan" looks through all page tables at each window, "ring" only where the faults of
                the target's threads were; with "sync" each write waits until we have noted it.
            max_dirty: "ring", "sync": after so many pages `full_fd` becomes readable. With "sync" the write
                that would be one too many waits for the next window.
            follow_shared: shared memory that only the target can write, or the tree that it joins, is
                tracked, not compared, if possible.

        Raises:
            UnsupportedError: no WP_ASYNC or no PAGEMAP_SCAN here.
            PermissionDeniedError, TargetGoneError, StopTimeoutError: as they say.
        """
        features = probe()
        if not features.scan:
            raise UnsupportedError(
                "this kernel lacks userfaultfd WP_ASYNC or PAGEMAP_SCAN (Linux 6.7); see uffdtrack doctor"
            )
        sync = engine == "sync"
        wanted = lib.UFFD_FEATURE_WP_ASYNC
        if sync:
            wanted = lib.UFFD_FEATURE_PAGEFAULT_FLAG_WP | lib.UFFD_FEATURE_THREAD_ID
        if engine != "scan":
            # Else memory that is given back, and not touched after, would leave no sign.
            wanted |= (
                lib.UFFD_FEATURE_EVENT_REMOVE | lib.UFFD_FEATURE_EVENT_UNMAP | lib.UFFD_FEATURE_EVENT_REMAP
            )
        uffd = attach_uffd(pid, wanted, waits=sync)
        try:
            space = cls(pid, uffd, diff_all=not features.zapped_pmd_reported)
        except BaseException:
            os.close(uffd)
            raise
        try:
            if engine != "scan":
                check(lib.ut_space_watch(space._c, int(sync), max_dirty or 0), "follow the faults", pid)
        except BaseException:
            space.close()
            raise
        if engine != "scan" and max_dirty:
            space.full_fd = space._c.watch.full
        space._c.may_share = int(follow_shared)
        return space

    def harvest(self, tracee: Tracee, everything: bool) -> tuple[Runs, Runs]:
        """Find and rearm what was written since the last harvest, and then stop the target for a moment.

        With `everything`, register and arm all mappings and report all pages that exist.

        Returns:
            What to copy, and ranges whose earlier contents are void.

        Raises:
            TargetGoneError, NewMemoryError: as they say; with "sync" also what `window` raises.
        """
        flags = lib.UT_FULL if everything else 0
        if self._c.sync:
            pending, times = Pending(), ffi.new("ut_times *")
            result = self._stop(tracee, flags | lib.UT_NO_COPY, pending, times)
            self.check(tracee, pending, result, times)
        else:
            result = lib.ut_space_harvest(self._c, flags)
            check(result, "harvest the memory", self.pid)
            # Calls that are under way may write what they have pinned before its trap was set.
            result = lib.ut_barrier(tracee.native, self._c, STOP_TIMEOUT_NS)
            self.check(tracee, Pending(), result, ffi.new("ut_times *"))
        found = self._c.harvest.all
        reset = merge_runs(runs_array(found.gone), runs_array(found.fresh))
        return runs_array(found.want), reset

    def copy(self, runs: Runs) -> memoryview:
        """Copy ranges, back to back; valid until the next copy or window."""
        pointer, n = runs_of(runs)
        check(lib.ut_space_copy(self._c, pointer, n), "copy memory", self.pid)
        return view_of(self._c.buffer.v, size_of(runs))

    def split_zero(self, runs: Runs) -> tuple[Runs, Runs, memoryview]:
        """Split the last copy into ranges with contents and zero ranges; see `Window`."""
        source, data, zero = (ffi.new("ut_runs *") for _ in range(3))
        source.v, source.n = runs_of(runs)
        try:
            check(lib.ut_split_zero(self._c.buffer.v, source, data, zero), "sort pages", self.pid)
            full, empty = runs_array(data), runs_array(zero)
        finally:
            lib.runs_free(data)
            lib.runs_free(zero)
        return full, empty, view_of(self._c.buffer.v, size_of(full))

    def lend(self, result: Any = None) -> Callable[[], None]:
        """Keep the contents of the last window, until the returned function is called, in any thread.

        Further windows have another buffer.

        Args:
            result: the core's, if it has not gone through `window`.
        """
        found = result or self._result
        if found.contents != self._c.buffer.v:
            return self._buffers.lend(self._c.early, "merged", found.bytes)
        return self._buffers.lend(self._c, "buffer", found.bytes)

    def window(self, tracee: Tracee, pending: Pending, behind: bool = False) -> Window:
        """Stop the target, take registers, harvest, copy, rearm, resume: one call of C.

        The harvest goes into `pending`, and stays there until the caller clears it. `behind`: windows are
        later than they should be, so less is copied before the stop, which takes time.

        Raises:
            TargetGoneError, StopTimeoutError, NewMemoryError: as they say; all threads run on.
            TargetBusyError: a thread is in a call that a stop would harm; call `tracee.settle` meanwhile.
        """
        self.prepare(behind)
        times = ffi.new("ut_times *")
        result = self._stop(tracee, lib.UT_FULL if pending.everything else 0, pending, times)
        return self.conclude(tracee, pending, result, times)

    def prepare(self, behind: bool) -> None:
        """Do what a window needs to be done before it, while the target runs."""
        if self._c.shared_wanted:
            follow_shared(self.pid, self._c)
        self._c.early.behind = behind

    def _stop(self, tracee: Tracee, flags: int, pending: Pending, times: Any) -> int:
        """The core's result of a stop, for `check`."""
        pointer, n = runs_of(pending.pages)
        return int(lib.ut_window(tracee.native, self._c, flags, pointer, n, STOP_TIMEOUT_NS, times))

    def conclude(self, tracee: Tracee, pending: Pending, result: int, times: Any) -> Window:
        """The window of a stop of this process; see `window`.

        Args:
            result, times: the core's results.
        """
        everything = pending.everything
        self.check(tracee, pending, result, times)
        harvest = self._c.harvest
        pending.everything = True  # until it is known what was taken
        check(lib.ut_space_result(self._c, self._result), "sort pages", self.pid)
        window, want = window_of(
            self._result, times, self.regions(), tracee.threads, harvest.all.compared, not harvest.by_news
        )
        if everything:
            window.reset = np.array([[0, _TASK_SIZE]], np.uint64)
        elif len(pending.reset):
            window.reset = merge_runs(window.reset, pending.reset)
        pending.add(want, window.reset)
        pending.everything = False
        pending.heads.update(self.take_heads())
        window.heads = dict(pending.heads)
        if harvest.nelsewhere:
            window.elsewhere = [
                (int(e.start), int(e.end), int(e.address), int(e.member))
                for e in harvest.elsewhere[0 : harvest.nelsewhere]
            ]
        return window

    def check(self, tracee: Tracee, pending: Pending, result: int, times: Any) -> None:
        """Raises: the error of a failed stop."""
        try:
            if result == lib.UT_BUSY:
                raise TargetBusyError(tracee.busy)
            if result == -errno.ETIMEDOUT:
                raise tracee.late_error("stop the threads")
            check(result, "take the memory", self.pid)
        except UffdtrackError as error:
            # What the harvest got at before it failed is not known page by page.
            pending.everything = pending.everything or bool(times.pause_ns)
            if isinstance(error, TargetGoneError):
                tracee.settle(0)
            raise

    @property
    def short_of(self) -> str:
        """The resource of which "ring" has too little to follow each thread, and so scans all; or ""."""
        if self._c.watch == ffi.NULL or not self._c.watch.rings.short_of:
            return ""
        code = -self._c.watch.rings.short_of
        return {errno.EMFILE: "open files (ulimit -n)", errno.EPERM: "locked memory (ulimit -l)"}.get(
            code, os.strerror(code)
        )

    @property
    def is_gone(self) -> bool:
        """Whether no process has this memory any more: it has ended, or has called exec."""
        return bool(lib.ut_space_is_gone(self._c))

    def passed_over(self) -> None:
        """There will be no window for a while, since others trace the target.

        Their own writes (ptrace(2), /proc/PID/mem) are no faults of the target's threads: the
        next window of "ring" looks through all page tables. Threads that wait at the limit of "sync" go on.
        """
        if self._c is not None and self._c.watch != ffi.NULL:
            lib.ut_watch_passed_over(self._c.watch)

    @property
    def native(self) -> object:
        return self._c

    def regions(self, before: bool = False) -> list[Region]:
        """The mappings that the last window or look has found, or the one before it.

        It is the same list as the last time if they are the same.
        """
        maps = self._c.before if before else self._c.maps
        key = bytes(ffi.buffer(maps.text, maps.len)), bytes(ffi.buffer(maps.regions, maps.n * _REGION_SIZE))
        if not self._mapped or self._mapped[0] != key:
            self._mapped = key, regions_of(maps)
        return self._mapped[1]

    def take_heads(self) -> Heads:
        found = self._c.heads
        heads = {
            (f"{head.major:02x}:{head.minor:02x}", int(head.inode)): bytes(ffi.buffer(head.page))
            for head in found.v[0 : found.n]
        }
        found.n = 0
        return heads

    def close(self) -> None:
        """Take every trap away. Idempotent."""
        if self._c is not None:
            lib.ut_space_close(self._c)
            self._c = None
