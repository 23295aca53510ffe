"""Putting the contents of a stopped process's memory back, page by page, and taking that back."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from checkpoint.chain import View
from checkpoint.image import Pages, expand
from checkpoint.mappings import Change, same_object, split_changes
from uffdtrack import PAGE, Injector, Runs, populated, read_maps
from uffdtrack.errors import RollbackRefusedError, TargetError

_MADVISE, _MADV_DONTNEED_LOCKED = 28, 24
_CHUNK = 4096  # pages compared at a time

Contents = npt.NDArray[np.uint8]
"""Pages one behind the other, shape (n, 4096)."""


def to_runs(pages: Pages) -> Runs:
    """Sorted page numbers as address ranges."""
    if not len(pages):
        return np.empty((0, 2), np.uint64)
    new = np.concatenate(([True], pages[1:] != pages[:-1] + 1))
    last = np.concatenate((new[1:], [True]))
    return np.stack((pages[new], pages[last] + 1), axis=1) * np.uint64(PAGE)


@dataclass(slots=True)
class Plan:
    """Pages of which the contents are to change, each list with what is there now.

    Attributes:
        write: pages that hold something else.
        drop: pages that hold something where the mapping itself gave the contents then; `anonymous`:
            that was zeros.
        skipped: pages that cannot be written through their mapping.
    """

    write: list[tuple[Pages, Contents]] = field(default_factory=list)
    drop: list[tuple[Pages, Contents, bool]] = field(default_factory=list)
    skipped: list[tuple[str, Pages]] = field(default_factory=list)

    @property
    def pages(self) -> int:
        return sum(len(pages) for pages, _ in self.write)


class Memory:
    """The contents of one stopped process against those of a view.

    Attributes:
        warnings: what is not as it was, in words.
    """

    def __init__(self, pid: int, view: View, task: str, memory: int) -> None:
        """Args:
        task: /proc/PID/task/TID of a thread that lives.
        memory: its `mem`, open for reading and writing.
        """
        self.pid = pid
        self.view = view
        self.task = task
        self.memory = memory
        self.warnings: list[str] = []
        self.check_time: Callable[[], None] = lambda: None  # raises where it is time to take all back

    def plan(self) -> Plan:
        """Compare what is mapped now and was mapped then.

        Raises:
            RollbackRefusedError: a page has to get contents and cannot.
        """
        plan = Plan()
        epoch = self.view.epoch
        with open(f"{self.task}/pagemap", "rb") as pagemap:
            for change in split_changes(read_maps(self.pid), epoch.regions):
                now, then = change.now, change.then
                if not then or not now or not same_object(now, then) or not then.stored:
                    continue
                exist = expand(populated(pagemap.fileno(), change.start, change.end,
                                           private_only=then.file_backed))  # fmt: skip
                lo, hi = np.searchsorted(self.view.pages, [change.start // PAGE, change.end // PAGE])
                stored = self.view.pages[lo:hi]
                self._compare(plan, change, stored)
                extra = exist[~np.isin(exist, stored, assume_unique=True)]
                if not len(extra):
                    continue
                if then.file_backed or then.anonymous:
                    held, readable = self._read(extra)
                    # Guard pages are in the page tables and hold nothing.
                    plan.drop.append((extra[readable], held[readable], then.anonymous))
                elif then.in_memory_file:
                    self._compare(plan, change, extra)
                else:
                    self._warn(f"pages of {then.name} that were not in use at the epoch are left as they are")
        return plan

    def write(self, plan: Plan) -> None:
        """Raises: TargetError, ImageError: it has failed in the middle; `restore` takes it back."""
        for pages, _ in plan.write:
            for i in range(0, len(pages), _CHUNK):
                self.check_time()
                part = pages[i : i + _CHUNK]
                self._write(part, self._then(part))

    def drop(self, plan: Plan, injector: Injector) -> None:
        """Raises: TargetError: as of `write`."""
        for pages, _, anonymous in plan.drop:
            for start, end in to_runs(pages).tolist():
                try:
                    # LOCKED, Linux 5.18: also what mlock(2) holds.
                    arguments = [start, end - start, _MADV_DONTNEED_LOCKED]
                    injector.call(_MADVISE, arguments, f"give back the pages at {start:#x}")
                except TargetError:
                    if not anonymous:
                        raise
                    # Parts of huge pages are not given back.
                    part = expand(np.array([[start, end]], np.uint64))
                    self._write(part, np.zeros((len(part), PAGE), np.uint8))

    def restore(self, plan: Plan) -> bool:
        """Give the pages of a plan what they held when it was made; returns whether all of them do."""
        whole = True
        for pages, held in (*plan.write, *((pages, held) for pages, held, _ in plan.drop)):
            differs = (self._read(pages)[0] != held).any(axis=1)
            try:
                self._write(pages[differs], held[differs])
            except TargetError:
                whole = False
        return whole

    def settle(self) -> None:
        """Where threads of the target have run system calls since, the kernel may have left a word
        (rseq(2), set_tid_address(2)).

        Raises: TargetError, ImageError: the word could not be put right.
        """
        plan = self.plan()
        self.write(plan)
        for name, pages in plan.skipped:
            # Another mapping of the same memory may have been written.
            if (self._read(pages)[0] != self._then(pages)).any():
                self._warn(f"{name} is shared and read-only here: its contents are left as they are")

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _then(self, pages: Pages) -> Contents:
        """What pages held at the epoch; those that it does not have held zeros."""
        out = np.zeros((len(pages), PAGE), np.uint8)
        known = np.isin(pages, self.view.pages, assume_unique=True)
        out[known] = self.view.read(pages[known])
        return out

    def _compare(self, plan: Plan, change: Change, wanted: Pages) -> None:
        now = change.now
        assert now is not None
        for i in range(0, len(wanted), _CHUNK):
            self.check_time()
            part = wanted[i : i + _CHUNK]
            held, readable = self._read(part)
            differs = (held != self._then(part)).any(axis=1)
            if not differs.any():
                continue
            if not readable[differs].all():
                page = int(part[differs & ~readable][0])
                raise RollbackRefusedError(
                    f"the page at {page * PAGE:#x} of {now.name or 'anonymous memory'} had contents at epoch "
                    f"{self.view.epoch.epoch} and cannot have any now: it is behind the end of its file, or "
                    "a guard page"
                )
            if now.shared and now.permissions[1] != "w":
                plan.skipped.append((now.name, part[differs]))
                continue
            plan.write.append((part[differs], held[differs]))

    def _read(self, pages: Pages) -> tuple[Contents, npt.NDArray[np.bool_]]:
        """The contents of pages, and which of them could be read. The others count as zeros, as they
        are stored: they have no contents."""
        out = np.zeros((len(pages), PAGE), np.uint8)
        readable = np.ones(len(pages), bool)

        def transfer(start: int, view: memoryview, row: int) -> int:
            try:
                return os.preadv(self.memory, [view], start) // PAGE * PAGE
            except OSError:
                return 0

        for row in self._each(pages, out, transfer):
            readable[row] = False
        return out, readable

    def _write(self, pages: Pages, contents: Contents) -> None:
        def transfer(start: int, view: memoryview, row: int) -> int:
            try:
                return os.pwrite(self.memory, view, start)
            except OSError as error:
                if not contents[row].any() and not self._read(pages[row : row + 1])[0].any():
                    return PAGE - start % PAGE  # a page without contents, then and now
                raise TargetError(
                    f"cannot write the memory of process {self.pid} at {start:#x}: {error.strerror}"
                ) from error

        for row in self._each(pages, contents, transfer):
            raise TargetError(f"cannot write the memory of process {self.pid} at {int(pages[row]) * PAGE:#x}")

    @staticmethod
    def _each(pages: Pages, contents: Contents, transfer: Callable[[int, memoryview, int], int]) -> list[int]:
        """Move runs of pages as far as `transfer` gets at once; returns the rows where it got nowhere."""
        stuck = []
        first = 0
        for start, end in to_runs(pages).tolist():
            size = end - start
            block = contents[first : first + size // PAGE].reshape(-1).data
            at = 0
            while at < size:
                row = first + at // PAGE
                n = transfer(start + at, block[at:], row)
                if not n:
                    stuck.append(row)
                at += n or PAGE - at % PAGE
            first += size // PAGE
        return stuck
