"""Pages by their numbers in scattered memory, against a dict of them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdtrack import (
    DIFFERENCE,
    NOT_CLOSE,
    PAGE,
    Extents,
    InvalidInputError,
    differences_to,
    page_checks,
    places_of,
)

FIRST = (3, 40, 1 << 50)
COUNT = (8, 1, 5)
NUMBERS = np.array([first + i for first, n in zip(FIRST, COUNT, strict=True) for i in range(n)], np.uint64)


class World:
    """Three extents with random pages, some of them zeros, and what each has."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.parts = [np.zeros((n, PAGE), np.uint8) for n in COUNT]
        self.memory = Extents(list(zip(FIRST, self.parts, strict=True)))
        for page in self.all():
            if self.chance.random() < 0.7:
                page[:] = np.frombuffer(self.chance.randbytes(PAGE), np.uint8)

    def all(self) -> list[np.ndarray]:
        return [page for part in self.parts for page in part]

    def contents(self) -> np.ndarray:
        return np.concatenate(self.parts)

    def some(self) -> list[int]:
        """Rows, in order."""
        return sorted(self.chance.sample(range(len(NUMBERS)), self.chance.randint(0, len(NUMBERS))))


@pytest.mark.parametrize("seed", range(30))
def test_take_and_put(seed: int) -> None:
    world = World(seed)
    rows, before = world.some(), world.contents()
    out = np.full((len(rows) + 1, PAGE), 7, np.uint8)
    full, count = world.memory.take(NUMBERS[rows], out)
    assert full.tolist() == [bool(before[row].any()) for row in rows]
    assert (out[:count] == before[rows][full]).all() and count == full.sum()
    assert (out[len(rows) :] == 7).all()
    data = np.frombuffer(world.chance.randbytes(9 * PAGE), np.uint8)
    places = np.array([world.chance.choice([-1, 0, 7, PAGE, 8 * PAGE]) for _ in rows], np.int64)
    world.memory.put(NUMBERS[rows], data, places)
    for row, place in zip(rows, places.tolist(), strict=True):
        before[row] = data[place : place + PAGE] if place >= 0 else 0
    assert (world.contents() == before).all()


@pytest.mark.parametrize("page", [0, 2, 11, 39, 41, (1 << 50) - 1, (1 << 50) + 5, (1 << 64) - 1])
def test_pages_that_are_nowhere(page: int) -> None:
    world = World(0)
    wanted = np.array([4, page], np.uint64)
    before = world.contents()
    assert wanted not in world.memory and wanted[:1] in world.memory
    with pytest.raises(InvalidInputError):
        world.memory.take(wanted, np.empty((2, PAGE), np.uint8))
    with pytest.raises(ValueError):
        world.memory.xor(wanted, b"", None)
    with pytest.raises(AssertionError):
        world.memory.put(wanted, np.empty(PAGE, np.uint8), np.array([-1, -1]))
    for outside in (-2, 1, 1 << 62):
        with pytest.raises(AssertionError):
            world.memory.put(wanted[:1], np.empty(PAGE, np.uint8), np.array([outside]))
    assert (world.contents() == before).all()


def changed(world: World, rows: list[int]) -> tuple[np.ndarray, bytes, np.ndarray]:
    """Pages that differ a little from those of the world, the differences, and their checks."""
    new, copies = world.contents()[rows], world.contents()[rows]
    for page in new:
        for _ in range(world.chance.randint(1, 5)):
            page[world.chance.randrange(PAGE)] ^= world.chance.randint(1, 255)
    places, room = np.arange(len(rows)), np.empty(max(len(rows), 1) * DIFFERENCE, np.uint8)
    size, differing, checks = differences_to(new, copies, places, places, 256, room)
    assert not (differing == NOT_CLOSE).any() and (differing > 0).all()
    return new, room[:size].tobytes(), checks


@pytest.mark.parametrize("seed", range(30))
def test_xor(seed: int) -> None:
    world = World(seed)
    rows = world.some()
    world.chance.shuffle(rows)
    new, differences, checks = changed(world, rows)
    expected = world.contents()
    expected[rows] = new
    assert world.memory.xor(NUMBERS[rows], differences, checks) is None
    assert (world.contents() == expected).all()
    assert world.memory.xor(NUMBERS[rows], b"", page_checks(new, np.arange(len(rows)))) is None
    assert world.memory.xor(NUMBERS[:0], b"", checks[:0]) is None


@pytest.mark.parametrize("seed", range(30))
def test_xor_that_does_not_fit(seed: int) -> None:
    """It says which page it is, and changes nothing; nor does what is cut off, or too long."""
    world = World(seed)
    rows = world.some() or [0]
    _, differences, checks = changed(world, rows)
    wrong = world.chance.randrange(len(rows))
    world.all()[rows[wrong]][world.chance.randrange(PAGE)] ^= 1
    before = world.contents()
    assert world.memory.xor(NUMBERS[rows], differences, checks) == wrong
    assert (world.contents() == before).all()
    cut = world.chance.randrange(1, len(differences))
    for damaged in (differences[:-cut], differences + b"\0"):
        with pytest.raises(ValueError):
            world.memory.xor(NUMBERS[rows], damaged, checks)
        assert (world.contents() == before).all()
    assert world.memory.xor(NUMBERS[rows], differences, None) is None
    assert (world.contents() != before).any()


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_places_of(has: set[int], wants: set[int]) -> None:
    pages = np.array(sorted(has), np.uint64)
    places = np.arange(len(pages))[::-1]
    wanted = np.array(sorted(wants), np.uint64)
    known = dict(zip(pages.tolist(), places.tolist(), strict=True))
    found = places_of(pages, places, wanted)
    assert found
    assert found[0].tolist() == [known.get(page, -1) for page in wanted.tolist()]
    assert found[1] == len(has & wants)
    if len(wanted) > 1:
        assert places_of(pages, places, wanted[::-1]) is None
        assert places_of(pages, places, np.append(wanted, wanted[-1:])) is None
