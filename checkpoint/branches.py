"""The epochs of a chain are a tree: each names its parent.

That is the epoch before it, or the one that the session has rolled its target back to right before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from checkpoint.image import EpochFile


def line_to(files: Sequence[EpochFile], epoch: int) -> list[EpochFile]:
    """An epoch of a chain behind all that it comes from, the oldest first; empty if it is not among them."""
    there = {file.epoch: file for file in files}
    line: list[EpochFile] = []
    file = there.get(epoch)
    while file:
        line.append(file)
        file = None if file.parent_epoch is None else there.get(file.parent_epoch)
    return line[::-1]


def from_base(line: Sequence[EpochFile]) -> list[EpochFile]:
    """The part of a line that its last memory is in."""
    return list(line[max(i for i, file in enumerate(line) if file.facts.base) :])


def is_branched(files: Sequence[EpochFile]) -> bool:
    """Whether an epoch follows another one than that before it in the list."""
    return any(after.parent_epoch != before.epoch for before, after in itertools.pairwise(files))


def ends_of(files: Sequence[EpochFile]) -> list[int]:
    """The epochs that none follows."""
    followed = {file.parent_epoch for file in files}
    return [file.epoch for file in files if file.epoch not in followed]


def depth_first(files: Sequence[EpochFile]) -> list[EpochFile]:
    """Each epoch behind its parent, and all that comes from it before anything else."""
    there = {file.epoch for file in files}
    following: dict[int | None, list[EpochFile]] = {}
    for file in reversed(files):
        following.setdefault(file.parent_epoch if file.parent_epoch in there else None, []).append(file)
    waiting = following.pop(None, [])
    order: list[EpochFile] = []
    while waiting:
        order.append(waiting.pop())
        waiting += following.get(order[-1].epoch, ())
    return order


def needed_below(files: Sequence[EpochFile], base: int) -> list[int]:
    """The epochs of lower numbers that are needed if one becomes a base: those that do not come from it, and
    all that these come from."""
    below = {base}
    for file in files:
        if file.parent_epoch in below:
            below.add(file.epoch)
    own = {*below, *(file.epoch for file in line_to(files, base))}
    needed = {one.epoch for file in files if file.epoch not in own for one in line_to(files, file.epoch)}
    return sorted(number for number in needed if number < base)
