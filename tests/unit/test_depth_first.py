"""In which order a tree of epochs is checked: few of them wait for those that follow."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import cast

import pytest

from checkpoint.branches import depth_first, made_from
from checkpoint.image import EpochFile


def most_waiting(order: list[EpochFile]) -> int:
    """How many epochs are needed at a time beside the one that is looked at, if they are in this order."""
    kept: set[int] = set()
    most = 0
    for at, file in enumerate(order):
        later = {made_from(one) for one in order[at + 1 :]}
        kept &= {number for number in kept if number in later}
        most = max(most, len(kept))
        assert made_from(file) is None or made_from(file) in (*kept, *(one.epoch for one in order[:at]))
        kept |= {file.epoch} & later
    return most


def tree_of(parents: list[int], bases: set[int]) -> list[EpochFile]:
    """Epochs with these parents, no more than their places in the tree."""
    places = (
        SimpleNamespace(
            epoch=number, parent_epoch=parent if number else None, facts=SimpleNamespace(base=number in bases)
        )
        for number, parent in enumerate(parents)
    )
    return [cast(EpochFile, place) for place in places]


@pytest.mark.parametrize(
    ("parents", "most"),
    [
        ([-1, *range(99)], 0),
        ([-1] + [0] * 99, 1),
        ([-1, *(number // 2 * 2 for number in range(299))], 1),  # each second one has an end, and goes on
        ([-1, *range(150), *range(149)], 1),  # each has an end, and those come last
        ([-1, *(number // 2 for number in range(254))], 7),  # all have two
    ],
)
def test_few_epochs_wait_for_others_to_be_checked(parents: list[int], most: int) -> None:
    files = tree_of(parents, {0})
    order, waiting = depth_first(files)
    assert {file.epoch for file in order} == set(range(len(parents))) and len(order) == len(parents)
    assert (waiting, most_waiting(order)) == (most, most)


@pytest.mark.parametrize("seed", range(20))
def test_few_epochs_wait_in_any_tree(seed: int) -> None:
    rng = random.Random(seed)
    parents = [-1, *(rng.randrange(max(0, n - rng.choice((1, 3, 99))), n) for n in range(1, 100))]
    files = tree_of(parents, {0, *rng.sample(range(100), rng.randrange(10))})
    order, waiting = depth_first(files)
    ends = len(files) - len({made_from(file) for file in files} - {None})
    assert waiting == most_waiting(order) <= ends.bit_length() - 1
