"""A session goes on from epochs that it has rolled its target back to: each epoch is what the target was."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from checkpoint.branches import is_branched
from checkpoint.chain import Chain
from checkpoint.epoch_writer import EpochWriter
from checkpoint.errors import RollbackRefusedError
from checkpoint.image import EpochFile
from checkpoint.rollback.request import Request, ask, fingerprint, is_served
from checkpoint.view import check_all_deltas
from tests.helpers import Build, Run, Spawn, session_of, wait_for
from tests.kernel.rolled import WITHOUT_RSEQ, Rolled, held
from tests.kernel.rollee import Rollee, rewrite
from tests.kernel.truth import Truth
from uffdtrack.errors import StorageError, TargetError

MANY = int(os.environ.get("UFFDTRACK_ROLLBACKS", "300"))
A_CHAIN = 60


class Walk:
    """A session on rollee.c, and what its memory was at each epoch."""

    def __init__(self, rollee: Rollee, session: Rolled) -> None:
        self.rollee = rollee
        self.session = session
        self.truths: list[Truth] = []
        self.parents: list[int | None] = []

    def take(self) -> EpochFile:
        with held(self.rollee.pid):
            file = self.session.take()
            self.truths.append(Truth.of(self.rollee.pid))
        assert file.epoch == len(self.truths) - 1
        self.parents.append(file.parent_epoch)
        return file

    def back_to(self, epoch: int) -> None:
        with held(self.rollee.pid):
            self.session.back_to(epoch)

    def wrong(self) -> dict[int, list[str]]:
        """Pages of all epochs that are not what they were."""
        chain = Chain(self.session.directory)
        files = chain.verify(b"")
        check_all_deltas(files)
        assert [file.parent_epoch for file in files] == self.parents
        found = {n: truth.wrong(chain.view(n, files)) for n, truth in enumerate(self.truths)}
        return {n: pages for n, pages in found.items() if pages}


@pytest.fixture
def walk(rolling: str, spawn: Spawn, build: Build, in_memory: Path) -> Iterator[Walk]:
    rollee = Rollee(spawn, build, env=WITHOUT_RSEQ)
    with ExitStack() as stack:
        yield Walk(rollee, Rolled(stack, rollee.pid, in_memory / "c", rolling))


def wander(walk: Walk, rounds: int, seed: int) -> int:
    """Epochs and rollbacks at random, with values that come again; returns how many rollbacks."""
    rng = random.Random(seed)
    rollee, done, messed = walk.rollee, 0, False
    messed_up: list[bool] = []
    for _ in range(rounds):
        if not messed:  # else it must do nothing but be rolled back
            for _ in range(rng.randrange(3)):
                rollee.ask(rng.choice(("s 1", "s 2", "s 3", "g")))
            messed = rng.random() < 0.3 and rollee.ask("m") == "messed"
        if rng.random() < 0.7 or not messed_up:
            walk.take()
            messed_up.append(messed)
        for _ in range(rng.choice((0, 1, 1, 2))):
            epoch = rng.randrange(len(messed_up))
            try:
                walk.back_to(epoch)
            except RollbackRefusedError as error:
                assert "ended since and cannot be made again" in str(error), error
            else:
                done, messed = done + 1, messed_up[epoch]
    walk.take()
    return done


def test_random_rollbacks(walk: Walk) -> None:
    assert wander(walk, 14, 5) > 3
    assert walk.wrong() == {}


@pytest.mark.slow
@pytest.mark.parametrize("follow_shared", [False, True])
def test_many_random_rollbacks(
    rolling: str, spawn: Spawn, build: Build, in_memory: Path, follow_shared: bool
) -> None:
    done = 0
    for n in range(-(-MANY // A_CHAIN)):
        rollee = Rollee(spawn, build, env=WITHOUT_RSEQ)
        with ExitStack() as stack:
            walk = Walk(rollee, Rolled(stack, rollee.pid, in_memory / f"c{n}", rolling, follow_shared))
            done += wander(walk, A_CHAIN, n)
            assert walk.wrong() == {}
        rollee.process.kill()
    print(f"{done} rollbacks with {rolling}, follow_shared={follow_shared}")


def test_contents_of_the_last_epoch_again(walk: Walk) -> None:
    rewrite(walk.rollee, walk)
    assert walk.wrong() == {}
    assert walk.parents == [None, 0, 0, 2, 0]


def test_negative_control(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose next epoch has only what its tracker finds must show."""
    monkeypatch.setattr(type(walk.session.target), "take_back", lambda self, pending: None)
    rewrite(walk.rollee, walk)
    assert set(walk.wrong()) & {2, 4}


def test_another_branch(walk: Walk) -> None:
    """From one branch to the other, to and fro, with and without an epoch in between."""
    for value in (1, 2):
        assert walk.rollee.ask(f"s {value}") == str(value)
        walk.take()
    walk.back_to(0)
    assert walk.rollee.ask("s 3") == "3"
    walk.take()
    walk.back_to(1)
    assert walk.rollee.ask("c") == "2"
    walk.take()
    walk.back_to(2)
    walk.back_to(0)
    walk.back_to(3)
    assert walk.rollee.ask("c") == "2"
    assert walk.rollee.ask("g") == "2"
    walk.take()
    assert walk.parents == [None, 0, 0, 1, 3]
    assert walk.wrong() == {}


def test_an_epoch_that_is_dropped(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is the child of the same epoch, and has what that one had."""
    for value in (1, 2):
        assert walk.rollee.ask(f"s {value}") == str(value)
        walk.take()
    walk.back_to(0)
    assert walk.rollee.ask("s 2") == "2"
    for step in ("finish", "sync"):
        with monkeypatch.context() as patch, pytest.raises(StorageError):

            def fails(self: object, *of: object) -> None:
                raise StorageError("no space left")

            patch.setattr(EpochWriter, step, fails)
            walk.take()
    walk.take()
    assert walk.parents == [None, 0, 0]
    assert walk.wrong() == {}


def test_a_base_in_between(walk: Walk) -> None:
    """Where it is not known what differs, the next epoch is a base, and has the same parent."""
    session = walk.session.session
    for value in (1, 2):
        assert walk.rollee.ask(f"s {value}") == str(value)
        walk.take()
    session.stream.rebase()
    walk.take()
    walk.back_to(1)
    assert session.stream.is_due
    assert walk.take().facts.base
    session.stream.rebase()
    walk.back_to(0)
    assert walk.take().facts.base
    walk.back_to(2)
    assert walk.rollee.ask("c") == "2"
    walk.take()
    assert walk.parents == [None, 0, 1, 1, 0, 2]
    assert walk.wrong() == {}


def test_a_rollback_that_fails(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next epoch follows the last one, whatever was changed."""
    for value in (1, 2):
        assert walk.rollee.ask(f"s {value}") == str(value)
        walk.take()
    for place in ("contents.Memory.write", "registrations.Registrations.put"):
        with monkeypatch.context() as patch:

            def fails(self: object, *of: object) -> None:
                raise TargetError("made to fail")

            patch.setattr(f"checkpoint.rollback.{place}", fails)
            with pytest.raises(TargetError, match="made to fail"):
                walk.back_to(0)
        walk.take()
    assert walk.parents == [None, 0, 1, 2]
    assert walk.wrong() == {}


def test_sessions_that_are_killed(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run
) -> None:
    """At random instants, between rollbacks, with an epoch each few milliseconds: what is there is whole."""
    rollee = Rollee(spawn, build, env=WITHOUT_RSEQ)
    rng = random.Random(4)
    for n in range(3):
        directory, rows = tmp_path / f"c{n}", tmp_path / f"rows{n}"
        assert rollee.ask("s 1") == "1"
        with rows.open("wb") as out:
            options: Any = ("--every", "5ms", "--json")
            session = session_of(spawn, rollee.pid, directory, *options, start_new_session=True, stdout=out)
        wait_for(lambda d=directory, r=rows: is_served(d) and r.stat().st_size > 0, "it listens")  # type: ignore[misc]
        last = 0
        for value in (2, 3, 2):
            assert rollee.ask(f"s {value}") == str(value)
            wait_for(lambda d=directory, n=last: Chain(d).epochs[-1] > n, "an epoch follows")  # type: ignore[misc]
            last = Chain(directory).epochs[-1]
            view = Chain(directory).view(rng.randrange(last))
            epoch = view.epoch
            outcome = ask(
                directory, Request(rollee.pid, epoch.epoch, epoch.digest, fingerprint(view), False, 5.0)
            )
            assert outcome and outcome.epoch == epoch.epoch and rollee.ask("c") in "123"
        time.sleep(rng.uniform(0, 0.05))
        os.killpg(session.pid, signal.SIGKILL)
        session.wait()
        wait_for(lambda d=directory: not is_served(d), "it has ended")  # type: ignore[misc]
        files = Chain(directory).verify(b"")
        check_all_deltas(files)
        assert is_branched(files)
    listed = uffdtrack("ls", directory, "--json").stdout.splitlines()
    assert [json.loads(line).get("parent_epoch") for line in listed] == [
        file.facts.parent_epoch for file in files
    ]
    uffdtrack("rollback", rollee.pid, f"{directory}@{rng.choice(files).epoch}")
    assert rollee.ask("c") in "123"
