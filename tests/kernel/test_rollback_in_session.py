"""A session rolls its target back by what it knows, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from checkpoint.chain import Chain
from checkpoint.rollback.request import Request, fingerprint
from tests.helpers import Build, Spawn, start_notices, state_of
from tests.helpers import ask as ask_program
from tests.kernel.rolled import WITHOUT_RSEQ, Rolled, count_compared, held, roll, start_writer
from tests.kernel.rollee import Rollee, covers, differing
from uffdtrack.errors import InvalidInputError, TargetError, TargetGoneError

ROUNDS = 8
MANY = int(os.environ.get("UFFDTRACK_ROLLBACKS", "300"))
"""Rounds of the slow test, for each engine."""
A_CHAIN = 50
"""Rounds after which the slow test begins another chain: each look at one costs what it is long."""


# -- the bytes ---------------------------------------------------------------------------------------


def test_rolled_back_to_random_epochs(rolling: str, spawn: Spawn, build: Build, in_memory: Path) -> None:
    """Threads, mappings that come, go, move, grow and change, shared ones, a heap, children."""
    pid, control = start_writer(spawn, build, 2, 21)
    assert roll(pid, control, in_memory / "c", rolling, ROUNDS, 21)


@pytest.mark.slow
def test_thousands_of_rollbacks(rolling: str, spawn: Spawn, build: Build, in_memory: Path) -> None:
    done = 0
    for n in range(-(-MANY // A_CHAIN)):
        pid, control = start_writer(spawn, build, 1 + n % 3, 1000 + n)
        done += roll(pid, control, in_memory / f"c{n}", rolling, A_CHAIN, n)
        subprocess.run(["rm", "-rf", in_memory / f"c{n}"], check=True)
        os.kill(pid, signal.SIGKILL)
    print(f"{done} rollbacks with {rolling}")
    assert done > MANY // 3


@pytest.mark.parametrize(("engine", "sabotage"), [("scan", "forget"), ("ring", "forget"), ("sync", "forget")])
def test_negative_control(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, engine: str, sabotage: str
) -> None:
    """A rollback that does not know of a page must show."""
    pid, control = start_writer(spawn, build, 2, 9)
    with pytest.raises((AssertionError, TargetError)):
        roll(pid, control, in_memory / "c", engine, 300, 9, sabotage)


@pytest.fixture
def rolled(rolling: str, spawn: Spawn, build: Build, tmp_path: Path) -> Any:
    rollee = Rollee(spawn, build, env=WITHOUT_RSEQ)
    with ExitStack() as stack:
        yield rollee, Rolled(stack, rollee.pid, tmp_path / "c", rolling)


def test_mappings_threads_and_contents(rolled: tuple[Rollee, Rolled]) -> None:
    """What is written between an epoch and the rollback, in mappings that have come, gone and changed."""
    rollee, session = rolled
    assert rollee.ask("s 42") == "42"
    threads, maps = rollee.threads(), rollee.maps()
    session.take()
    for _ in range(2):
        assert rollee.ask("m") == "messed"
        assert rollee.threads() == threads + 1
        with held(rollee.pid):
            outcome = session.back_to(0)
            assert len(outcome.ended) == 1 and outcome.mappings > 5
            assert differing(rollee.pid, Chain(session.directory).view(0)) == []
        assert rollee.threads() == threads and covers(rollee.maps()) == covers(maps)
        assert rollee.ask("c") == "42"
        session.take()
    assert rollee.ask("s 43") == "43"
    session.take()
    with held(rollee.pid):
        session.back_to(3)
        assert differing(rollee.pid, Chain(session.directory).view(3)) == []
    assert rollee.ask("c") == "43"


def test_what_was_not_written_is_not_read(
    rolled: tuple[Rollee, Rolled], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It compares pages that were written since, not all that the image has."""
    rollee, session = rolled
    session.take()
    assert rollee.ask("s 1") == "1"
    session.take()
    compared = count_compared(monkeypatch)
    assert rollee.ask("s 2") == "2"
    session.back_to(1)
    assert rollee.ask("c") == "1"
    assert 0 < sum(compared) < len(Chain(session.directory).view(1).pages) * 0.9


def test_a_failure_is_taken_back_and_the_session_goes_on(
    rolled: tuple[Rollee, Rolled], monkeypatch: pytest.MonkeyPatch
) -> None:
    rollee, session = rolled
    assert rollee.ask("s 1") == "1"
    session.take()
    assert rollee.ask("s 2") == "2"
    with monkeypatch.context() as patch:

        def fails(self: object, plan: object) -> None:
            raise TargetError("made to fail")

        patch.setattr("checkpoint.rollback.contents.Memory.write", fails)
        with pytest.raises(TargetError, match="made to fail; the process is as it was"):
            session.back_to(0)
    assert rollee.ask("c") == "2"
    session.take()
    with held(rollee.pid):
        session.back_to(1)
        assert differing(rollee.pid, Chain(session.directory).view(1)) == []
    assert rollee.ask("c") == "2"


def test_a_stop_that_is_too_long_for_the_client(rolled: tuple[Rollee, Rolled]) -> None:
    rollee, session = rolled
    assert rollee.ask("s 1") == "1"
    session.take()
    assert rollee.ask("s 2") == "2"
    with pytest.raises(TargetError, match=r"--max-stop 1e-06s\): give it more; the process is as it was"):
        session.back_to(0, max_stop=1e-6)
    assert rollee.ask("c") == "2"


def test_a_chain_that_is_not_what_was_verified(rolled: tuple[Rollee, Rolled]) -> None:
    rollee, session = rolled
    session.take()
    view = Chain(session.directory).view(0)
    request = Request(rollee.pid, 0, view.epoch.digest, fingerprint(view), False, 5.0)
    (session.directory / "epoch-00000000.core").touch()
    with pytest.raises(InvalidInputError, match="was replaced while it was read"):
        session.rollback(request, lambda: None)
    with pytest.raises(InvalidInputError, match="has no epoch 7"):
        session.rollback(Request(rollee.pid, 7, "", "", False, 5.0), lambda: None)


def test_a_target_that_has_ended(rolled: tuple[Rollee, Rolled]) -> None:
    rollee, session = rolled
    session.take()
    rollee.process.kill()
    rollee.process.wait()
    with pytest.raises(TargetGoneError):
        session.back_to(0)


def test_it_is_not_noticed(rolling: str, spawn: Spawn, build: Build, tmp_path: Path) -> None:
    process = start_notices(spawn, build)
    before = state_of(process.pid)
    with ExitStack() as stack:
        rolled = Rolled(stack, process.pid, tmp_path / "c", rolling)
        rolled.take()
        for _ in range(10):
            rolled.back_to(rolled.take().epoch)
            ask_program(process)
    assert state_of(process.pid) == before
