"""A target that calls exec, at any instant of a session: it is never mistaken for one that has ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.session import Session
from checkpoint.targets import exec as target_exec
from checkpoint.targets.process import ProcessTarget
from tests.helpers import DEADLINE, Build, Run, Spawn, wait_for
from uffdtrack import PAGE, TargetBusyError, TargetGoneError, Window, status_field

AT = 0x200000000000  # of execs.c


@pytest.mark.parametrize("round_", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_exec_while_a_base_is_copied(
    process_engine: str, tmp_path: Path, uffdtrack: Run, round_: int
) -> None:
    """Programs that do nothing but start the next one, as wrapper scripts do."""
    # Whoever holds our output would be waited for.
    command = "exec env sleep 60 > /dev/null 2>&1"
    for _ in range(5):
        command = f"exec env sh -c {json.dumps(command)}"
    done = uffdtrack(
        "run", "-o", tmp_path / "c", "--every", "1ms", "--count", "4", "--engine", process_engine, "--json",
        "--", "sh", "-c", command,
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    os.kill(rows[0]["pid"], signal.SIGKILL)
    assert len(rows) == 4
    uffdtrack("verify", tmp_path / "c")


def test_threads_that_call_exec(
    process_engine: str, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run
) -> None:
    """Exec from a thread, while others are being stopped: no image has pages of two programs."""
    process = spawn(build("execs"))
    assert process.stdout
    lines = process.stdout
    generations: list[int] = []
    threading.Thread(target=lambda: generations.extend(map(int, lines)), daemon=True).start()
    wait_for(lambda: len(generations) > 0, "it runs")
    first = generations[-1]
    done = uffdtrack(
        "checkpoint", process.pid, "-o", tmp_path / "c", "--every", "1ms", "--count", "12", "--json",
        "--engine", process_engine,
    )  # fmt: skip
    last = generations[-1]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(row["base"] for row in rows) > 1
    # It runs on, and nobody holds any of it.
    wait_for(lambda: generations[-1] > last + 2, "it calls exec")
    assert status_field(process.pid, "TracerPid") == "0" and process.poll() is None
    assert generations == list(range(len(generations)))
    seen = [in_image(tmp_path / "c", row["epoch"]) for row in rows]
    assert all(len(numbers) <= 1 for numbers in seen)
    known = [n for numbers in seen for n in numbers]
    assert known == sorted(known) and set(known) <= set(range(first, last + 2)) | {0}
    assert len(set(known)) > 1


def test_exec_before_a_base_is_whole(
    process_engine: str,
    spawn: Spawn,
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However fast it calls exec, that is no reason to end a session: epochs are skipped meanwhile."""
    # No child of ours: of one that is untraced since its exec, waitpid(2) would say that it runs.
    process = spawn("sh", "-c", '"$0" & echo $! >&2; wait', build("execs"), stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    pid = int(process.stderr.readline())
    generations = map(int, process.stdout)
    # A base of this engine begins in a stop: the program may be so deep in exec that none is possible.
    sync = process_engine == "sync"
    why = r"calls exec|does not stop" if sync else "calls exec"
    skipped = contextlib.suppress(TargetBusyError) if sync else contextlib.nullcontext()
    with (
        ProcessTarget(pid, process_engine) as target,
        ChainWriter(tmp_path / "c", b"", False) as chain,
    ):
        session = Session(target, chain)
        window = target.window

        def after_exec() -> Window:
            while not target.space.is_gone:  # not by the lines alone, of which some may be old ones
                next(generations)
            return window()

        with monkeypatch.context() as patch:
            patch.setattr(target, "window", after_exec)
            patch.setattr(target_exec, "EXEC_SECONDS", 0)
            for _ in range(3):
                with pytest.raises(TargetBusyError, match=why):
                    session.take()
                assert target.settle(DEADLINE)
        process.stdout.close()  # its next line ends it
        with pytest.raises(TargetGoneError):
            while True:
                with skipped:
                    session.take()


@pytest.fixture
def changeling(spawn: Spawn) -> subprocess.Popen[bytes]:
    """A shell, its addresses not random, as those of the program that it becomes at a line of input."""
    process = spawn("setarch", "-R", "sh", "-c", "read line; exec sleep 60")
    wait_for(lambda: status_field(process.pid, "Name") == "sh", "the shell runs")
    return process


def become(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    process.stdin.write(b"\n")
    process.stdin.flush()
    wait_for(lambda: status_field(process.pid, "Name") == "sleep", "it has called exec")


def test_exec_right_after_the_stop(
    process_engine: str, changeling: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """What is read of /proc after the stop is not put beside memory of the program before."""
    with (
        ProcessTarget(changeling.pid, process_engine) as target,
        ChainWriter(tmp_path / "c", b"", False) as chain,
    ):
        session = Session(target, chain)
        session.take()
        window = target.window

        def exec_after() -> Window:
            taken = window()
            if changeling.stdin and status_field(changeling.pid, "Name") == "sh":
                become(changeling)
            return taken

        target.window = exec_after  # type: ignore[method-assign]
        row = session.take()
    assert row.base and row.epoch == 1
    facts = Chain(tmp_path / "c").open(1).facts
    exe = facts.process.exe
    assert os.path.basename(exe) == "sleep" and any(region[6] == exe for region in facts.regions)


def test_rollback_over_an_exec_is_refused(
    kernel: None, changeling: subprocess.Popen[bytes], tmp_path: Path, uffdtrack: Run
) -> None:
    uffdtrack("checkpoint", changeling.pid, "-o", tmp_path / "c", "--every", "5ms", "--count", "2")
    become(changeling)
    done = uffdtrack("rollback", changeling.pid, tmp_path / "c", code=5)
    assert "has replaced its program" in done.stderr
    assert changeling.poll() is None and status_field(changeling.pid, "Name") == "sleep"


def in_image(directory: Path, epoch: int) -> set[int]:
    """The generations whose pages an epoch holds: one, or none if its program had just begun."""
    view = Chain(directory).view(epoch)
    pages = view.pages[(view.pages >= AT // PAGE) & (view.pages < AT // PAGE + 16)]
    return {int.from_bytes(page.tobytes()[:8], "little") for page in view.read(pages)} - {0}
