"""Chains that grow, are compacted or replaced while somebody reads them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from checkpoint.chain import Chain, epoch_name
from checkpoint.chain_writer import ChainWriter
from checkpoint.export import compact
from tests.unit.images import write
from uffdtrack.errors import InvalidInputError


def test_epoch_that_comes_while_a_chain_is_read(tmp_path: Path) -> None:
    """A session goes on between the listing of the directory and the check: nothing is missing."""
    with ChainWriter(tmp_path, b"", force=False) as writer:
        write(writer, {0: 1}, base=True)
        listed = Chain(tmp_path)
        write(writer, {1: 2})
        write(writer, {2: 3})
        assert [f.epoch for f in listed.verify(b"")] == [0]
    assert [f.epoch for f in Chain(tmp_path).verify(b"")] == [0, 1, 2]


def test_chain_that_is_replaced_while_it_is_read(tmp_path: Path) -> None:
    with ChainWriter(tmp_path, b"", force=False) as writer:
        write(writer, {0: 1}, base=True)
        write(writer, {1: 2})
    with ChainWriter(tmp_path, b"", force=True) as writer:
        # Read when the old head was there still, and listed when the new base was alone.
        listed = Chain(tmp_path)
        write(writer, {0: 4}, base=True)
    listed.epochs = [0]
    assert [f.epoch for f in listed.verify(b"")] == [0]


@pytest.mark.parametrize("left", [[0, 1, 2], [0, 1], [0], []])
def test_compaction_that_was_killed(tmp_path: Path, left: list[int]) -> None:
    """The new base is there, and some of what it has replaced."""
    with ChainWriter(tmp_path / "c", b"", force=False) as writer:
        for number in range(6):
            write(writer, {number: number + 1}, base=number == 0)
    shutil.copytree(tmp_path / "c", tmp_path / "old")
    compact(Chain(tmp_path / "c"), 3, b"")
    for number in left:
        shutil.copy(tmp_path / "old" / epoch_name(number), tmp_path / "c")
    chain = Chain(tmp_path / "c")
    assert [f.epoch for f in chain.verify(b"")] == [3, 4, 5]
    contents = [{int(p): bytes(c[:1]) for p, c in zip(v.pages, v.read(v.pages), strict=True)}
                for v in (chain.view(5), Chain(tmp_path / "old").view(5))]  # fmt: skip
    assert contents[0] == contents[1] and len(contents[0]) == 6
    for number in left:
        with pytest.raises(InvalidInputError, match="left over"):
            chain.view(number)
    assert compact(chain, 3, b"") == left
    assert Chain(tmp_path / "c").epochs == [3, 4, 5]
    if left:
        shutil.copy(tmp_path / "old" / epoch_name(left[-1]), tmp_path / "c")
    assert compact(Chain(tmp_path / "c"), 5, b"") == [*left[-1:], 3, 4]
    assert [f.epoch for f in Chain(tmp_path / "c").verify(b"")] == [5]


def test_file_that_is_replaced_while_it_is_read(tmp_path: Path) -> None:
    """Compaction or --force between the parsing of a file and the reading of its pages."""
    with ChainWriter(tmp_path, b"", force=False) as writer:
        write(writer, {number: number + 1 for number in range(9)}, base=True)
        write(writer, {0: 20})
        write(writer, {1: 30})
    before = Chain(tmp_path).view(2)
    listed = Chain(tmp_path)
    compact(Chain(tmp_path), 1, b"")
    with pytest.raises(InvalidInputError, match=r"epoch-00000000\.core was replaced or removed"):
        listed.open(0)
    assert [f.epoch for f in listed.verify(b"")] == [1, 2]
    with pytest.raises(InvalidInputError, match=r"epoch-00000000\.core was replaced or removed"):
        before.read(before.pages)
    between = Chain(tmp_path).view(2)
    files = Chain(tmp_path).files()
    with ChainWriter(tmp_path, b"", force=True) as writer:
        write(writer, {}, base=True)
        write(writer, dict.fromkeys(range(9), 40))
    with pytest.raises(InvalidInputError, match=r"epoch-00000001\.core was replaced or removed"):
        between.read(between.pages)
    with pytest.raises(InvalidInputError, match="was replaced or removed"):
        files[0].verify(b"")
    after = Chain(tmp_path).view(1)
    assert set(after.read(after.pages).ravel().tolist()) == {40}
