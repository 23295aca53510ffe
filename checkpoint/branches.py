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


def depth_first(files: Sequence[EpochFile]) -> tuple[list[EpochFile], int]:
    """Each epoch behind the one that its memory is made of, and all that is made of it before anything else.

    The epochs behind one are in such an order that few wait for another one behind them: at most the
    logarithm of the number of ends, to base 2.

    Returns:
        the epochs, and how many wait at the same time at most.
    """
    there = {file.epoch for file in files}
    following: dict[int | None, list[EpochFile]] = {}
    waiting: dict[int, int] = {}
    for file in reversed(files):  # an epoch has a lower number than those behind it
        behind = following.get(file.epoch, [])
        behind.sort(key=lambda one: waiting[one.epoch], reverse=True)
        # It waits until the last is begun, the one with the most below it.
        waiting[file.epoch] = max((waiting[one.epoch] + (i > 0) for i, one in enumerate(behind)), default=0)
        parent = made_from(file)
        following.setdefault(parent if parent in there else None, []).append(file)
    left = following.pop(None, [])
    order: list[EpochFile] = []
    while left:
        order.append(left.pop())
        left += following.get(order[-1].epoch, ())
    return order, max(waiting.values(), default=0)


def made_from(file: EpochFile) -> int | None:
    """The epoch whose memory its own is made of."""
    return None if file.facts.base else file.parent_epoch


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
