"""Shared memory that only the processes of a tree map is followed by traps of each; it is never wrong."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from checkpoint.tree import Tree
from checkpoint.tree_session import TreeSession
from tests.helpers import Build, Spawn, broken, wait_for
from tests.kernel.commons import AT, Commons, Watched
from tests.kernel.forks import is_dead
from tests.kernel.rolled import held
from tests.kernel.tree_walk import Walk
from uffdtrack import PAGE, children

CALM = "rop"
"""Ways to write, and to give pages back, that leave no mark."""
CHURN = CALM + "dDctgM"
WAYS = [CALM, "S" + CALM, CHURN + "m", "S" + CHURN]
"""The parts of a segment that mprotect(2) has made never merge again."""


@pytest.fixture(params=["ring", "scan"])
def engine(request: pytest.FixtureRequest, root: None) -> str:
    name: str = request.param
    return name


@pytest.fixture
def watch(
    stack: ExitStack, spawn: Spawn, build: Build, in_memory: Path, engine: str
) -> Callable[[int, str], Watched]:
    """A session on so many writers, with these ways."""
    return lambda writers, ways: Watched(stack, Commons(spawn, build, writers, ways), in_memory / "t", engine)


def take_many(watched: Watched, epochs: int) -> bool:
    """Returns whether it was followed in each."""
    rng = random.Random(3)
    followed = []
    for _ in range(epochs):
        threading.Event().wait(rng.random() * 0.004)
        assert watched.take() == []
        followed.append(watched.followed)
    return all(followed)


def follow(watched: Watched) -> None:
    wait_for(lambda: take_many(watched, 2), "its shared memory is followed")


@pytest.mark.parametrize("ways", WAYS)
def test_every_epoch_is_an_instant(watch: Callable[[int, str], Watched], ways: str) -> None:
    watched = watch(3, ways)
    take_many(watched, 6)
    watched.commons.turn()
    take_many(watched, 6)
    assert min(watched.commons.counts) > 50


NAMESPACES = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
for n in range(2):
    ends = os.pipe()
    if not os.fork():  # it ends with its parent's input
        assert not libc.unshare(0x08000000)  # CLONE_NEWIPC
        segment = libc.shmget(0, 1 << 20, 0o1600)
        at = libc.shmat(segment, None, 0)
        libc.shmctl(segment, 0, None)
        ctypes.memmove(at, b"own %d" % n, 5)
        os.write(ends[1], b"%d %d %d" % (os.getpid(), segment, at))
        sys.stdin.read()
        os._exit(0)
    print(os.read(ends[0], 99).decode(), flush=True)
sys.stdin.read()
"""


def test_segments_of_two_namespaces(
    root: None, spawn: Spawn, tree_of: Callable[[int], TreeSession], tmp_path: Path
) -> None:
    """Each counts its ids by itself: so two segments may have one number."""
    process = spawn(sys.executable, "-c", NAMESPACES)
    assert process.stdout
    places = [[int(x) for x in process.stdout.readline().split()] for _ in range(2)]
    assert places[0][1] == places[1][1]
    epoch = tree_of(process.pid).take().epoch
    entry = Tree(tmp_path / "t").open(epoch)
    views = {one.pid: entry.view(one) for one in entry.processes}
    for n, (pid, _, at) in enumerate(places):
        page = np.array([at // PAGE], np.uint64)
        assert views[pid].read(page)[0].tobytes()[:5] == b"own %d" % n


@pytest.mark.slow
@pytest.mark.parametrize("ways", WAYS)
def test_many_epochs(watch: Callable[[int, str], Watched], ways: str) -> None:
    """It is followed where nothing leaves a mark, and again after that."""
    watched = watch(4, ways)
    for _ in range(8):
        follow(watched)
        take_many(watched, 5)
        watched.commons.turn()
        followed = take_many(watched, 5)
        assert followed or ways.strip("S") != CALM
        watched.commons.turn()


def test_rollbacks(stack: ExitStack, spawn: Spawn, build: Build, in_memory: Path, engine: str) -> None:
    """By the session, which compares it then and goes on."""
    commons = Commons(spawn, build, 3, "")
    walk = Walk(stack, commons.pid, in_memory / "t", engine, follow_shared=True)
    rng = random.Random(5)
    for n in range(9):
        threading.Event().wait(rng.random() * 0.02)
        number = walk.take()
        if n % 3 == 2:
            walk.back_to(rng.randrange(number + 1))
    assert walk.wrong() == {}


LEAVES = ["k", "e", "x", "u", "n", "Sk", "Su"]
"""A writer is killed, calls exec, exits, unmaps it, or has a child go on for it."""


@contextmanager
def all_held(pids: Iterable[int]) -> Iterator[None]:
    with ExitStack() as stack:
        for pid in pids:
            stack.enter_context(held(pid))
        yield


def let_leave(watched: Watched) -> None:
    """One writer has written, and has done its last; before and after, an epoch."""
    child, *others = watched.commons.children

    def has_left() -> bool:
        maps = "" if is_dead(child) else Path(f"/proc/{child}/maps").read_text()
        return f"{AT:x}" not in maps or bool(children(child))

    with all_held([watched.commons.pid, *others]):  # or they would write its pages, too
        take_many(watched, 1)
        os.kill(child, signal.SIGUSR1)
        wait_for(has_left, "the writer leaves")
        with all_held(watched.commons.orphans()):
            take_many(watched, 1)


@pytest.mark.slow
@pytest.mark.parametrize("ways", LEAVES)
def test_one_that_leaves(watch: Callable[[int, str], Watched], ways: str) -> None:
    """What it has written last is there; and it is followed again, as by those that have come."""
    watched = watch(3, ways)
    follow(watched)
    let_leave(watched)
    take_many(watched, 5)
    follow(watched)
    take_many(watched, 5)


@pytest.mark.slow
@pytest.mark.parametrize("ways", ["f", "Sf"])
def test_an_orphan(
    stack: ExitStack, spawn: Spawn, build: Build, in_memory: Path, engine: str, ways: str
) -> None:
    """It goes on to write, and is no member."""
    commons = Commons(spawn, build, 3, ways)
    stack.callback(commons.kill_orphans)
    watched = Watched(stack, commons, in_memory / "t", engine)
    follow(watched)
    let_leave(watched)
    before = sum(watched.commons.counts)
    for _ in range(20):
        with all_held(watched.commons.orphans()):
            assert not take_many(watched, 1)
    assert sum(watched.commons.counts) > before


@pytest.mark.slow
@pytest.mark.parametrize("ways", ["c", "g", "Sc", "k", "x", "u", "Sk", "Su"])
def test_negative_control(spawn: Spawn, build: Build, in_memory: Path, engine: str, ways: str) -> None:
    """Where nobody hears of children, or of those that leave, pages are lost, unless it is just compared."""

    def goes_wrong(attempt: int) -> bool:
        with ExitStack() as stack:
            watched = Watched(stack, Commons(spawn, build, 3, ways), in_memory / f"t{attempt}", engine)
            follow(watched)
            with broken("sharers"):
                try:
                    if ways[-1] in "cg":
                        watched.commons.turn()
                    else:
                        let_leave(watched)
                    take_many(watched, 100)
                except AssertionError:
                    return True
        return False

    assert any(goes_wrong(attempt) for attempt in range(5))
