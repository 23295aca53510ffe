"""A full disk loses no page: the next epoch that can be written carries it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoint import schedule, sink
from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.epoch import EpochRow, TreeRow
from checkpoint.epoch_writer import EpochWriter
from checkpoint.image import EpochFile
from checkpoint.schedule import Schedule, run_session
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from checkpoint.tree import Tree
from checkpoint.tree_session import TreeSession
from tests.helpers import Build, Run, Spawn
from tests.kernel.forks import Forks, cut_errors
from tests.kernel.test_oracle import start_writer
from tests.oracle import Memory, OracleError
from uffdtrack.errors import StorageError

EPOCHS = 40
"""In which nine steps or more fail, by the seed; 300 in the slow test."""


@pytest.fixture
def small_disk(root: None, tmp_path: Path) -> Iterator[Path]:
    """A tmpfs with room for a few epochs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> Path:
    """Leave no free byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    return filler


@pytest.mark.parametrize("forgetful", [False, True])
def test_pages_of_a_failed_epoch_come_with_the_next(
    small_disk: Path, spawn: Spawn, build: Build, forgetful: bool
) -> None:
    """Checked against the writer's log; and with what is pending thrown away, the log must object."""
    pid, control = start_writer(spawn, build, 2, 3)
    memory = Memory(control)
    directory = small_disk / "c"

    def rounds() -> None:
        with ChainWriter(directory, b"", force=False) as chain, ProcessTarget(pid) as target:
            session = Session(target, chain)
            memory.apply(EpochFile(directory / f"epoch-{session.take().epoch:08d}.core"))
            for _ in range(6):
                filler = fill(small_disk)
                for _ in range(3):
                    with pytest.raises(StorageError):
                        session.take()
                    if forgetful:
                        target.hand_over(at_once=True)
                filler.unlink()
                file = EpochFile(directory / f"epoch-{session.take().epoch:08d}.core")
                memory.apply(file)
                memory.check(file)

    if forgetful:
        with pytest.raises(OracleError):
            rounds()
    else:
        rounds()
        assert len(Chain(directory).verify(b"")) == 7
    assert not list(directory.glob(".epoch*"))


def break_now_and_then(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Steps of writing an epoch fail by chance, but not those of a chain's first; gives the failures."""
    rng, lock = random.Random(5), threading.Lock()
    failed: list[str] = []

    def failing(step: str) -> Callable[..., Any]:
        do = getattr(EpochWriter, step)

        def attempt(writer: EpochWriter, *arguments: Any) -> Any:
            with lock:
                fails = "00000000" not in writer.path.name and rng.random() < 0.04
            if fails:
                failed.append(step)
                raise StorageError("no space left")
            return do(writer, *arguments)

        return attempt

    for step in ("add", "finish", "sync", "rename"):
        monkeypatch.setattr(EpochWriter, step, failing(step))
    return failed


@pytest.mark.parametrize(
    ("epochs", "forgetful"),
    [
        pytest.param(EPOCHS, False, id=""),
        pytest.param(EPOCHS, True, id="negative"),
        pytest.param(300, False, id="many", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("durable", [None, 0.02])
def test_a_disk_that_fails_now_and_then(
    process_engine: str, in_memory: Path, spawn: Spawn, build: Build, monkeypatch: pytest.MonkeyPatch,
    durable: float | None, epochs: int, forgetful: bool,
) -> None:  # fmt: skip
    """Epochs are taken while others are written: each that is safe is a state of the writer.

    With what a failure drops thrown away the writer's log must object.
    """
    pid, control = start_writer(spawn, build, 2, 5)
    failed = break_now_and_then(monkeypatch)
    if forgetful:
        monkeypatch.setattr(ProcessTarget, "take_back", lambda target, pending: None)
    rows: list[EpochRow] = []
    with (
        ChainWriter(in_memory / "c", b"", force=False) as chain,
        ProcessTarget(pid, process_engine) as target,
    ):
        session = Session(target, chain)
        session.pipeline.durable = durable
        monkeypatch.setattr(schedule, "ATTEMPTS", 1000)
        when = Schedule(1e-6, epochs, None)
        run_session(session, when, lambda seconds: False, rows.append, lambda text: None)
    assert [row.epoch for row in rows] == list(range(epochs)) and len(failed) > 2
    os.kill(pid, signal.SIGKILL)  # its threads would go on writing while all is looked at
    assert len(Chain(in_memory / "c").verify(b"")) == epochs
    memory = Memory(control)

    def replay() -> None:
        for row in rows:
            file = EpochFile(in_memory / "c" / f"epoch-{row.epoch:08d}.core")
            assert file.digest == row.digest
            memory.apply(file)
            memory.check(file)

    if forgetful:
        with pytest.raises(OracleError):
            replay()
    else:
        replay()


def test_a_tree_on_a_disk_that_fails_now_and_then(
    forks: Callable[[int], Forks],
    tree_of: Callable[..., TreeSession],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = tree_of(forks(2).pid)
    failed = break_now_and_then(monkeypatch)
    monkeypatch.setattr(schedule, "ATTEMPTS", 1000)
    rows: list[TreeRow] = []
    run_session(tree, Schedule(1e-6, 40, None), lambda seconds: False, rows.append, lambda text: None)
    entries, _ = Tree(tmp_path / "t").verify(b"")
    assert [entry.epoch for entry in entries] == [row.epoch for row in rows] == list(range(40))
    assert [e for entry in entries for e in cut_errors(entry)] == []
    assert failed


def test_a_warning_of_a_failed_epoch_comes_with_the_next(
    small_disk: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target tells each of its warnings once."""
    process = spawn("sleep", "60")
    new = [[], ["first"], ["second"], [], []]
    with ChainWriter(small_disk / "c", b"", force=False) as chain, ProcessTarget(process.pid) as target:
        monkeypatch.setattr(target, "new_warnings", lambda *_: new.pop(0))
        session = Session(target, chain)

        def take() -> list[str]:
            target.was_changed()  # so that its warnings are asked for
            return session.take().warnings

        assert take() == []
        filler = fill(small_disk)
        with pytest.raises(StorageError):
            take()
        filler.unlink()
        assert take() == ["first", "second"]
        assert take() == []
        assert new == [[]]


@pytest.mark.parametrize("at", ["finish", "sync", "rename", "sync_directory"])
def test_an_epoch_that_is_not_safe_is_not_there(
    kernel: None, spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Not even where its file has its name already: nobody is to read an epoch without a row."""
    process = spawn("sleep", "60")
    directory = tmp_path / "c"

    def fails(*_: object) -> None:
        raise StorageError("no space left")

    with ChainWriter(directory, b"", force=False) as chain, ProcessTarget(process.pid) as target:
        session = Session(target, chain)
        for number in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(sink if at == "sync_directory" else EpochWriter, at, fails)
                with pytest.raises(StorageError):
                    session.take()
            assert len(list(directory.glob("*.core*"))) == number
            assert not list(directory.glob(".epoch*"))
            assert session.take().epoch == number
    assert len(Chain(directory).verify(b"")) == 2


def test_command_line_on_a_full_disk(small_disk: Path, spawn: Spawn, build: Build, uffdtrack: Run) -> None:
    process = spawn(build("writer"), 1, 1)
    assert process.stdout and process.stdout.readline()
    session = subprocess.Popen(
        [sys.executable, "-m", "checkpoint", "checkpoint", str(process.pid), "-o", str(small_disk / "c"),
         "--every", "10ms", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert session.stdout
    taken = json.loads(session.stdout.readline())["epoch"]
    filler = fill(small_disk)
    out, err = session.communicate(timeout=60)
    assert session.returncode == 7, err
    assert "No space left" in err and f"process {process.pid} runs on, untracked" in err
    taken += len(out.splitlines())
    assert len(Chain(small_disk / "c").verify(b"")) == taken + 1
    filler.unlink()
    uffdtrack("verify", small_disk / "c")
    fill(small_disk)
    done = uffdtrack("export", small_disk / "c", "-o", small_disk / "core", code=7)
    assert "No space left" in done.stderr and not (small_disk / "core").exists()
    done = uffdtrack("checkpoint", process.pid, "-o", small_disk / "d", "--count", "1", code=7)
    assert not list((small_disk / "d").glob("*.core"))
    assert process.poll() is None
    assert "uw" not in Path(f"/proc/{process.pid}/smaps").read_text().split()


def test_output_that_cannot_be_written(kernel: None, spawn: Spawn, uffdtrack: Run) -> None:
    process = spawn("sleep", "60")
    done = uffdtrack("checkpoint", process.pid, "-o", "/proc/uffdtrack", code=7)
    assert "cannot write" in done.stderr
    assert os.path.exists(f"/proc/{process.pid}")
