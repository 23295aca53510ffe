"""A mapping's attributes beside protection: advice, locks, protection keys (proc_pid_smaps(5), VmFlags)."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from checkpoint.budget import Budget
from checkpoint.once import Once
from uffdtrack import Region, task_directory
from uffdtrack.errors import TargetGoneError
from uffdtrack.syscalls import MADVISE, MLOCK2, MUNLOCK, PKEY_MPROTECT

Flags = frozenset[str]
"""Codes of VmFlags that are in `KNOWN`, "key:N" of a protection key, "page:KIB" of huge pages."""

KNOWN = frozenset(
    ("gd", "lo", "lf", "sr", "rr", "dc", "wf", "dd", "hg", "nh", "mg", "ht", "ss", "dp", "nr", "mt", "sl")
)
"""Grows down, locked, locked on fault, read advice, kept from children, wiped in children, kept from cores,
huge page advice, merged by KSM, hugetlb, shadow stack, droppable, no reserve, memory tags, sealed."""
_ADVICE = {"wf": (18, 19), "dc": (10, 11), "dd": (16, 17), "mg": (12, 13)}
"""For each flag the advice of madvise(2) that sets it, and the one that clears it."""
_READING = {"rr": 1, "sr": 2}
_HUGE = {"hg": 14, "nh": 15}
_FIXED = frozenset({"gd", "ht", "ss", "dp", "mt", "sl"})
"""Attributes that a mapping gets when it is made, or never loses."""
_PAGES = re.compile(rb"\nKernelPageSize: +(\d+) kB")
_KEY = re.compile(rb"\nProtectionKey: +([1-9]\d*)")

SHARE = 1 / 50
"""Of the time, for reading the attributes of all processes of a tree."""
Step = tuple[int, list[int]]
"""Number and arguments of a system call."""


class Attributes:
    """Ranges of addresses with attributes. An address that is in no range has none."""

    def __init__(self, ranges: list[tuple[int, int, Flags]]) -> None:
        self.ranges = ranges
        self._starts = [start for start, _, _ in ranges]

    @classmethod
    def read(cls, pid: int) -> Attributes:
        """Read the attributes that a process has now.

        Raises:
            TargetGoneError: it has ended.
        """
        try:
            text = (task_directory(pid) / "smaps").read_bytes()
        except (FileNotFoundError, ProcessLookupError) as error:
            raise TargetGoneError(f"there is no process {pid}") from error
        return cls(list(_parse(text)))

    @classmethod
    def of_facts(cls, rows: list[list[Any]]) -> Attributes:
        return cls([(start, end, frozenset(flags.split())) for start, end, flags in rows])

    def to_facts(self) -> list[list[Any]]:
        return [[start, end, " ".join(sorted(flags))] for start, end, flags in self.ranges]

    def at(self, address: int) -> Flags:
        i = bisect_right(self._starts, address) - 1
        return self.ranges[i][2] if i >= 0 and address < self.ranges[i][1] else frozenset()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attributes) and self.ranges == other.ranges

    __hash__ = None  # type: ignore[assignment]


@lru_cache(maxsize=256)
def _codes(flags: bytes) -> Flags:
    return KNOWN.intersection(flags.decode().split())


def _parse(text: bytes) -> list[tuple[int, int, Flags]]:
    """VmFlags is the last line of a mapping: all lines before it belong to the same one."""
    found: list[tuple[int, int, Flags]] = []
    part = b""
    for n, after in enumerate(text.split(b"\nVmFlags:")):
        flags, _, following = after.partition(b"\n") if n else (b"", b"", after)
        held = _codes(flags)
        key = _KEY.search(part)
        if "ht" in held:
            held |= {f"page:{int(size)}" for size in _PAGES.findall(part)}
        if key:
            held |= {f"key:{int(key[1])}"}
        if held:
            start, end = (int(address, 16) for address in part.split(b" ", 1)[0].split(b"-"))
            if found and found[-1][1:] == (start, held):
                found[-1] = found[-1][0], end, held
            else:
                found.append((start, end, held))
        part = following
    return found


class Recorder:
    """Reads the attributes for the images of one session, not more often than its time allows.

    The kernel walks all page tables for it.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.budget = Budget(SHARE)
        self._read: Attributes = Attributes([])
        self._regions: set[tuple[int, int, str]] = set()
        self._facts = Once(self._facts_of)

    def facts(self, regions: list[Region]) -> tuple[list[list[Any]], list[list[int]]]:
        """What an image says: attributes, and mappings that are newer than the reading."""
        if self.budget.is_due():
            with self.budget.spending():
                self._read, self._regions = Attributes.read(self.pid), _present(regions)
            self._facts = Once(self._facts_of)
        return self._facts(regions)

    def _facts_of(self, regions: list[Region]) -> tuple[list[list[Any]], list[list[int]]]:
        unknown = sorted([start, end] for start, end, _ in _present(regions) - self._regions)
        return self._read.to_facts(), unknown


def _present(regions: list[Region]) -> set[tuple[int, int, str]]:
    return {(r.start, r.end, r.permissions) for r in regions}


@dataclass(frozen=True)
class Recorded:
    """The attributes that an image has; an image without any does not know them."""

    attributes: Attributes
    unknown: Attributes

    @classmethod
    def of(cls, attributes: list[list[Any]] | None, unknown: list[list[int]] | None) -> Recorded:
        """Args: see `ImageFacts`."""
        if unknown is None:
            unknown = [[0, 1 << 64]]
        return cls(
            Attributes.of_facts(attributes or []),
            Attributes.of_facts([[start, end, "unknown"] for start, end in unknown]),
        )

    def at(self, address: int) -> Flags | None:
        """The attributes of a range; None: not known."""
        return None if self.unknown.at(address) else self.attributes.at(address)

    def cuts(self) -> set[int]:
        return {
            b for a in (self.attributes, self.unknown) for start, end, _ in a.ranges for b in (start, end)
        }


def must_be_made_anew(has: Flags, wanted: Flags) -> bool:
    """Whether no system call changes a mapping's attributes from one set to the other."""
    return any(f in _FIXED or f.startswith("page:") for f in has ^ wanted)


def keeps_advice(has: Flags, wanted: Flags) -> bool:
    """Whether it has advice on huge pages, which only the opposite advice takes away."""
    return bool(has & _HUGE.keys()) and not wanted & _HUGE.keys()


def steps(start: int, size: int, access: int, has: Flags, wanted: Flags) -> list[tuple[Step, Step | None]]:
    """The calls that turn one set into the other, each with the call that undoes it, if there is one.

    Args:
        access: PROT_ bits of the mapping.
    """
    where = [start, size]
    found: list[tuple[Step, Step | None]] = []
    for flag, advice in _ADVICE.items():
        if (flag in has) != (flag in wanted):
            on, off = ((MADVISE, [*where, a]) for a in advice)
            found.append((on, off) if flag in wanted else (off, on))
    if _reading(has) != _reading(wanted):
        found.append(((MADVISE, [*where, _reading(wanted)]), (MADVISE, [*where, _reading(has)])))
    for flag, advised in _HUGE.items():
        if flag in wanted and flag not in has:
            # There is no advice that takes this one away, but for the opposite one.
            back = next(((MADVISE, [*where, a]) for f, a in _HUGE.items() if f in has), None)
            found.append(((MADVISE, [*where, advised]), back))
    # The kernel gives a key of its own to what may be executed and not read (pkeys(7)).
    if _key(has) != _key(wanted) and access != 4:
        key, had = ((PKEY_MPROTECT, [*where, access, _key(f)]) for f in (wanted, has))
        found.append((key, had))
    lock, locked = (_locking(where, f) for f in (wanted, has))
    if lock != locked:
        found.append((lock, locked))
    return found


def _locking(where: list[int], flags: Flags) -> Step:
    return (MLOCK2, [*where, int("lf" in flags)]) if "lo" in flags else (MUNLOCK, where)


def _reading(flags: Flags) -> int:
    return next((advice for f, advice in _READING.items() if f in flags), 0)


def _key(flags: Flags) -> int:
    return next((int(f[4:]) for f in flags if f.startswith("key:")), 0)


def mmap_flags(wanted: Flags | None) -> int:
    """Flags of mmap(2) for the attributes that an anonymous mapping can get only when it is made."""
    if wanted is None:
        return 0x4002  # MAP_NORESERVE | MAP_PRIVATE
    flags = 8 if "dp" in wanted else 2  # MAP_DROPPABLE, Linux 6.11
    flags |= 0x4000 * ("nr" in wanted and "dp" not in wanted) | 0x100 * ("gd" in wanted)
    if "ht" in wanted:
        kib = next(int(f[5:]) for f in wanted if f.startswith("page:"))
        flags |= 0x40000 | (kib.bit_length() + 9) << 26  # MAP_HUGETLB and the size's logarithm
    return flags


def given_by_mmap(wanted: Flags) -> Flags:
    """The attributes of a mapping that was just made with `mmap_flags`."""
    given = {f for f in wanted if f in _FIXED or f == "nr" or f.startswith("page:")}
    return frozenset(given | ({"wf", "dd"} if "dp" in wanted else set()))


def given_to_all(has: Attributes, wanted: Flags) -> list[Flags]:
    """Attributes that mlockall(2) or PR_SET_MEMORY_MERGE may give a new mapping, and it must not have."""
    found = frozenset[str]().union(*(flags for _, _, flags in has.ranges))
    return [frozenset({f}) for f in ("lo", "mg") if f in found and f not in wanted]


def cannot_be_made(region: Region, wanted: Flags | None) -> str:
    """Why a mapping cannot be made with its attributes; "" if it can."""
    if wanted is None:
        return "its huge pages are of a size that is not known" if "/anon_hugepage" in region.name else ""
    return next((f"it has what no mmap(2) gives ({f!r} of VmFlags)" for f in ("ss", "mt") if f in wanted), "")
