"""Shared memory that is followed, while others come to it and leave again at any moment."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from tests.helpers import Build, Spawn, broken
from tests.kernel.sole import FORK, PAGES, Sole, attach_and_write, opened, own
from tests.kernel.test_early import copy_early
from tests.kernel.test_oracle import start_writer, take_epochs
from uffdtrack import PAGE, Window

pytestmark = pytest.mark.slow
"""Memory is followed only where the host makes no process for a moment: not beside other tests, reliably."""


@pytest.fixture(params=["anonymous", "segment"])
def sole(request: pytest.FixtureRequest, root: None, spawn: Spawn, tmp_path: Path) -> Sole:
    return Sole(spawn, tmp_path / "c", request.param)


@pytest.mark.parametrize("epochs", [12, 500])
@pytest.mark.parametrize("engine", ["ring", "scan"])
def test_every_epoch_is_a_state_of_the_writer(
    root: None, spawn: Spawn, build: Build, in_memory: Path, engine: str, epochs: int
) -> None:
    """The oracle's shared memory is followed, and copied before the stop, too."""
    compared = []

    def set_up(target: ProcessTarget) -> None:
        window = target.window

        def noting() -> Window:
            taken = window()
            compared.append(taken.compared)
            return taken

        copy_early(target)
        target.window = noting  # type: ignore[method-assign]

    pid, control = start_writer(spawn, build, 2, 31, "calm")
    with broken("delay"):
        directory = in_memory / "chain"
        memory = take_epochs(pid, control, directory, epochs, 31, engine, set_up=set_up, follow_shared=True)
    assert memory.checked > epochs * 2 * 8 * 60
    # A host that makes processes all the time lets no look at them count: then few epochs may not do.
    assert epochs < 100 or any(n < compared[0] for n in compared)


def come_and_go(sole: Sole, session: Session, rounds: int, visit: Callable[[int], None]) -> None:
    rng = random.Random(1)
    for n in range(rounds):
        thread = threading.Thread(target=visit, args=(n,))
        thread.start()
        threading.Event().wait(rng.random() * 0.003)
        sole.take(session)
        thread.join()
        sole.take(session)
        sole.check()


ROUNDS = pytest.mark.parametrize("rounds", [8, 1500])


@ROUNDS
@pytest.mark.parametrize("engine", ["ring", "scan"])
def test_visitors_that_come_and_go(sole: Sole, kernel: None, engine: str, rounds: int) -> None:
    """While it is followed, and as soon as it is followed again: whenever a stop may fall."""

    def visit(n: int) -> None:
        if sole.segment >= 0 and n % 2:
            attach_and_write(sole.segment, n % PAGES, b"visit %d" % n)
        else:
            with opened(sole) as memory:
                memory[n % PAGES * PAGE] = n % 251 + 1

    with sole.session(engine) as session:
        sole.follow(session)
        come_and_go(sole, session, rounds, visit)


@ROUNDS
@pytest.mark.parametrize("engine", ["ring", "scan"])
def test_visitors_after_early_copies(sole: Sole, kernel: None, engine: str, rounds: int) -> None:
    """What was copied before the stop is older than what a visitor puts back, which is what was stored."""

    def visit(n: int) -> None:
        page, first = n % PAGES, b"%d first" % (n % PAGES)
        sole.write(page, "other")
        threading.Event().wait(n % 5 / 1000)
        with opened(sole) as memory:
            memory[page * PAGE : page * PAGE + len(first)] = first

    with broken("delay"), sole.session(engine) as session:
        copy_early(session.target)
        sole.follow(session)
        come_and_go(sole, session, rounds, visit)


@ROUNDS
@pytest.mark.parametrize("engine", ["ring", "scan"])
def test_children_that_come_and_go(sole: Sole, kernel: None, engine: str, rounds: int) -> None:
    def child(n: int) -> None:
        put = f"put({{at}} + {n % PAGES} * {{page}}, b'child {n}')"
        own(FORK.format(f"time.sleep({n % 4 / 1000}), {put}"))(sole)

    with sole.session(engine) as session:
        sole.follow(session)
        come_and_go(sole, session, rounds, child)
