"""Put a live process back to an epoch: memory, mappings, registers.

Everything is read, verified and planned before the target changes. The change itself is made by a
process of its own, which a kill of the command does not reach.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from checkpoint.chain import View
from checkpoint.image import Pages, expand
from checkpoint.targets.process import check_target, descriptors, identify, mapped_files, proc_read
from uffdtrack import PAGE, Injector, Region, Runs, Tracee, parse_maps, populated
from uffdtrack.errors import RollbackRefusedError, TargetError, UffdtrackError

_MMAP, _MPROTECT, _MUNMAP, _BRK, _MADVISE, _CLOSE, _OPENAT = 9, 10, 11, 12, 28, 3, 257
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED = 1, 2, 0x10
_MAP_ANONYMOUS, _MAP_GROWSDOWN, _MAP_NORESERVE = 0x20, 0x100, 0x4000
_MADV_DONTNEED = 4
_AT_FDCWD = -100
_CHUNK = 4096  # pages compared at a time


@dataclass(slots=True)
class Outcome:
    """What a rollback did.

    Attributes:
        pages: written, since they differed.
        mappings: made, removed or changed.
        ended: threads born since the epoch.
        warnings: what of the process is not as it was.
    """

    epoch: int
    pages: int = 0
    mappings: int = 0
    ended: list[int] = field(default_factory=list)
    pause_us: float = 0.0
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Change:
    """One stretch of addresses: what is there and what was."""

    start: int
    end: int
    now: Region | None
    then: Region | None


def rollback(pid: int, view: View) -> Outcome:
    """Put process `pid` back to the epoch of `view`, which the caller has verified.

    Raises:
        RollbackRefusedError: it cannot be done; nothing was touched.
        TargetError: it failed on the way; the message says in what state the target is.
    """
    if "vm" in view.epoch.meta:
        raise RollbackRefusedError(
            f"{view.epoch.path} is an epoch of a VM: `uffdtrack vm resume` continues it in a fresh process"
        )
    check_target(pid)
    meta = view.epoch.meta["process"]
    now = identify(pid)
    if (now.boot_id, now.start_time, pid) != (meta["boot_id"], meta["start_time"], meta["pid"]):
        raise RollbackRefusedError(
            f"process {pid} is not the one that epoch {view.epoch.epoch} was taken of "
            f"(that was process {meta['pid']}, {meta['comm']})"
        )
    return _in_own_process(lambda: _rollback(pid, view))


def _in_own_process(work: Any) -> Outcome:
    """Run `work` in a child that has left our session: kill -9 of ours does not cut it short."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        os.close(reader)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        try:
            result: Any = work()
        except BaseException as error:
            result = (
                error
                if isinstance(error, UffdtrackError)
                else TargetError(f"rollback failed: {type(error).__name__}: {error}")
            )
        try:
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(result, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    if not data:
        raise TargetError("the rollback's own process died; the state of the target is not known")
    result = pickle.loads(data)
    if isinstance(result, BaseException):
        raise result
    assert isinstance(result, Outcome)
    return result


def _rollback(pid: int, view: View) -> Outcome:
    with Tracee(pid) as tracee:
        tracee.stop()
        started = time.perf_counter()
        outcome = _Rollback(pid, view, tracee).run()
        tracee.resume()
        outcome.pause_us = round((time.perf_counter() - started) * 1e6, 1)
    outcome.warnings += outside_differences(pid, view)
    return outcome


def split_changes(now: list[Region], then: list[Region]) -> list[Change]:
    """All stretches between the boundaries of two lists of mappings, special ones left out."""
    now = [r for r in now if not r.special and r.name != "[vdso]"]
    then = [r for r in then if not r.special and r.name != "[vdso]"]
    cuts = sorted({b for r in (*now, *then) for b in (r.start, r.end)})
    changes: list[Change] = []
    i = j = 0
    for start, end in itertools.pairwise(cuts):
        while i < len(now) and now[i].end <= start:
            i += 1
        while j < len(then) and then[j].end <= start:
            j += 1
        a = now[i] if i < len(now) and now[i].start <= start else None
        b = then[j] if j < len(then) and then[j].start <= start else None
        if a or b:
            changes.append(Change(start, end, a, b))
    return changes


def same_object(a: Region, b: Region) -> bool:
    """Whether two mappings of one address show the same memory or the same place of the same file."""
    if a.shared != b.shared or a.anonymous != b.anonymous:
        return False
    if a.anonymous:
        return True
    return (a.device, a.inode, a.offset - a.start) == (b.device, b.inode, b.offset - b.start)


def protection(region: Region) -> int:
    return sum(bit for bit, c in zip((1, 2, 4), region.permissions, strict=False) if c != "-")


def to_runs(pages: Pages) -> Runs:
    """Sorted page numbers as address ranges."""
    if not len(pages):
        return np.empty((0, 2), np.uint64)
    new = np.concatenate(([True], pages[1:] != pages[:-1] + 1))
    last = np.concatenate((new[1:], [True]))
    return np.stack((pages[new], pages[last] + 1), axis=1) * np.uint64(PAGE)


class _Rollback:
    """One rollback of a stopped target."""

    def __init__(self, pid: int, view: View, tracee: Tracee) -> None:
        self.pid = pid
        self.view = view
        self.tracee = tracee
        self.outcome = Outcome(view.epoch.epoch)
        self.regions = self._maps()
        self.changes = split_changes(self.regions, view.epoch.regions)
        self.memory = os.open(f"/proc/{self._live()}/mem", os.O_RDWR | os.O_CLOEXEC)
        self.undo: list[tuple[int, list[int], str]] = []

    def _live(self) -> str:
        return f"{self.pid}/task/{self.tracee.threads[0].tid}"

    def _maps(self) -> list[Region]:
        return parse_maps(proc_read(self.pid, "maps").decode(errors="surrogateescape"))

    def run(self) -> Outcome:
        born = self._check_threads()
        self._check_mappings()
        pages, contents, drop = self._differences()
        with self.tracee.injector() as injector:
            try:
                self._make(injector)
            except (UffdtrackError, OSError):
                self._take_back(injector)
                raise
        if born:
            for tid in born:
                self.tracee.end_thread(tid)
            self.outcome.ended = born
            # Ending threads write to their memory (set_tid_address(2), robust futexes).
            pages, contents, drop = self._differences()
        self._write(pages, contents)
        with self.tracee.injector() as injector:
            self._remove(injector, drop)
        # Mappings that had to be replaced are there only now.
        pages, contents, drop = self._differences()
        self._write(pages, contents)
        for state in self.view.epoch.threads:
            self.tracee.set_state(state)
        return self.outcome

    # -- checks: nothing is changed --------------------------------------------------------------

    def _check_threads(self) -> list[int]:
        then = {t.tid for t in self.view.epoch.threads}
        now = {t.tid for t in self.tracee.threads if not t.worker}
        gone = sorted(then - now)
        if gone:
            raise RollbackRefusedError(
                f"thread{'s' * (len(gone) > 1)} {', '.join(map(str, gone))} of epoch "
                f"{self.outcome.epoch} have ended since and cannot be made again"
            )
        return sorted(now - then)

    def _check_mappings(self) -> None:
        fixed = [[(r.start, r.end) for r in rs if r.name == "[vdso]"] for rs in (
            self.regions, self.view.epoch.regions)]  # fmt: skip
        if fixed[0] != fixed[1]:
            raise RollbackRefusedError("the process has replaced its program (exec) since that epoch")
        files = mapped_files(self.view.epoch.regions)
        for change in self.changes:
            then = change.then
            if not then or (change.now and same_object(change.now, then)):
                continue
            if then.name == "[heap]" or then.anonymous:
                continue
            if self._descriptor_of(then) is not None:
                continue
            found = files.get(then.name)
            if not found or found != self.view.epoch.meta["files"].get(then.name):
                raise RollbackRefusedError(
                    f"{then.name or 'a shared mapping'} at {then.start:#x} is not mapped any more, and "
                    "the file is not what it was or cannot be opened"
                )
        for change in self.changes:
            then = change.then
            if then and then.file_backed and change.now and same_object(change.now, then):
                was = self.view.epoch.meta["files"].get(then.name)
                if was and files.get(then.name) != was:
                    self.outcome.warnings.append(f"the mapped file {then.name} has changed since")
        self.outcome.warnings = sorted(set(self.outcome.warnings))

    def _descriptor_of(self, region: Region) -> int | None:
        """An open file of the target that is the one behind a mapping."""
        major, minor = (int(part, 16) for part in region.device.split(":"))
        for number, _, _ in descriptors(self.pid):
            try:
                s = os.stat(f"/proc/{self._live()}/fd/{number}")
            except OSError:
                continue
            if (os.major(s.st_dev), os.minor(s.st_dev), s.st_ino) == (major, minor, region.inode):
                return number
        return None

    # -- contents --------------------------------------------------------------------------------

    def _differences(self) -> tuple[Pages, npt.NDArray[np.uint8], Runs]:
        """Pages to write, with contents, and ranges to give back to the kernel."""
        regions = self._maps()
        epoch = self.view.epoch
        pages: list[Pages] = []
        contents: list[npt.NDArray[np.uint8]] = []
        drop: list[tuple[int, int]] = []
        with open(f"/proc/{self._live()}/pagemap", "rb") as pagemap:
            for change in split_changes(regions, epoch.regions):
                now, then = change.now, change.then
                if not then or not now or not same_object(now, then) or not then.stored:
                    continue
                exist = expand(populated(pagemap.fileno(), change.start, change.end,
                                           private_only=then.file_backed))  # fmt: skip
                lo, hi = np.searchsorted(self.view.pages, [change.start // PAGE, change.end // PAGE])
                stored = self.view.pages[lo:hi]
                self._compare(change, stored, pages, contents)
                extra = exist[~np.isin(exist, stored, assume_unique=True)]
                if not len(extra):
                    continue
                if then.file_backed or then.anonymous:
                    drop += to_runs(extra).tolist()
                elif then.in_memory_file:
                    self._compare(change, extra, pages, contents, zero=True)
                else:
                    self.outcome.warnings.append(
                        f"pages of {then.name} that were not in use at the epoch are left as they are"
                    )
        self.outcome.warnings = sorted(set(self.outcome.warnings))
        if not pages:
            return np.empty(0, np.uint64), np.empty((0, PAGE), np.uint8), to_array(drop)
        return np.concatenate(pages), np.concatenate(contents), to_array(drop)

    def _compare(
        self,
        change: Change,
        wanted: Pages,
        pages: list[Pages],
        contents: list[npt.NDArray[np.uint8]],
        zero: bool = False,
    ) -> None:
        assert change.now is not None
        for i in range(0, len(wanted), _CHUNK):
            part = wanted[i : i + _CHUNK]
            then = np.zeros((len(part), PAGE), np.uint8) if zero else self.view.read(part)
            now = self._read(part)
            differs = (now != then).any(axis=1)
            if not differs.any():
                continue
            if change.now.shared and change.now.permissions[1] != "w":
                self.outcome.warnings.append(
                    f"{change.now.name} is shared and read-only here: its contents are left as they are"
                )
                continue
            pages.append(part[differs])
            contents.append(then[differs])

    def _read(self, wanted: Pages) -> npt.NDArray[np.uint8]:
        out = np.zeros((len(wanted), PAGE), np.uint8)
        at = 0
        for start, end in to_runs(wanted).tolist():
            rows = (end - start) // PAGE
            block = out[at : at + rows].reshape(-1)
            pos = 0
            while pos < len(block):
                try:
                    n = os.preadv(self.memory, [block[pos:].data], start + pos)
                except OSError:
                    n = 0
                # A page without contents (past a file's end) reads as zeros, as it was stored.
                pos += n // PAGE * PAGE or PAGE
            at += rows
        return out

    def _write(self, pages: Pages, contents: npt.NDArray[np.uint8]) -> None:
        at = 0
        for start, end in to_runs(pages).tolist():
            rows = (end - start) // PAGE
            view = contents[at : at + rows].reshape(-1).data
            at += rows
            while len(view):
                try:
                    n = os.pwrite(self.memory, view, start)
                except OSError as error:
                    if not contents[at - rows : at].any():
                        break  # a page without contents, then and now
                    raise TargetError(
                        f"rollback of process {self.pid} failed at {start:#x}: {error.strerror}; its "
                        "memory is partly that of the epoch: roll it back again, or end it"
                    ) from error
                view, start = view[n:], start + n
        self.outcome.pages += len(pages)

    # -- mappings --------------------------------------------------------------------------------

    def _make(self, injector: Injector) -> None:
        """What can fail comes first, and can be taken back: mappings where nothing is now."""
        heap_now = max((r.end for r in self.regions if r.name == "[heap]"), default=0)
        heap_then = self.view.epoch.meta["heap_end"]
        if heap_then > heap_now:
            was = heap_now or injector.call(_BRK, [0], "ask for the program break")
            if injector.call(_BRK, [heap_then], "grow the heap") != heap_then:
                raise RollbackRefusedError("the heap cannot grow to where it ended at that epoch")
            self.undo.append((_BRK, [was], "shrink the heap"))
            self.outcome.mappings += 1
        for change in self.changes:
            if change.then and not change.now and change.then.name != "[heap]":
                self._map(injector, change)
                self.undo.append((_MUNMAP, [change.start, change.end - change.start], "remove a mapping"))

    def _take_back(self, injector: Injector) -> None:
        for number, arguments, doing in reversed(self.undo):
            injector.call(number, arguments, doing)

    def _map(self, injector: Injector, change: Change) -> None:
        then = change.then
        assert then is not None
        size = change.end - change.start
        where = f"map {then.name or 'memory'} at {change.start:#x}"
        self.outcome.mappings += 1
        flags = _MAP_FIXED | (_MAP_SHARED if then.shared else _MAP_PRIVATE)
        if then.anonymous:
            flags |= _MAP_ANONYMOUS | _MAP_NORESERVE
            flags |= _MAP_GROWSDOWN if then.name == "[stack]" else 0
            arguments = [change.start, size, protection(then), flags, -1, 0]
            injector.call(_MMAP, arguments, where)
            return
        offset = then.offset + change.start - then.start
        number = self._descriptor_of(then)
        opened = number is None
        if number is None:
            number = self._open(injector, then)
        try:
            arguments = [change.start, size, protection(then), flags, number, offset]
            injector.call(_MMAP, arguments, where)
        finally:
            if opened:
                injector.call(_CLOSE, [number], "close a file")

    def _open(self, injector: Injector, region: Region) -> int:
        """Open a file in the target; its name goes below the stack pointer for the time of the call."""
        state = next(t for t in self.tracee.threads if not t.worker)
        name = os.fsencode(region.name) + b"\0"
        stack = int.from_bytes(state.regs[152:160], "little")
        place = (stack - 128 - len(name)) & ~15  # below the red zone
        saved = os.pread(self.memory, len(name), place)
        os.pwrite(self.memory, name, place)
        try:
            mode = os.O_RDWR if region.shared and "w" in region.permissions else os.O_RDONLY
            return injector.call(_OPENAT, [_AT_FDCWD, place, mode | os.O_CLOEXEC, 0], f"open {region.name}")
        finally:
            os.pwrite(self.memory, saved, place)

    def _remove(self, injector: Injector, drop: Iterable[Any]) -> None:
        heap_now = max((r.end for r in self.regions if r.name == "[heap]"), default=0)
        heap_then = self.view.epoch.meta["heap_end"]
        if heap_then and heap_now > heap_then:
            injector.call(_BRK, [heap_then], "shrink the heap")
            self.outcome.mappings += 1
        for change in self.changes:
            now, then, size = change.now, change.then, change.end - change.start
            if not now:
                continue
            if not then:
                if now.name != "[heap]" or not heap_then:
                    injector.call(_MUNMAP, [change.start, size], f"unmap {change.start:#x}")
                    self.outcome.mappings += 1
            elif not same_object(now, then):
                self._map(injector, change)
            elif now.permissions != then.permissions:
                injector.call(_MPROTECT, [change.start, size, protection(then)], "protect memory")
                self.outcome.mappings += 1
        for start, end in np.asarray(drop).tolist():
            try:
                injector.call(_MADVISE, [start, end - start, _MADV_DONTNEED], "give back pages")
            except TargetError:  # locked memory (mlock(2)) cannot be given back
                pages = expand(np.array([[start, end]], np.uint64))
                self._write(pages, np.zeros((len(pages), PAGE), np.uint8))


def to_array(runs: list[tuple[int, int]]) -> Runs:
    return np.array(runs, np.uint64).reshape(-1, 2)


def outside_differences(pid: int, view: View) -> list[str]:
    """What of the kernel's state is not as it was at the epoch, in words: it is not rolled back."""
    then = {number: (target, offset) for number, target, offset in view.epoch.meta["descriptors"]}
    now = {number: (target, offset) for number, target, offset in descriptors(pid)}
    words = []
    for number in sorted(then.keys() | now.keys()):
        a, b = then.get(number), now.get(number)
        if a and not b:
            words.append(f"file descriptor {number} ({a[0]}) has been closed since")
        elif b and not a:
            words.append(f"file descriptor {number} ({b[0]}) has been opened since")
        elif a and b and a[0] != b[0]:
            words.append(f"file descriptor {number} was {a[0]} and is {b[0]}")
        elif a and b and a[1] != b[1]:
            words.append(f"the offset of file descriptor {number} ({a[0]}) was {a[1]} and is {b[1]}")
    return words
