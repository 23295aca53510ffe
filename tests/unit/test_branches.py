"""Chains whose sessions have gone on from earlier epochs: each is what its target was."""

from __future__ import annotations

import json
import os
import random
import shutil
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import CliRunner

from checkpoint.branches import ends_of, is_branched, line_to
from checkpoint.chain import Chain, epoch_name
from checkpoint.cli.main import cli
from checkpoint.deltas import NOTE_DELTAS
from checkpoint.errors import ImageError
from checkpoint.export import compact
from checkpoint.facts import ImageFacts
from checkpoint.image import EpochFile
from checkpoint.rollback.apart import Apart, apart
from checkpoint.view import check_all_deltas
from tests.unit.histories import contents_of
from tests.unit.trees_of_epochs import VALUES, Tracked, grow, without_zeros
from uffdtrack.errors import InvalidInputError, StorageError


def wrong_epochs(directory: Path, target: Tracked, but: set[int] | None = None) -> list[int]:
    """Those whose memory is not what their target had."""
    chain = Chain(directory)
    files = chain.verify(b"")
    check_all_deltas(files)
    return [
        number
        for number, state in enumerate(target.states)
        if number not in (but or ())
        and without_zeros(contents_of(chain, number, files)) != without_zeros(state)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_each_epoch_is_what_its_target_was(in_memory: Path, seed: int) -> None:
    target = grow(in_memory, seed, 40)
    assert wrong_epochs(in_memory, target) == []
    files = Chain(in_memory).files()
    assert is_branched(files) and len(ends_of(files)) > 3
    assert [-1 if file.parent_epoch is None else file.parent_epoch for file in files] == target.parents
    schemas = {json.loads(own(file))["schema"] for file in files if file.facts.parent_epoch is None}
    assert schemas <= {ImageFacts.schema, ImageFacts.with_deltas}
    assert all(
        json.loads(own(file))["schema"] == ImageFacts.of_a_branch
        for file in files
        if file.facts.parent_epoch is not None
    )


def own(file: EpochFile) -> bytes:
    return next(data for name, kind, data in file.notes if (name, kind) == (b"uffdtrack", 0x75660001))


def forgetting(what: str) -> AbstractContextManager[object]:
    """A session that does not take all that differs from the epoch that the next one follows."""

    def forgets(*of: Any) -> Apart | None:
        found = apart(*of)
        if found:
            setattr(found.pending, what, found.pending.pages[:0])
        return found

    return patch("tests.unit.trees_of_epochs.apart", forgets)


def test_negative_control(in_memory: Path) -> None:
    target = grow(in_memory, 1, 40, forgetting("pages"))
    assert wrong_epochs(in_memory, target)


@pytest.mark.parametrize("forgotten", ["", "reset"])
def test_given_back_again(in_memory: Path, forgotten: str) -> None:
    """A page that is given back, rolled back, and given back again, is as it was at the last epoch."""
    target = Tracked(in_memory, 1)
    target.memory = {1: VALUES[1], 2: VALUES[2]}
    target.take()
    del target.memory[1]
    target.take()
    with forgetting(forgotten) if forgotten else nullcontext():
        target.roll_back(0)
    del target.memory[1]
    target.take()
    target.chain.close()
    assert wrong_epochs(in_memory, target) == ([2] if forgotten else [])


def lines(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


def follow(directory: Path, *parents: int | None) -> Tracked:
    """A chain whose epochs follow these; None: the one before."""
    target = Tracked(directory, 5)
    for parent in parents:
        if parent is not None:
            target.roll_back(parent)
        for _ in range(6):
            target.work()
        target.take()
    target.chain.close()
    return target


@pytest.fixture
def branched(in_memory: Path) -> tuple[Path, Tracked]:
    """Epochs 0 1 2 3; 4 5 after 1; 6 after 4."""
    return in_memory / "c", follow(in_memory / "c", None, None, None, None, 1, None, 4)


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_verbs(branched: tuple[Path, Tracked], in_memory: Path) -> None:
    directory, target = branched
    listed = lines(run("ls", directory))
    assert listed[0][:2] == ["epoch", "after"]
    assert [(row[0], row[1]) for row in listed[5:] if row[0] in "46"] == [("4", "1"), ("6", "4")]
    assert len({len(row) for row in listed[1:5]}) == 1 and len(listed[5]) == len(listed[1]) + 1
    rows = [json.loads(line) for line in run("ls", directory, "--json").splitlines()]
    assert {row["epoch"]: row["parent_epoch"] for row in rows if "parent_epoch" in row} == {4: 1, 6: 4}
    assert "each follows its parent; none follows epochs 3, 5 to 6" in run("verify", directory)
    verified = json.loads(run("verify", directory, "--json"))
    assert (verified["epochs"], verified["ends"]) == (7, [3, 5, 6])
    digest = Chain(directory).open(4).digest
    assert f"parent    {digest}, epoch 4" in run("show", f"{directory}@6")
    shown = json.loads(run("show", f"{directory}@6", "--json"))
    assert (shown["parent"], shown["parent_epoch"]) == (digest, 4)
    for a, b in ((3, 6), (1, 4), (5, 2)):
        was, now = (without_zeros(target.states[n]) for n in (a, b))
        differ = {page for page in was.keys() | now.keys() if was.get(page) != now.get(page)}
        assert f"{len(differ)} pages differ" in run("diff", f"{directory}@{a}", f"{directory}@{b}")
    run("export", f"{directory}@6", "-o", in_memory / "core")
    view = Chain(directory).view(6)
    for page, contents in zip(view.pages, view.read(view.pages), strict=True):
        assert contents.tobytes() in (in_memory / "core").read_bytes(), page


def test_compact_keeps_what_others_come_from(branched: tuple[Path, Tracked]) -> None:
    directory, target = branched
    assert "epoch 5 is the base; epoch 4 merged" not in run("compact", directory, "--before", 5)
    assert wrong_epochs(directory, target) == []  # 6 comes from 4, and 4 from 1
    assert Chain(directory).open(5).compacted
    assert "epoch 2 merged into it; epochs 0 to 1 stay" in run("compact", directory, "--before", 3)
    assert wrong_epochs(directory, target, {2}) == []
    assert Chain(directory).epochs == [0, 1, 3, 4, 5, 6]
    with pytest.raises(InvalidInputError, match="has no epoch 2; it has 0 to 1, 3 to 6"):
        Chain(directory).open(2)
    assert [row[:2] for row in lines(run("ls", directory))[3:5]] == [["3*", "-"], ["4", "1"]]
    done = json.loads(run("compact", directory, "--before", 6, "--json"))
    assert (done["removed"], done["stay"]) == ([0, 1, 4], [3, 5])
    assert wrong_epochs(directory, target, {0, 1, 2, 4}) == []
    (directory / epoch_name(5)).unlink()
    with pytest.raises(ImageError, match=r"epoch-00000005\.core is missing"):
        Chain(directory).files()


def killed_compaction(directory: Path, before: int, unlinks: int) -> None:
    """One that is killed when it has removed so many epochs, and would remove another."""

    def dies(path: Path, missing_ok: bool = False, unlink: object = os.unlink) -> None:
        nonlocal unlinks
        if path.name.startswith("epoch-"):
            unlinks -= 1
            if unlinks < 0:
                raise OSError(5, "killed")
        if path.exists():
            unlink(path)  # type: ignore[operator]

    with patch.object(Path, "unlink", dies), suppress(StorageError):
        compact(Chain(directory), before, b"")


@pytest.mark.parametrize("seed", range(2))
def test_compactions_that_are_killed(in_memory: Path, seed: int) -> None:
    """At any instant, one after the other: all epochs that were not to be merged are there."""
    rng = random.Random(seed)
    target = grow(in_memory, seed, 30, often=0.15)
    there = set(range(30))
    for _ in range(8):
        before, was = rng.choice(sorted(there)), there
        merged = {file.epoch for file in line_to(Chain(in_memory).files(), before)[:-1]}
        killed_compaction(in_memory, before, rng.randrange(6))
        there = {file.epoch for file in Chain(in_memory).files()}
        assert was - merged <= there <= was
        assert wrong_epochs(in_memory, target, set(range(30)) - there) == []
    assert len(there) < 30


def test_killed_twice(in_memory: Path) -> None:
    """A base that stands for all older ones is merged while some of these are left over."""
    target = follow(in_memory / "c", None, None, None, None, None, None, 3, None)
    compact(Chain(in_memory / "c"), 5, b"")
    killed_compaction(in_memory / "c", 3, 2)
    chain = Chain(in_memory / "c")
    assert chain.epochs == [0, 3, 5, 6, 7] and chain.files()[0].epoch == 3
    killed_compaction(in_memory / "c", 7, 0)
    assert wrong_epochs(in_memory / "c", target, {0, 1, 2, 3, 4, 6}) == []
    assert [file.epoch for file in Chain(in_memory / "c").files()] == [5, 7]
    compact(Chain(in_memory / "c"), 7, b"")
    assert Chain(in_memory / "c").epochs == [5, 7]


def test_a_branch_is_missing_below_a_base(in_memory: Path) -> None:
    directory = in_memory / "c"
    target = follow(directory, None, None, None, 1, None)
    compact(Chain(directory), 3, b"")
    assert Chain(directory).epochs == [0, 1, 2, 3, 4] and wrong_epochs(directory, target) == []
    copy = in_memory / "copy"
    shutil.copytree(directory, copy)
    for number in (0, 1, 2):
        (copy / epoch_name(number)).unlink()
    for verb in ("verify", "ls"):
        refused = CliRunner().invoke(cli, [verb, str(copy)]).exception
        assert isinstance(refused, ImageError) and f"{epoch_name(2)} is missing" in str(refused)
    compact(Chain(directory), 2, b"")
    assert Chain(directory).epochs == [2, 3, 4] and wrong_epochs(directory, target, {0, 1}) == []
    compact(Chain(directory), 4, b"")
    assert Chain(directory).epochs == [2, 4] and wrong_epochs(directory, target, {0, 1, 3}) == []


def test_what_is_missing_or_exchanged(branched: tuple[Path, Tracked], in_memory: Path) -> None:
    directory, _ = branched
    for number in range(7):
        copy = in_memory / str(number)
        shutil.copytree(directory, copy)
        (copy / epoch_name(number)).unlink()
        with pytest.raises(ImageError, match=rf"{epoch_name(number)} is missing".replace(".", r"\.")):
            Chain(copy).files()
        if number:
            listed = CliRunner().invoke(cli, ["ls", str(copy)])
            assert isinstance(listed.exception, ImageError) and "is missing" in str(listed.exception)
    other = Tracked(in_memory / "other", 6)
    for follows in (None, None, None, None, 1):
        if follows is not None:
            other.roll_back(follows)
        other.work()
        other.take()
    other.chain.close()
    shutil.copy(in_memory / "other" / epoch_name(4), directory)
    with pytest.raises(ImageError, match=r"epoch-00000004\.core does not follow epoch-00000001\.core"):
        Chain(directory).files()
    damaged = bytearray((in_memory / "0" / epoch_name(5)).read_bytes())
    damaged[4200] ^= 1
    (in_memory / "0" / epoch_name(5)).write_bytes(damaged)
    shutil.copy(directory / epoch_name(0), in_memory / "0")
    with pytest.raises(ImageError, match=r"epoch-00000005\.core is damaged"):
        Chain(in_memory / "0").verify(b"")


def test_programs_of_before_refuse_it(branched: tuple[Path, Tracked]) -> None:
    """They know two schemas, and take the parent for the epoch before."""
    directory, _ = branched
    for file in Chain(directory).files():
        deltas = any(kind == NOTE_DELTAS for _, kind, _ in file.notes)
        known = ImageFacts.with_deltas if deltas else ImageFacts.schema
        assert (json.loads(own(file))["schema"] == known) is (file.epoch not in (4, 6))


@pytest.mark.parametrize("parent", [-1, 6, 7, 1 << 70])
def test_a_parent_that_cannot_be(branched: tuple[Path, Tracked], parent: int) -> None:
    directory, _ = branched
    path = directory / epoch_name(6)
    data = path.read_bytes()
    was = b'"parent_epoch":4,"keyed":false'
    assert data.count(was) == 1
    path.write_bytes(data.replace(was, f'"parent_epoch":{parent},"keyed":0'.encode().ljust(len(was))))
    with pytest.raises(ImageError, match="damaged"):
        Chain(directory).files()
