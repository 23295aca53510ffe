"""Which pages differ between two epochs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from checkpoint.errors import ImageError
from checkpoint.view import View
from uffdtrack import Region
from uffdtrack.runs import Pages, batches


@dataclass(frozen=True, slots=True)
class RegionDiff:
    """A mapping that differs. `state` is "both", "new" (only in B) or "gone" (only in A).

    `changed` are page numbers; if only one side has the mapping, its pages that have contents.
    """

    region: Region
    state: str
    changed: Pages


def differences(a: View, b: View) -> list[RegionDiff]:
    """Compare two views of one process, by contents, mapping by mapping."""
    if a.epoch.facts.process.pid != b.epoch.facts.process.pid:
        raise ImageError("the two epochs are of different processes")
    keys_a = {_key(r): r for r in a.epoch.regions if r.stored}
    keys_b = {_key(r): r for r in b.epoch.regions if r.stored}
    found = []
    for key in sorted(keys_a.keys() | keys_b.keys()):
        region = keys_b.get(key) or keys_a[key]
        pages_a = a.pages[a.of_region(keys_a[key])] if key in keys_a else None
        pages_b = b.pages[b.of_region(keys_b[key])] if key in keys_b else None
        if pages_a is None:
            assert pages_b is not None
            found.append(RegionDiff(region, "new", pages_b))
        elif pages_b is None:
            found.append(RegionDiff(region, "gone", pages_a))
        else:
            changed = _changed(a, b, pages_a, pages_b)
            if len(changed):
                found.append(RegionDiff(region, "both", changed))
    return found


def _key(region: Region) -> tuple[int, int, str]:
    # A heap or stack that grew, or was cut in two, is the same mapping with another end.
    return (region.start, region.inode, region.device)


def _changed(a: View, b: View, pages_a: Pages, pages_b: Pages) -> Pages:
    both = np.intersect1d(pages_a, pages_b, assume_unique=True)
    at_a, at_b = np.searchsorted(a.pages, both), np.searchsorted(b.pages, both)
    same_file = (
        np.array([s.digest for s in a.sources], object)[a.files[at_a]]
        == np.array([s.digest for s in b.sources], object)[b.files[at_b]]
    )
    ask = both[~(same_file & (a.offsets[at_a] == b.offsets[at_b]))]
    changed = [part[(a.read(part) != b.read(part)).any(axis=1)] for part in batches(ask)]
    # What only one side has differs, but for zeros against memory that was never touched.
    for view, pages, other in ((a, pages_a, pages_b), (b, pages_b, pages_a)):
        only = np.setdiff1d(pages, other, assume_unique=True)
        changed += [part[view.read(part).any(axis=1)] for part in batches(only)]
    return np.sort(np.concatenate(changed)) if changed else np.empty(0, np.uint64)
