"""What a stopped process's memory is, by /proc/PID/mem and pagemap alone, to compare epochs with later."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from checkpoint.view import View
from uffdtrack import PAGE, parse_maps

ZEROS = blake2b(bytes(PAGE), digest_size=8).digest()


@dataclass(frozen=True)
class Truth:
    """Digests of the pages that a process had.

    Attributes:
        ranges: page numbers, first and end, of each mapping that an epoch can store.
        own: pages that are not a file's.
        of_file: pages that are.
    """

    ranges: list[tuple[int, int]]
    own: dict[int, bytes]
    of_file: dict[int, bytes]

    @classmethod
    def of(cls, pid: int) -> Truth:
        ranges: list[tuple[int, int]] = []
        own: dict[int, bytes] = {}
        of_file: dict[int, bytes] = {}
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as mem, open(f"/proc/{pid}/pagemap", "rb") as pm:
            for region in parse_maps(Path(f"/proc/{pid}/maps").read_text()):
                if not region.stored or region.name == "[vdso]":
                    continue
                first = region.start // PAGE
                ranges.append((first, region.end // PAGE))
                pm.seek(first * 8)
                entries = np.frombuffer(pm.read(region.size // PAGE * 8), np.uint64)
                there = entries >> np.uint64(62)
                # Present (63), and a file's (61); or what has gone, and has left the trap of a session (57).
                files = (entries >> np.uint64(61) == 5) | (
                    (there == 1) & (entries >> np.uint64(57) & np.uint64(1) == 1)
                )
                is_file = region.file_backed
                shared = "s" in region.permissions
                for page in np.flatnonzero((there != 0) | is_file | shared).tolist():
                    mem.seek((first + page) * PAGE)
                    digest = blake2b(mem.read(PAGE), digest_size=8).digest()
                    is_own = not is_file or (there[page] != 0 and not files[page])
                    (own if is_own else of_file)[first + page] = digest
        return cls(ranges, own, of_file)

    def _expected(self, page: int) -> bytes:
        return self.own.get(page, self.of_file.get(page, ZEROS))

    def unlike(self, now: Truth) -> list[str]:
        """Pages that a process has otherwise now; one that it lacks counts as zeros."""
        pages = self.own.keys() | now.own.keys()
        return [f"{page * PAGE:#x}" for page in sorted(pages) if self._expected(page) != now._expected(page)]

    def wrong(self, view: View) -> list[str]:
        """Pages of an epoch that are not what the process had."""
        found = []
        digests = {
            page: blake2b(contents.tobytes(), digest_size=8).digest()
            for page, contents in zip(view.pages.tolist(), view.read(view.pages), strict=True)
        }
        for first, end in self.ranges:
            held = {page for page in digests if first <= page < end}
            for page in held | {page for page in self.own if first <= page < end}:
                if digests.get(page, ZEROS) != self._expected(page):
                    found.append(f"{page * PAGE:#x}")
        return found
