"""Compare the mappings of a process with those of an epoch, stretch by stretch."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from checkpoint.image import EpochFile
from checkpoint.rollback.attributes import Attributes, Flags, Recorded, keeps_advice, must_be_made_anew
from uffdtrack import PAGE, Region, Runs, proc_read, read_maps_text
from uffdtrack.runs import Pages, Rows, rows_of

SMAPS_SECONDS = 0.02
"""Reading the attributes takes 25 ms for each GiB and 7 ms for each thousand mappings."""


@dataclass(slots=True)
class Change:
    """One stretch of addresses, with its mapping of now and that of then.

    Attributes:
        kept: the mapping is the same, maybe with other contents, protection or attributes.
        has, had: the attributes of now and then; None: not known.
    """

    start: int
    end: int
    now: Region | None
    then: Region | None
    kept: bool
    has: Flags | None = None
    had: Flags | None = None

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def attributes_differ(self) -> bool:
        return self.has is not None and self.had is not None and self.has != self.had

    @property
    def renamed(self) -> bool:
        """Whether prctl(2), PR_SET_VMA_ANON_NAME, has given it another name."""
        names = {r.name for r in (self.now, self.then) if r}
        return len(names) > 1 and any(name.startswith("[anon") for name in names)

    @property
    def same(self) -> bool:
        """Whether only contents can differ."""
        return bool(
            self.kept
            and self.now
            and self.then
            and self.now.permissions == self.then.permissions
            and not self.attributes_differ
            and not self.renamed
        )


def protection(region: Region) -> int:
    """PROT_ bits."""
    return sum(bit for bit, c in zip((1, 2, 4), region.permissions, strict=False) if c != "-")


def same_object(a: Region, b: Region) -> bool:
    """Whether two mappings of one address map the same memory or the same place of the same file."""
    if a == b:
        return True
    if a.shared != b.shared or a.anonymous != b.anonymous:
        return False
    if a.anonymous:
        return True
    return (a.device, a.inode, a.offset - a.start) == (b.device, b.inode, b.offset - b.start)


def split_changes(
    now: list[Region], then: list[Region], has: Attributes | None, had: Recorded
) -> list[Change]:
    """All stretches between the boundaries of two lists of mappings, special ones left out.

    Args:
        has, had: their attributes.
    """
    now = [r for r in now if not r.special and r.name != "[vdso]"]
    then = [r for r in then if not r.special and r.name != "[vdso]"]
    cuts = sorted({b for r in (*now, *then) for b in (r.start, r.end)} | had.cuts())
    changes: list[Change] = []
    i = j = 0
    for start, end in itertools.pairwise(cuts):
        while i < len(now) and now[i].end <= start:
            i += 1
        while j < len(then) and then[j].end <= start:
            j += 1
        a = now[i] if i < len(now) and now[i].start <= start else None
        b = then[j] if j < len(then) and then[j].start <= start else None
        if not a and not b:
            continue
        change = Change(start, end, a, b, bool(a and b and same_object(a, b)))
        change.has = has.at(start) if has and a else None
        change.had = had.at(start) if b else None
        if change.has is not None and change.had is not None:
            advised = bool(b and b.anonymous) and keeps_advice(change.has, change.had)
            change.kept &= not (advised or must_be_made_anew(change.has, change.had))
        changes.append(change)
    return changes


def heap_end(regions: list[Region]) -> int:
    return max((r.end for r in regions if r.name == "[heap]"), default=0)


class Layout:
    """The mappings of a process at one moment, beside those of an epoch.

    Most mappings do not change from one moment to the next, so a layout that we make while the process runs
    makes the next one, while it stands, cheap.

    Attributes:
        text: /proc/PID/maps.
        regions: its mappings.
        changes: all stretches.
        differ: those of `changes` that are not as they were.
        has: the attributes of its mappings. We read them again with the mappings if that is quick; else
            we miss what is set in the moment before the process stands.
    """

    def __init__(
        self,
        pid: int,
        epoch: EpochFile,
        before: Layout | None = None,
        patience: float = SMAPS_SECONDS,
        maps: bytes | None = None,
    ) -> None:
        """Args:
        before: one of a moment ago.
        patience: reading the attributes is quick if it takes less than so many seconds.
        maps: /proc/PID/maps, of a process that stands.
        """
        self.text: bytes
        self.regions: list[Region]
        self.changes: list[Change]
        self.differ: list[Change]
        self.has: Attributes | None = before.has if before else None
        self.cost: float = before.cost if before else 0.0
        if self.cost < patience:
            started = time.monotonic()
            self.has = Attributes.read(pid)
            self.cost = time.monotonic() - started
        if before and (before.text, before.has) == (maps or proc_read(pid, "maps"), self.has):
            self.text, self.regions = before.text, before.regions
            self.changes, self.differ = before.changes, before.differ
            return
        # Of one reading: a process that runs may have had other mappings, and these again.
        self.text, self.regions = read_maps_text(pid)
        had = Recorded.of(epoch.facts.attributes, epoch.facts.attributes_unknown)
        self.changes = split_changes(self.regions, epoch.regions, self.has, had)
        self.differ = [c for c in self.changes if not c.same]


class Stretches:
    """Stretches whose contents we compare, one row for each, with the columns that decide how."""

    def __init__(self, changes: list[Change]) -> None:
        """Args:
        changes: sorted; their `then` is the mapping that they have or will have.
        """
        self.changes = [c for c in changes if c.then and c.then.stored]
        regions = [c.then for c in self.changes if c.then]
        self.ranges: Runs = np.array([(c.start, c.end) for c in self.changes], np.uint64).reshape(-1, 2)
        # A page that the image lacks was not in use, or the file's, which may have lost its name.
        self.file_backed = np.array([r.file_backed or r.kind == "deleted" for r in regions], bool)
        self.anonymous = np.array([r.anonymous for r in regions], bool)
        # uprobes go into every private file mapping that is not writable, whether it is executed or not.
        self.code = self.file_backed & np.array([protection(r) & 2 == 0 for r in regions], bool)
        attributes = [c.has if c.had is None else c.had for c in self.changes]
        self.droppable = np.array([bool(a and "dp" in a) for a in attributes], bool)
        self.in_memory_file = np.array([r.in_memory_file for r in regions], bool)
        self.read_only = np.array(
            [bool(c.then and c.then.shared and not any("w" in r.permissions for r in (c.now, c.then) if r))
             for c in self.changes], bool)  # fmt: skip

    def runs(self, chosen: npt.NDArray[np.bool_]) -> Runs:
        """Address ranges of some of the rows."""
        chosen_ranges: Runs = self.ranges[chosen]
        return chosen_ranges

    def __len__(self) -> int:
        return len(self.changes)

    def rows(self, pages: Pages) -> Rows:
        """The row of each page, -1 for those that are in none."""
        return rows_of(pages * np.uint64(PAGE), self.ranges)
