"""A session of a tree goes on from epochs that it has rolled its processes back to."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from checkpoint.errors import ImageError, RollbackRefusedError
from checkpoint.rollback.request import is_served
from checkpoint.rollback.work import ProcessRollback
from checkpoint.targets.process import ProcessTarget
from checkpoint.tree import Tree, TreeWriter, entry_name
from tests.helpers import Build, Run, Spawn, broken, session_of, wait_for
from tests.kernel.forks import Forks, cut_errors, is_dead
from tests.kernel.rolled import WITHOUT_RSEQ, count_compared
from tests.kernel.rollee import Rollee, rewrite
from tests.kernel.tree_walk import Walk, family
from uffdtrack.errors import StorageError, TargetError


@pytest.fixture
def one(rolling: str, spawn: Spawn, build: Build, in_memory: Path) -> Iterator[tuple[Rollee, Walk]]:
    """A tree of one process, which does what it is told."""
    rollee = Rollee(spawn, build, env=WITHOUT_RSEQ)
    with ExitStack() as stack:
        yield rollee, Walk(stack, rollee.pid, in_memory / "t", rolling)


@pytest.fixture
def ring(
    rolling: str, root: None, spawn: Spawn, build: Build, in_memory: Path
) -> Iterator[tuple[Forks, Walk]]:
    """Three processes, with memory in common."""
    target = Forks(spawn(build("forks"), 0, env=WITHOUT_RSEQ))
    assert target.ask("h") == "held"
    with ExitStack() as stack:
        yield target, Walk(stack, target.pid, in_memory / "t", rolling)


def test_contents_of_the_last_epoch_again(one: tuple[Rollee, Walk]) -> None:
    rollee, walk = one
    rewrite(rollee, walk)
    assert walk.parents == [-1, 0, 0, 2, 0]
    assert walk.wrong() == {}


def test_negative_control(one: tuple[Rollee, Walk], monkeypatch: pytest.MonkeyPatch) -> None:
    rollee, walk = one
    monkeypatch.setattr(ProcessTarget, "take_back", lambda self, pending: None)
    with pytest.raises(AssertionError):  # in the process, if it goes back to such an epoch
        rewrite(rollee, walk)
        assert walk.wrong() == {}


SHARERS = """
import mmap, os, sys
PAGES = 16
fd = os.memfd_create("shared")
os.ftruncate(fd, PAGES * 4096)
memory = mmap.mmap(fd, PAGES * 4096)
orders, answers = os.pipe(), os.pipe()
def write(value):
    for page in range(PAGES):
        memory[page * 4096 : (page + 1) * 4096] = bytes([value]) * 4096
def obey(words):
    global memory
    if words[0] == "unmap":
        memory.close()
    elif words[0] == "map":
        memory = mmap.mmap(fd, PAGES * 4096)
    else:
        write(int(words[1]))
if not os.fork():
    os.close(orders[1])  # so that it ends with its parent
    while line := os.read(orders[0], 64):
        obey(line.decode().split())
        os.write(answers[1], b"!")
    os._exit(0)
print("ready", flush=True)
for line in sys.stdin:
    who, *words = line.split()
    if who == "child":
        os.write(orders[1], " ".join(words).encode())
        os.read(answers[0], 1)
    else:
        obey(words)
    print("done", flush=True)
"""


def test_who_stores_shared_memory_changes(rolling: str, spawn: Spawn, root: None, in_memory: Path) -> None:
    """The first that maps it stores it: at one epoch the parent, at another one the child."""
    process = spawn(sys.executable, "-u", "-c", SHARERS, env=WITHOUT_RSEQ)

    def tell(line: str) -> None:
        assert process.stdin and process.stdout
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"done\n"

    assert process.stdout and process.stdout.readline() == b"ready\n"
    with ExitStack() as stack:
        walk = Walk(stack, process.pid, in_memory / "t", rolling)
        tell("parent write 1")
        walk.take()
        for value in (2, 1):
            tell("parent unmap")
            tell(f"child write {value}")
            walk.take()
            walk.back_to(0)
        walk.take()
        for _ in range(2):
            tell("parent unmap")
            tell("child write 2")
            walk.take()
            walk.back_to(1)
            tell("parent map")
            tell("parent write 1")
            walk.take()
            walk.back_to(3)
        tell("child unmap")
        walk.take()
        assert walk.wrong() == {}
        stored = {
            tuple(bool(view.epoch.facts.elsewhere) for view in entry.views().values())
            for entry in Tree(walk.directory).entries()
        }
        assert {(False, True), (False, False)} <= stored


def wander(target: Forks, walk: Walk, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(rounds):
        if rng.random() < 0.7:
            target.go_on(target.token() + 3)
            assert target.ask("h") == "held"
        if rng.random() < 0.7 or not walk.truths:
            walk.take()
        if rng.random() < 0.6:
            walk.back_to(rng.randrange(len(walk.truths)))
    walk.take()
    assert walk.wrong() == {}
    assert [error for entry in Tree(walk.directory).entries() for error in cut_errors(entry)] == []
    target.go_on(target.token() + 100)
    assert target.errors() == 0


def test_a_page_that_is_forgotten(rolling: str, ring: tuple[Forks, Walk]) -> None:
    """Negative control: each rollback is compared with what was read at its epoch."""
    ring[1].take()
    with broken("rearm" if rolling == "sync" else "forget"), pytest.raises((AssertionError, TargetError)):
        wander(*ring, 100, 4)


def test_what_was_not_written_is_not_read(ring: tuple[Forks, Walk], monkeypatch: pytest.MonkeyPatch) -> None:
    target, walk = ring
    walk.take()
    target.go_on(target.token() + 3)
    assert target.ask("h") == "held"
    compared = count_compared(monkeypatch)
    walk.back_to(0)
    pages = sum(len(view.pages) for view in Tree(walk.directory).open(0).views().values())
    assert 0 < sum(compared) < pages * 0.5


def test_random_rollbacks(ring: tuple[Forks, Walk]) -> None:
    wander(*ring, 12, 4)
    assert any(parent != n - 1 for n, parent in enumerate(ring[1].parents))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_many_random_rollbacks(ring: tuple[Forks, Walk], seed: int) -> None:
    wander(*ring, 60, seed)


def test_failures(ring: tuple[Forks, Walk], monkeypatch: pytest.MonkeyPatch) -> None:
    """One process fails, and all are as they were; the epoch after is dropped; one was born, or has ended."""
    target, walk = ring
    walk.take()
    then = target.token()
    target.go_on(then + 3)
    assert target.ask("h") == "held"
    now = target.token()
    walk.take()
    apply, last = ProcessRollback.apply, family(target.pid)[-1]

    def fails(self: ProcessRollback) -> None:
        apply(self)
        if self.pid == last:
            raise self.taken_back(TargetError("sabotage"))

    with monkeypatch.context() as patch:
        patch.setattr(ProcessRollback, "apply", fails)
        with pytest.raises(RollbackRefusedError, match=r"sabotage.*as it was; so are the others"):
            walk.back_to(0)
    assert target.token() == now
    walk.take()
    walk.back_to(0)
    assert target.token() == then
    with monkeypatch.context() as patch, pytest.raises(StorageError):

        def is_full(self: object, *of: object) -> None:
            raise StorageError("no space left")

        patch.setattr(TreeWriter, "commit", is_full)
        walk.take()
    walk.take()
    assert walk.parents == [-1, 0, 1, 0]
    target.tell("c")  # one child, which stays
    born = int(target.read())
    walk.take()
    with pytest.raises(RollbackRefusedError, match=f"born since epoch 3 .*{born}"):
        walk.back_to(3)
    walk.back_to(3, anyway=True)
    wait_for(lambda: is_dead(born), "the child has ended")
    walk.take()
    assert walk.parents[4:] == [3, 3]
    assert walk.wrong() == {}
    with pytest.raises(RollbackRefusedError, match=rf"process {born} \(forks\) of epoch 4 has ended"):
        walk.back_to(4)


def test_by_the_command_line(
    forks: Callable[[int], Forks], spawn: Spawn, uffdtrack: Run, tmp_path: Path
) -> None:
    target, directory = forks(0), tmp_path / "t"
    assert target.ask("h") == "held"
    then = target.token()
    options: Any = ("--every", "50ms", "--json", "--children")
    with (tmp_path / "rows").open("wb") as rows:
        session = session_of(spawn, target.pid, directory, *options, start_new_session=True, stdout=rows)
    wait_for(lambda: is_served(directory) and (tmp_path / "rows").stat().st_size > 0, "it listens")
    target.go_on(then + 200)
    wait_for(lambda: Tree(directory).epochs[-1] > 1, "some epochs are there")
    assert target.ask("h") == "held"
    held = Tree(directory).epochs[-1]
    wait_for(lambda: Tree(directory).epochs[-1] > held + 1, "one has no token on its way")
    done = json.loads(uffdtrack("rollback", target.pid, f"{directory}@0", "--json").stdout)
    assert (done["schema"], len(done["processes"])) == ("uffdtrack/tree-rollback/1", 3)
    assert target.token() == then
    target.go_on(then + 100)
    last = Tree(directory).epochs[-1]
    wait_for(lambda: Tree(directory).epochs[-1] > last + 1, "epochs follow")
    os.killpg(session.pid, signal.SIGKILL)
    session.wait()
    wait_for(lambda: not is_served(directory), "it has ended")
    assert "each follows its parent" in uffdtrack("verify", directory).stdout
    assert uffdtrack("ls", directory).stdout.split()[1] == "after"
    (branch,) = [e.epoch for e in Tree(directory).entries() if e.facts.parent_epoch == 0]
    assert target.ask("h") == "held"
    uffdtrack("rollback", target.pid, f"{directory}@{branch - 1}")
    target.go_on(target.token() + 50)
    assert target.errors() == 0
    (directory / entry_name(branch)).unlink()
    with pytest.raises(ImageError, match="is missing"):
        Tree(directory).entries()
