"""The memory of an attached process: traps, what was written, copies."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from uffdtrack._sys import STOP_TIMEOUT_NS, Runs, check, ffi, lib, runs_array, runs_of
from uffdtrack.errors import (
    EpochSkippedError,
    MaxStopError,
    PermissionDeniedError,
    TargetGoneError,
    UffdtrackError,
    UnsupportedError,
)
from uffdtrack.features import probe
from uffdtrack.guard import verdict_on
from uffdtrack.maps import Region, parse_maps
from uffdtrack.tracee import ThreadState, Tracee, late_error

PAGE = 4096
_TASK_SIZE = 1 << 47


Heads = dict[tuple[str, int], bytes]
"""First pages of ELF files, by device as in `Region` and inode."""


@dataclass(frozen=True, slots=True)
class Window:
    """What one stop of the target gave.

    Attributes:
        regions: the mappings at that instant; the same list as in the window before where they are the same.
        threads: the registers at that instant.
        data: ranges with contents; these stand one behind the other in `contents`.
        zero: ranges that were written and hold zeros.
        reset: ranges whose earlier contents are void: new mappings, and pages given back.
        contents: valid until the next window of this address space.
        unreadable: pages without content (past a file's end, guard pages).
        compared: mappings followed by comparing contents, since others can write them.
        scanned: the page tables of the whole memory were looked through.
        touched: "ring", "sync": pages with a fault since the last window; 0 where that is not known.
        heads: the first page of mapped ELF files that no image has yet.
        stop_us, harvest_us, copy_us, rearm_us, pause_us: parts of the pause and the whole of it; what is left
            of it is `resume_us`.
        elsewhere: shared mappings that another process of a tree stores: start, end, the address there, and
            the number of that member (`ProcessTree`).
    """

    regions: list[Region]
    threads: list[ThreadState]
    data: Runs
    zero: Runs
    reset: Runs
    contents: memoryview
    unreadable: int
    compared: int
    scanned: bool
    touched: int
    stop_us: float
    harvest_us: float
    copy_us: float
    rearm_us: float
    pause_us: float
    heads: Heads = field(default_factory=dict)
    elsewhere: list[tuple[int, int, int, int]] = field(default_factory=list)

    @property
    def resume_us(self) -> float:
        return self.pause_us - self.stop_us - self.harvest_us - self.copy_us - self.rearm_us


@dataclass(slots=True)
class Pending:
    """What was harvested and is not safe in an image yet."""

    pages: Runs = field(default_factory=lambda: np.empty((0, 2), np.uint64))
    reset: Runs = field(default_factory=lambda: np.empty((0, 2), np.uint64))
    everything: bool = False
    heads: Heads = field(default_factory=dict)

    def add(self, pages: Runs, reset: Runs) -> None:
        self.pages = merge_runs(self.pages, pages)
        self.reset = merge_runs(self.reset, reset)

    def clear(self) -> None:
        self.pages = self.reset = np.empty((0, 2), np.uint64)
        self.everything = False
        self.heads = {}


def _pages(runs: Runs) -> int:
    return int((runs[:, 1] - runs[:, 0]).sum()) // PAGE


def merge_runs(*several: Runs) -> Runs:
    """The union of lists of ranges, sorted, with touching ranges merged."""
    runs = np.concatenate(several).astype(np.uint64, copy=False)
    if len(runs) < 2:
        return runs
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    ends = np.maximum.accumulate(runs[:, 1])
    first = np.concatenate(([True], runs[1:, 0] > ends[:-1]))
    last = np.concatenate((first[1:], [True]))
    return np.stack((runs[first, 0], ends[last]), axis=1)


_KINDS = {
    int(lib.UT_KIND_ANON): "anonymous",
    int(lib.UT_KIND_HUGE): "huge",
    int(lib.UT_KIND_FILE): "file",
    int(lib.UT_KIND_DELETED): "deleted",
    int(lib.UT_KIND_SHARED): "shared",
    int(lib.UT_KIND_ELSEWHERE): "shared",
    int(lib.UT_KIND_VDSO): "vdso",
    int(lib.UT_KIND_KERNEL): "kernel",
    int(lib.UT_KIND_VIEW): "view",
    int(lib.UT_KIND_DEVICE): "device",
    int(lib.UT_KIND_SECRET): "secret",
    int(lib.UT_KIND_RING): "ring",
}
_REGION_SIZE = ffi.sizeof("ut_region")
_OF_MEMORY = {"deleted": "private-memory", "shared": "shared-memory"}


def region_kind(region: Any) -> str:
    """The kind of a mapping of the core's, in words."""
    kind = _KINDS[region.kind]
    return _OF_MEMORY.get(kind, kind) if region.in_memory else kind


def _regions(maps: Any) -> list[Region]:
    """The mappings that the core has read, with what it found behind them."""
    kinds = [region_kind(region) for region in maps.regions[0 : maps.n]]
    text = bytes(ffi.buffer(maps.text, maps.len))
    return parse_maps(text.decode(errors="surrogateescape"), kinds)


def read_maps(pid: int) -> list[Region]:
    """The mappings of a process, each with what is behind it.

    Raises:
        TargetGoneError, PermissionDeniedError: as they say.
    """
    maps = ffi.new("ut_maps *")
    try:
        tid = check(lib.ut_live_thread(pid), "find", pid)
        check(lib.ut_maps_look(maps, pid, tid), "read the mappings of", pid)
        return _regions(maps)
    finally:
        lib.ut_maps_free(maps)


class AddressSpace:
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

    @classmethod
    def attach(cls, pid: int, engine: str = "scan", max_dirty: int | None = None) -> AddressSpace:
        """Make a userfaultfd of the target's memory; nothing is armed yet.

        Args:
            engine: "scan" looks through all page tables at each window, "ring" only where the faults of
                the target's threads have been; with "sync" each write waits until it was noted here.
            max_dirty: "ring", "sync": pages after which `full_fd` becomes readable. With "sync" the write
                that would be one too many waits for the next window.

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
        uffd = lib.ut_attach_uffd(pid, int(not sync))
        if sync and uffd == -errno.EPERM:
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
        wanted = lib.UFFD_FEATURE_WP_ASYNC
        if sync:
            wanted = lib.UFFD_FEATURE_PAGEFAULT_FLAG_WP | lib.UFFD_FEATURE_THREAD_ID
        if engine != "scan":
            # Else memory that is given back, and not touched after, would leave no sign.
            wanted |= (
                lib.UFFD_FEATURE_EVENT_REMOVE | lib.UFFD_FEATURE_EVENT_UNMAP | lib.UFFD_FEATURE_EVENT_REMAP
            )
        check(lib.ut_uffd_api(uffd, wanted, ffi.NULL), "set the userfaultfd up", pid)
        space = cls(pid, uffd, diff_all=not features.zapped_pmd_reported)
        if engine != "scan":
            try:
                check(lib.ut_space_watch(space._c, int(sync), max_dirty or 0), "follow the faults", pid)
            except BaseException:
                space.close()
                raise
            if max_dirty:
                space.full_fd = space._c.watch.full
        return space

    def harvest(self, tracee: Tracee, everything: bool) -> tuple[Runs, Runs]:
        """Find and rearm what was written since the last harvest, while it runs; "sync": in a short stop.

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
            self._check(tracee, pending, result, times)
        else:
            result = lib.ut_space_harvest(self._c, ffi.NULL, flags | lib.UT_RUNNING, ffi.NULL, 0)
            check(result, "harvest the memory", self.pid)
        found = self._c.harvest.all
        reset = merge_runs(runs_array(found.gone), runs_array(found.fresh))
        return runs_array(found.want), reset

    def copy(self, runs: Runs) -> memoryview:
        """Copy ranges, one behind the other; valid until the next copy or window."""
        size = int((runs[:, 1] - runs[:, 0]).sum())
        pointer, n = runs_of(runs)
        check(lib.ut_space_copy(self._c, pointer, n), "copy memory", self.pid)
        return self._copied(size)

    def split_zero(self, runs: Runs) -> tuple[Runs, Runs, memoryview]:
        """Part the last copy into ranges with contents and zero ranges; see `Window`."""
        source, data, zero = (ffi.new("ut_runs *") for _ in range(3))
        source.v, source.n = runs_of(runs)
        try:
            check(lib.ut_split_zero(self._c.buffer.v, source, data, zero), "sort pages", self.pid)
            full, empty = runs_array(data), runs_array(zero)
        finally:
            lib.runs_free(data)
            lib.runs_free(zero)
        size = int((full[:, 1] - full[:, 0]).sum())
        return full, empty, self._copied(size)

    def _copied(self, size: int) -> memoryview:
        return memoryview(ffi.buffer(self._c.buffer.v, size)) if size else memoryview(b"")

    def window(self, tracee: Tracee, pending: Pending) -> Window:
        """Stop the target, take registers, harvest, copy, rearm, resume: one call of C.

        What was harvested goes into `pending`, and stays there until the caller clears it.

        Raises:
            TargetGoneError, StopTimeoutError, NewMemoryError: as they say; all threads run on.
            EpochSkippedError: a thread is in a call that a stop would harm; call `tracee.settle` meanwhile.
        """
        times = ffi.new("ut_times *")
        result = self._stop(tracee, lib.UT_FULL if pending.everything else 0, pending, times)
        return self.conclude(tracee, pending, result, times)

    def _stop(self, tracee: Tracee, flags: int, pending: Pending, times: Any) -> int:
        """What the core said of a stop; `_check` knows what that means."""
        pointer, n = runs_of(pending.pages)
        result = int(lib.ut_window(tracee.native, self._c, flags, pointer, n, STOP_TIMEOUT_NS, times))
        if result == lib.UT_BUSY:
            raise EpochSkippedError(tracee.busy)
        return result

    def conclude(self, tracee: Tracee, pending: Pending, result: int, times: Any) -> Window:
        """What a stop of this process gave; see `window`.

        Args:
            result, times: what the core said.
        """
        everything = pending.everything
        self._check(tracee, pending, result, times)
        harvest = self._c.harvest
        plan = runs_array(harvest.all.want)
        if everything:
            reset = np.array([[0, _TASK_SIZE]], np.uint64)
        else:
            reset = merge_runs(runs_array(harvest.all.gone), runs_array(harvest.all.fresh), pending.reset)
        pending.add(plan, reset)
        pending.everything = False
        pending.heads.update(self._take_heads())
        data, zero, contents = self.split_zero(plan)
        return Window(
            regions=self._regions(),
            threads=tracee.threads,
            data=data,
            zero=zero,
            reset=reset,
            contents=contents,
            unreadable=_pages(runs_array(self._c.unreadable)),
            compared=harvest.all.compared,
            scanned=not harvest.by_news,
            touched=_pages(runs_array(harvest.news.touched)) if harvest.by_news else 0,
            stop_us=times.stop_ns / 1e3,
            harvest_us=times.harvest_ns / 1e3,
            copy_us=times.copy_ns / 1e3,
            rearm_us=times.rearm_ns / 1e3,
            pause_us=times.pause_ns / 1e3,
            heads=dict(pending.heads),
            elsewhere=[
                (int(e.start), int(e.end), int(e.address), int(e.member))
                for e in (harvest.elsewhere[i] for i in range(harvest.nelsewhere))
            ],
        )

    def _check(self, tracee: Tracee, pending: Pending, result: int, times: Any) -> None:
        """Raises: what a stop has failed with."""
        try:
            if result == -errno.ETIMEDOUT:
                raise tracee.late_error("stop the threads")
            check(result, "checkpoint the memory", self.pid)
        except UffdtrackError as error:
            # What the harvest got at before it failed is not known page by page.
            pending.everything = pending.everything or bool(times.pause_ns)
            if isinstance(error, TargetGoneError):
                tracee.settle(0)
            raise

    @property
    def short_of(self) -> str:
        """What there was too little of for "ring" to follow each thread, or "": then all is scanned."""
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
        """No window can be had for a while, since others have the target.

        What they write by themselves (ptrace(2), /proc/PID/mem) is no fault of a thread of the target's: the
        next window of "ring" looks through all page tables. Whoever waits at the limit of "sync" goes on.
        """
        if self._c is not None and self._c.watch != ffi.NULL:
            lib.ut_watch_passed_over(self._c.watch)

    @property
    def native(self) -> object:
        return self._c

    def _regions(self) -> list[Region]:
        maps = self._c.maps
        key = bytes(ffi.buffer(maps.text, maps.len)), bytes(ffi.buffer(maps.regions, maps.n * _REGION_SIZE))
        if not self._mapped or self._mapped[0] != key:
            self._mapped = key, _regions(maps)
        return self._mapped[1]

    def _take_heads(self) -> Heads:
        found = self._c.heads
        heads = {
            (f"{head.major:02x}:{head.minor:02x}", int(head.inode)): bytes(ffi.buffer(head.page))
            for head in found.v[0 : found.n]
        }
        found.n = 0
        return heads

    def sabotage(self, kind: str) -> None:
        """Break the tracking on purpose, so that tests can see it fail.

        Args:
            kind: "forget", "late-rearm", "compare" (of small mappings); of the ring "audit", "events".
        """
        if kind in ("audit", "events"):
            self._c.watch.sabotage = {
                "audit": lib.UT_WATCH_BREAK_AUDIT,
                "events": lib.UT_WATCH_BREAK_EVENTS,
            }[kind]
            return
        self._c.sabotage = {
            "forget": lib.UT_SABOTAGE_FORGET,
            "late-rearm": lib.UT_SABOTAGE_LATE_REARM,
            "compare": lib.UT_SABOTAGE_COMPARE,
        }[kind]

    def close(self) -> None:
        """Take every trap away. Idempotent."""
        if self._c is not None:
            lib.ut_space_close(self._c)
            self._c = None

    def __enter__(self) -> AddressSpace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
