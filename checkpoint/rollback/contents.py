"""Put the contents of a stopped process's memory back, page by page, and undo that."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from checkpoint.errors import RollbackRefusedError
from checkpoint.rollback.access import in_objects, read_remote, write_remote
from checkpoint.rollback.breakpoints import Programs
from checkpoint.rollback.layout import Stretches
from checkpoint.rollback.plan import Plan
from checkpoint.rollback.stored import Contents, Image, reading_epoch
from uffdtrack import (
    DIFFERS,
    PAGE,
    UNREADABLE,
    Injector,
    Places,
    Runs,
    compare_pages,
    existing,
    read_places,
    shares_no_pages,
)
from uffdtrack.errors import TargetError
from uffdtrack.runs import (
    Pages,
    batches,
    bridged,
    expand,
    intersect,
    merge_runs,
    no_runs,
    size_of,
    slices,
    subtract,
    to_runs,
)
from uffdtrack.syscalls import MADVISE

_MADV_DONTNEED_LOCKED = 24
_CHUNK = 4096  # pages written at a time
_COMPARED = 1 << 16  # compared at a time: a tenth of a second
_MANY = 1 << 12  # from which on it pays to ask how they may be read
_BRIDGE = 1 << 20  # bytes that are looked through for the price of another call


class Memory:
    """The contents of one stopped process, compared with those of a view.

    Attributes:
        warnings: text about what is not as it was.
    """

    def __init__(
        self,
        pid: int,
        image: Image,
        programs: Programs,
        epoch: int,
        task: str,
        memory: int,
        untrap: Callable[[Pages], None],
    ) -> None:
        """Args:
        programs: the files of its code.
        task: /proc/PID/task/TID of a thread that lives.
        memory: its `mem`, open for reading and writing.
        untrap: see `Changes.untrap`.
        """
        self._untrap = untrap
        self.pid = pid
        self.image = image
        self.programs = programs
        self.epoch = epoch
        self.task = task
        self.tid = int(os.path.basename(task))
        self.memory = memory
        self.warnings: list[str] = []
        self.is_alone: bool | None = None  # no other process shares its pages; None: not asked yet
        self.check_time: Callable[[], None] = lambda: None  # raises where it is time to take all back

    def plan(self, where: Stretches, among: Runs | None = None) -> Plan:
        """Compare memory that is mapped now and was mapped then.

        Args:
            among: ranges outside of which it is as it was; None: nothing is known.

        Raises:
            RollbackRefusedError: a page has to get contents and cannot.
        """
        plan = Plan()
        if not len(where):
            return plan
        wanted, places = self.image.within(where, among)
        extra = self._extra(where, among, len(wanted))
        self._compare(plan, where, wanted, places)
        if len(extra):
            self._plan_extra(plan, where, extra)
        self._keep_breakpoints(plan, where)
        return plan

    def _plan_extra(self, plan: Plan, where: Stretches, extra: Pages) -> None:
        rows = where.rows(extra)
        in_file = where.in_memory_file[rows]
        if in_file.any():
            self._compare(plan, where, extra[in_file], self.image.places(extra[in_file]))
        for anonymous in (False, True):
            given = (where.anonymous if anonymous else where.file_backed)[rows] & ~in_file
            held, readable = self._read(extra[given])
            # Guard pages are in the page tables and hold nothing.
            if readable.any():
                plan.drop.append((extra[given][readable], held[readable], anonymous))
        left = ~(in_file | where.anonymous[rows] | where.file_backed[rows])
        for row in np.unique(rows[left]).tolist():
            name = where.changes[row].then.name
            self._warn(f"pages of {name} that were not in use at the epoch are left as they are")

    def _keep_breakpoints(self, plan: Plan, where: Stretches) -> None:
        for text in self.programs.keep_breakpoints(plan, where, self.image):
            self._warn(text)

    def _extra(self, where: Stretches, among: Runs | None, wanted: int) -> Pages:
        """Pages that exist and that the image lacks; in private file mappings, only their own pages.

        Args:
            wanted: how many pages of `among` the image has.
        """
        if among is None:
            look, known = where.ranges[[0, -1], [0, 1]].reshape(1, 2), self.image.runs
        elif wanted * PAGE == size_of(among) and not where.droppable.any():
            return expand(no_runs())  # the image has all of them
        else:
            here = intersect(among, where.ranges)
            known = self.image.runs_within(here)
            look = merge_runs(subtract(here, known), where.runs(where.droppable))
            if not len(look):
                return expand(look)
        with open(f"{self.task}/pagemap", "rb") as pagemap:
            parts = [existing(pagemap.fileno(), start, end) for start, end in bridged(look, _BRIDGE).tolist()]
        found, own = (merge_runs(*(part[side] for part in parts)) for side in (0, 1))
        if among is None and where.in_memory_file.any():
            found = merge_runs(found, in_objects(self.pid, where.runs(where.in_memory_file)))
        if among is not None:
            found, own = intersect(found, look), intersect(own, look)
        runs = merge_runs(
            intersect(subtract(found, known), where.runs(~where.file_backed)),
            intersect(subtract(own, known), where.runs(where.file_backed)),
            intersect(found, where.runs(where.droppable)),
        )
        return expand(runs)

    def write(self, plan: Plan) -> None:
        """Write the plan's pages. Raises: TargetError, ImageError: it failed half-way; call `restore`."""
        for pages, _ in plan.write:
            for part in batches(pages, _CHUNK):
                self.check_time()
                self._write(part, self.image.read(part))
        for pages, _, contents in plan.exact:
            self._write(pages, contents)

    def drop(self, plan: Plan, injector: Injector) -> None:
        """Drop the plan's surplus pages. Raises: TargetError: as `write`."""
        for pages, _, anonymous in plan.drop:
            for start, end in to_runs(pages).tolist():
                try:
                    # LOCKED, Linux 5.18: also what mlock(2) holds.
                    arguments = [start, end - start, _MADV_DONTNEED_LOCKED]
                    injector.call(MADVISE, arguments, f"give back the pages at {start:#x}")
                except TargetError:
                    if not anonymous:
                        raise
                    # Parts of huge pages are not given back.
                    part = expand(np.array([[start, end]], np.uint64))
                    self._write(part, np.zeros((len(part), PAGE), np.uint8))

    def restore(self, plan: Plan) -> bool:
        """Give the pages of a plan their contents of when it was made; returns whether that worked."""
        whole = True
        for pages, held in (*plan.write, *((pages, held) for pages, held, _ in (*plan.exact, *plan.drop))):
            differs = (self._read(pages)[0] != held).any(axis=1)
            try:
                self._write(pages[differs], held[differs])
            except TargetError:
                whole = False
        return whole

    def settle(self, plan: Plan, where: Stretches, touched: Pages) -> None:
        """Correct pages that may have been written since the plan was made.

        Args:
            touched: pages in which the kernel has written for threads that have run (rseq(2)).

        Raises: TargetError, ImageError: we could not correct a page.
        """
        again = Plan()
        rows = where.rows(touched)
        touched = touched[(rows >= 0) & ~np.append(where.droppable, False)[rows] & self.image.has(touched)]
        self._compare(again, where, touched, self.image.places(touched))
        self._keep_breakpoints(again, where)
        self.write(again)
        for name, pages in plan.skipped:
            # Another mapping of the same memory may have been written.
            if self._differing(pages, self.image.places(pages))[0].any():
                self._warn(f"{name} is shared and read-only here: its contents are left as they are")

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _differing(
        self, pages: Pages, places: Places, held: Contents | None = None
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which pages have other contents than in the files, and which of all can be read.

        Args:
            held: gets the contents of those that differ.
        """
        flags = np.zeros(len(pages), np.uint8)
        for part in slices(len(pages), _COMPARED):
            self.check_time()
            with reading_epoch():
                kept = None if held is None else held[part]
                reader = self._reader(len(pages))
                flags[part] = compare_pages(self.memory, pages[part], places[part], reader, kept)
        return (flags & DIFFERS) != 0, (flags & UNREADABLE) == 0

    def _reader(self, count: int) -> int:
        """A thread by which many pages are read faster; 0: they are few, or another process shares them."""
        if count >= _MANY and self.is_alone is None:
            self.is_alone = shares_no_pages(self.pid, self.tid)
        return self.tid if self.is_alone else 0

    def _compare(self, plan: Plan, where: Stretches, wanted: Pages, places: Places) -> None:
        # Of many pages most are as they were.
        self._untrap(wanted)
        held = np.empty((len(wanted), PAGE), np.uint8) if len(wanted) < _MANY else None
        differs, readable = self._differing(wanted, places, held)
        pages = wanted[differs]
        if not len(pages):
            return
        rows = where.rows(pages)
        if not readable[differs].all():
            page, row = int(pages[~readable[differs]][0]), int(rows[~readable[differs]][0])
            region = where.changes[row].now or where.changes[row].then
            raise RollbackRefusedError(
                f"the page at {page * PAGE:#x} of {(region and region.name) or 'anonymous memory'} had "
                f"contents at epoch {self.epoch} and cannot have any now: it is behind the end of its file, "
                "or a guard page"
            )
        skipped = where.read_only[rows]
        for row in np.unique(rows[skipped]).tolist():
            name = where.changes[row].then.name
            plan.skipped.append((name, pages[rows == row]))
        pages = pages[~skipped]
        if len(pages) and held is not None:
            kept = np.flatnonzero(differs)[~skipped]
            plan.write.append((pages, held if len(kept) == len(held) else held[kept]))
        elif len(pages):
            plan.write.append((pages, self._held(pages)))

    def _held(self, pages: Pages) -> Contents:
        """What many pages hold, which can all be read."""
        held = np.empty((len(pages), PAGE), np.uint8)
        for part in slices(len(pages), _COMPARED):
            self.check_time()
            at = pages[part] * np.uint64(PAGE)
            held[part] = read_places(np.stack((np.full(len(at), self.memory), at), axis=1).astype(np.int64))
        return held

    def _read(self, pages: Pages) -> tuple[Contents, npt.NDArray[np.bool_]]:
        return read_remote(self.memory, pages)

    def _write(self, pages: Pages, contents: Contents) -> None:
        self._untrap(pages)
        write_remote(self.pid, self.tid, self.memory, pages, contents)
