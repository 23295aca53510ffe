"""Where the memory of two epochs of a chain may differ, as its files say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from checkpoint.branches import from_base, line_to
from checkpoint.heads import stored_heads
from checkpoint.image import EpochFile
from checkpoint.view import View
from uffdtrack import Pending, Runs
from uffdtrack.runs import inside, merge_runs, no_runs, size_of, to_runs

EVERYTHING = 1 << 44
"""If so many bytes are void, all of them are."""


@dataclass(frozen=True, slots=True)
class Apart:
    """Where two epochs may differ, by the epochs that only one of them comes from.

    Attributes:
        where: what such an epoch has or voids.
        pending: what the next window has to take, too, if its epoch follows the second instead of the
            first: a page that is as it was at the first one is not found.
    """

    where: Runs
    pending: Pending


def apart(files: Sequence[EpochFile], a: int, b: int) -> Apart | None:
    """Where epochs a and b of a chain may differ; None: anywhere."""
    lines = [line_to(files, epoch) for epoch in (a, b)]
    common = {file.epoch for file in lines[0]} & {file.epoch for file in lines[1]}
    own_a, own_b = ([file for file in line if file.epoch not in common] for line in lines)
    own = [*own_a, *own_b]
    reset = merge_runs(no_runs(), *(file.reset for file in own))
    if any(file.facts.base for file in own) or size_of(reset) >= EVERYTHING:
        return None
    pages = [file.pages for file in own]
    if any(len(file.reset) for file in own_b):
        # What only b's line voids may be in a as it was before both.
        held = View.of(from_base(lines[0])).pages
        pages.append(held[inside(held, reset)])
    stored = to_runs(np.unique(np.concatenate((np.empty(0, np.uint64), *pages))))
    return Apart(merge_runs(stored, reset), Pending(stored, reset, heads=stored_heads(own_a)))
