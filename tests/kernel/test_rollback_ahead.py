"""A rollback by itself compares while the process runs: what is written after that goes back, too.

What the memory is at the end of the stop is read by /proc/PID/mem, page by page, by the rollback's process.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from checkpoint.chain import Chain
from checkpoint.errors import RollbackRefusedError
from checkpoint.rollback.ahead import Ahead
from checkpoint.rollback.order import rollback
from checkpoint.rollback.stored import Image
from checkpoint.rollback.work import Outcome, ProcessRollback
from checkpoint.view import View
from tests.conftest import missing
from tests.helpers import Build, Spawn, broken, state_changes, state_of, traps
from tests.kernel.rolled import WITHOUT_RSEQ, Rolled, start_writer
from tests.kernel.rollee import Rollee, differing, maps_of
from uffdtrack import PAGE, AddressSpace, Runs
from uffdtrack.errors import PermissionDeniedError, TargetBusyError, TargetError, UffdtrackError

WRONG = "wrong: "
TRIES = 30
"""Rollbacks in which a negative control has to show."""


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rollback compares all bytes before the target runs on, and names wrong ones in `warnings`."""
    commit = ProcessRollback.commit

    def and_look(self: ProcessRollback) -> Outcome:
        outcome = commit(self)
        outcome.warnings += [WRONG + text for text in differing(self.pid, self.view)]
        return outcome

    monkeypatch.setattr(ProcessRollback, "commit", and_look)


def wrong(outcome: Outcome) -> list[str]:
    return [text for text in outcome.warnings if text.startswith(WRONG)]


def chain_of(pid: int, directory: Path, epochs: int) -> list[View]:
    with ExitStack() as stack:
        rolled = Rolled(stack, pid, directory, "scan")
        for _ in range(epochs):
            rolled.take()
    return [Chain(directory).view(epoch) for epoch in range(epochs)]


# -- a process that writes all the time ---------------------------------------------------------------


def roll_at_random(pid: int, views: list[View], rounds: int, seed: int) -> int:
    """How many rollbacks were done; the others were refused, since a thread of the epoch has ended.

    Raises:
        AssertionError: a byte is wrong.
    """
    rng, done = random.Random(seed), 0
    for _ in range(rounds):
        try:
            outcome = rollback(pid, rng.choice(views))
        except RollbackRefusedError as error:
            assert "ended since and cannot be made again" in str(error), error
            continue
        assert not wrong(outcome), wrong(outcome)[:3]
        done += 1
    return done


def test_rolled_back_to_random_epochs(
    kernel: None, checked: None, spawn: Spawn, build: Build, in_memory: Path
) -> None:
    """Threads, mappings that come, go, move, grow and change, shared ones, a heap, children."""
    pid, _ = start_writer(spawn, build, 2, 31)
    assert roll_at_random(pid, chain_of(pid, in_memory / "c", 6), 6, 31)
    assert not traps(pid)


@pytest.mark.slow
def test_hundreds_of_rollbacks(
    kernel: None, checked: None, spawn: Spawn, build: Build, in_memory: Path
) -> None:
    done = 0
    for n in range(10):
        pid, _ = start_writer(spawn, build, 1 + n % 3, 3000 + n)
        done += roll_at_random(pid, chain_of(pid, in_memory / f"c{n}", 6), 50, n)
        os.kill(pid, signal.SIGKILL)
    assert done > 100


@pytest.mark.slow
def test_negative_control(kernel: None, checked: None, spawn: Spawn, build: Build, in_memory: Path) -> None:
    """A look that forgets a page must show."""
    pid, _ = start_writer(spawn, build, 2, 32)
    views = chain_of(pid, in_memory / "c", 2)
    with broken("forget"), pytest.raises((AssertionError, TargetError)):
        roll_at_random(pid, views, 10 * TRIES, 32)


# -- what is written between the comparison and the stop, of each kind of memory -----------------------


@pytest.fixture
def rollee(kernel: None, checked: None, spawn: Spawn, build: Build) -> Rollee:
    return Rollee(spawn, build, env=WITHOUT_RSEQ)


def after_comparison(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Do something when all was compared, and before the process stands."""
    before = Ahead.before

    def and_act(self: Ahead, image: Image) -> Runs | None:
        found = before(self, image)
        assert found is not None, "it was compared while it ran"
        act(self.pid)
        return found

    monkeypatch.setattr(Ahead, "before", and_act)


def write_everywhere(pid: int) -> None:
    """Change a byte of the first and the last page of each mapping that is in use and writable."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for region in maps_of(pid):
            if not region.stored or "w" not in region.permissions or region.name == "[stack]":
                continue
            for page in {region.start, region.end - PAGE}:
                memory.seek(page + 8)
                byte = memory.read(1)[0]
                memory.seek(page + 8)
                memory.write(bytes([byte ^ 0x5A]))


def test_what_is_written_after_the_comparison_goes_back(
    rollee: Rollee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anonymous memory, large and small, of files, private and shared, the heap."""
    assert rollee.ask("s 5") == "5"
    view = chain_of(rollee.pid, tmp_path / "c", 1)[0]
    after_comparison(monkeypatch, write_everywhere)
    for _ in range(3):
        outcome = rollback(rollee.pid, view)
        assert not wrong(outcome) and outcome.pages > 10
        assert rollee.ask("c") == "5"
    assert not traps(rollee.pid)


def test_written_after_the_comparison_and_forgotten(
    rollee: Rollee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the test above."""
    assert rollee.ask("s 5") == "5"
    view = chain_of(rollee.pid, tmp_path / "c", 1)[0]
    after_comparison(monkeypatch, write_everywhere)
    with broken("forget"):
        assert wrong(rollback(rollee.pid, view))


def test_in_the_stop_it_reads_what_was_written(
    rollee: Rollee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = chain_of(rollee.pid, tmp_path / "c", 1)[0]
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
    outcome = rollback(rollee.pid, view)
    assert not wrong(outcome)
    (told,) = [text for text in outcome.warnings if text.startswith("compared ")]
    assert 0 < int(told.split()[1]) < len(view.pages) * 0.9


@pytest.mark.parametrize(
    ("where", "error"), [("attach", PermissionDeniedError("no")), ("harvest", TargetBusyError("busy"))]
)
def test_where_no_traps_can_be_set(
    rollee: Rollee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: UffdtrackError
) -> None:
    """Then it compares all memory in the stop."""
    view = chain_of(rollee.pid, tmp_path / "c", 1)[0]
    assert rollee.ask("s 6") == "6"

    def fails(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(AddressSpace, where, fails)
    assert not wrong(rollback(rollee.pid, view))
    assert rollee.ask("c") == "1" and not traps(rollee.pid)


# -- our end ------------------------------------------------------------------------------------------


def test_killed_while_it_compares(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, _ = start_writer(spawn, build, 1, 33)
    view = chain_of(pid, in_memory / "c", 1)[0]
    same = Image.same

    def and_die(self: Image, *arguments: Any) -> Any:
        same(self, *arguments)
        assert traps(pid)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Image, "same", and_die)
    with pytest.raises(TargetError, match="own process died"):
        rollback(pid, view)
    assert not traps(pid)
    state_changes(pid)


def test_it_leaves_the_process_as_it_was(rollee: Rollee, tmp_path: Path) -> None:
    before = state_of(rollee.pid)
    view = chain_of(rollee.pid, tmp_path / "c", 1)[0]
    for _ in range(3):
        rollback(rollee.pid, view)
    assert state_of(rollee.pid) == before and not traps(rollee.pid)


# -- calls under way ----------------------------------------------------------------------------------

READER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
memory = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
page = memoryview(memory)[2 << 20 :][:4]
for n in range(1 << 20):
    os.preadv(fd, [page], n)
    if not n: print(flush=True)
"""


@pytest.fixture
def reading(root: None, checked: None, spawn: Spawn, build: Build, tmp_path: Path) -> Iterator[int]:
    """A process that reads into one page, past the page cache: now this, 30 ms later that."""
    mount = tmp_path / "m"
    mount.mkdir()
    server = spawn(build("fusefs"), mount, 30)
    assert server.stdout
    if server.stdout.readline() != b"mounted\n":
        missing("FUSE")
    reader = spawn(sys.executable, "-S", "-c", READER, mount / "file", env=WITHOUT_RSEQ)
    try:
        assert reader.stdout and reader.stdout.readline()
        yield reader.pid
    finally:
        reader.kill()
        server.send_signal(signal.SIGTERM)
        subprocess.run(["umount", "-l", mount], check=False)


def test_calls_under_way_when_the_traps_are_set(reading: int, tmp_path: Path) -> None:
    """They have pinned pages, and write them with no fault: they end before anything is compared."""
    view = chain_of(reading, tmp_path / "c", 1)[0]
    for _ in range(8):
        assert not wrong(rollback(reading, view))


def test_calls_under_way_and_not_awaited(reading: int, tmp_path: Path) -> None:
    """Negative control."""
    view = chain_of(reading, tmp_path / "c", 1)[0]
    with broken("barrier"):
        assert any(wrong(rollback(reading, view)) for _ in range(TRIES))
