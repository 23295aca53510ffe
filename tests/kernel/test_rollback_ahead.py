"""A rollback compares while the process runs, by itself or by a session: what is written later goes back.

What the memory is at the end of the stop is read by /proc/PID/mem, page by page, by the rollback's process.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from checkpoint.errors import RollbackRefusedError
from checkpoint.rollback.contents import Memory
from checkpoint.rollback.outcome import Outcome
from checkpoint.rollback.plan import Plan
from checkpoint.rollback.stored import Image
from checkpoint.rollback.work import ProcessRollback
from tests.helpers import Build, Spawn, broken, state_changes, state_of, traps
from tests.kernel.rolled import (
    WITHOUT_RSEQ,
    Target,
    after_comparison,
    is_of_the_writer,
    start_writer,
    wrong,
)
from tests.kernel.rollee import Rollee
from uffdtrack import AddressSpace
from uffdtrack.errors import PermissionDeniedError, TargetBusyError, TargetError, UffdtrackError

TRIES = 30
"""Rollbacks in which a negative control has to show."""


# -- a process that writes all the time ---------------------------------------------------------------


def roll_at_random(target: Target, epochs: int, rounds: int, seed: int) -> int:
    """How many rollbacks were done; the others were refused, see `is_of_the_writer`.

    Raises:
        AssertionError: a byte is wrong.
    """
    rng, done = random.Random(seed), 0
    for _ in range(rounds):
        try:
            outcome = target.back_to(rng.randrange(epochs))
        except RollbackRefusedError as error:
            assert is_of_the_writer(error), error
            continue
        assert not wrong(outcome), wrong(outcome)[:3]
        done += 1
        if target.session and rng.randrange(2):
            target.session.take()
    return done


def test_rolled_back_to_random_epochs(
    by: str, stack: ExitStack, spawn: Spawn, build: Build, in_memory: Path
) -> None:
    """Threads, mappings that come, go, move, grow and change, shared ones, a heap, children."""

    def rolls(n: int) -> int:
        pid, _ = start_writer(spawn, build, 2, 31 + n)
        return roll_at_random(Target(stack, pid, in_memory / f"c{n}", by, 6), 6, 5, 31 + n)

    assert any(rolls(n) for n in range(9))  # all of one writer's epochs may have a thread that ended


@pytest.mark.slow
def test_hundreds_of_rollbacks(by: str, spawn: Spawn, build: Build, in_memory: Path) -> None:
    done = 0
    for n in range(10):
        pid, _ = start_writer(spawn, build, 1 + n % 3, 3000 + n)
        with ExitStack() as stack:
            done += roll_at_random(Target(stack, pid, in_memory / f"c{n}", by, 6), 6, 50, n)
        os.kill(pid, signal.SIGKILL)
    assert done > 100


@pytest.mark.slow
def test_negative_control(by: str, stack: ExitStack, spawn: Spawn, build: Build, in_memory: Path) -> None:
    """A look that forgets a page must show."""
    pid, _ = start_writer(spawn, build, 2, 32)
    target = Target(stack, pid, in_memory / "c", by, 2)
    with broken("forget"), pytest.raises((AssertionError, TargetError)):
        roll_at_random(target, 2, 10 * TRIES, 32)


# -- what is written between the comparison and the stop, of each kind of memory -----------------------


@pytest.fixture
def rollee(kernel: None, checked: None, spawn: Spawn, build: Build) -> Rollee:
    return Rollee(spawn, build, env=WITHOUT_RSEQ)


def test_what_is_written_after_the_comparison_goes_back(
    by: str, rollee: Rollee, stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anonymous memory, large and small, of files, private and shared, the heap, data, a thread's own."""
    assert rollee.ask("s 5") == "5"
    target = Target(stack, rollee.pid, tmp_path / "c", by)
    after_comparison(monkeypatch, lambda: rollee.ask("s 9"))
    for number in range(4):
        outcome = target.back_to()
        assert not wrong(outcome) and outcome.pages > 400
        assert rollee.ask("c") == "5"
        if target.session and number % 2:
            target.session.take()


def test_written_after_the_comparison_and_forgotten(
    by: str, rollee: Rollee, stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the test above."""
    assert rollee.ask("s 5") == "5"
    target = Target(stack, rollee.pid, tmp_path / "c", by)
    after_comparison(monkeypatch, lambda: rollee.ask("s 9"))
    with broken("forget"):
        assert wrong(target.back_to())


def test_a_failure_is_taken_back(
    by: str, rollee: Rollee, stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To what the memory was in the stop: pages were read before it, and some of them written after that."""
    assert rollee.ask("s 5") == "5"
    target = Target(stack, rollee.pid, tmp_path / "c", by)
    assert rollee.ask("s 6") == "6"
    with monkeypatch.context() as patch:
        write = Memory.write

        def fails(self: Memory, plan: Plan) -> None:
            write(self, plan)
            raise TargetError("made to fail")

        patch.setattr(Memory, "write", fails)
        with pytest.raises(TargetError, match="made to fail; the process is as it was"):
            target.back_to()
        assert rollee.ask("c") == "6"
        after_comparison(patch, lambda: rollee.ask("s 7"))
        with pytest.raises(TargetError, match="made to fail; the process is as it was"):
            target.back_to()
        assert rollee.ask("c") == "7"
    assert not wrong(target.back_to()) and rollee.ask("c") == "5"


def test_in_the_stop_it_reads_what_was_written(
    by: str, rollee: Rollee, stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(stack, rollee.pid, tmp_path / "c", by)
    assert rollee.ask("s 6") == "6"
    compare, commit = sys.modules["checkpoint.rollback.contents"].compare_pages, ProcessRollback.commit
    compared: list[int] = []

    def count(memory: int, pages: Any, *more: Any) -> Any:
        compared.append(len(pages))
        return compare(memory, pages, *more)

    def and_tell(self: ProcessRollback) -> Outcome:
        outcome = commit(self)
        outcome.warnings.append(f"compared {sum(compared)}")
        return outcome

    monkeypatch.setattr("checkpoint.rollback.contents.compare_pages", count)
    monkeypatch.setattr(ProcessRollback, "commit", and_tell)
    outcome = target.back_to()
    assert not wrong(outcome) and outcome.pages > 400
    (told,) = [text for text in outcome.warnings if text.startswith("compared ")]
    # "sync" makes nothing ready before the stop.
    most = outcome.pages * 1.2 if by == "sync" else len(target.view().pages) * 0.5
    assert 0 < int(told.split()[1]) < most


@pytest.mark.parametrize(
    ("where", "error"), [("attach", PermissionDeniedError("no")), ("harvest", TargetBusyError("busy"))]
)
def test_where_no_traps_can_be_set(
    rollee: Rollee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: UffdtrackError
) -> None:
    """Then it compares all memory in the stop."""
    with ExitStack() as stack:
        target = Target(stack, rollee.pid, tmp_path / "c")
    assert rollee.ask("s 6") == "6"

    def fails(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(AddressSpace, where, fails)
    assert not wrong(target.back_to())
    assert rollee.ask("c") == "1" and not traps(rollee.pid)


# -- our end ------------------------------------------------------------------------------------------


def test_killed_while_it_compares(
    kernel: None,
    stack: ExitStack,
    spawn: Spawn,
    build: Build,
    in_memory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pid, _ = start_writer(spawn, build, 1, 33)
    target = Target(stack, pid, in_memory / "c")
    same = Image.same

    def and_die(self: Image, *arguments: Any) -> Any:
        same(self, *arguments)
        assert traps(pid)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Image, "same", and_die)
    with pytest.raises(TargetError, match="own process died"):
        target.back_to()
    assert not traps(pid)
    state_changes(pid)


def test_it_leaves_the_process_as_it_was(rollee: Rollee, stack: ExitStack, tmp_path: Path) -> None:
    before = state_of(rollee.pid)
    target = Target(stack, rollee.pid, tmp_path / "c")
    for _ in range(3):
        target.back_to()
    assert state_of(rollee.pid) == before and not traps(rollee.pid)
