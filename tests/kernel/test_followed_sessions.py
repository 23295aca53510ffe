"""Sessions under ring and sync: over an exec, with a limit of pages, killed; the target notices nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from checkpoint.chain import Chain
from tests.helpers import DEADLINE, Build, Run, Spawn, ask, start_notices, state_of, traps, wait_for
from tests.kernel.mapper import Mapper, open_session
from uffdtrack.errors import StopTimeoutError, TargetBusyError

EXECS = """
import glob, os, sys, time
epochs = lambda: len(glob.glob(sys.argv[1] + "/epoch-*.core"))
wanted, end = epochs() + 10, time.monotonic() + 60  # those of the program before come late
while epochs() < wanted and time.monotonic() < end:
    time.sleep(0.01)
if len(sys.argv) > 2:
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[2], sys.argv[1]])
"""


def test_exec_and_on(kernel: None, process_engine: str, tmp_path: Path, uffdtrack: Run) -> None:
    """Each of two programs lives until it has epochs."""
    done = uffdtrack(
        "run", "-o", tmp_path / "c", "--every", "20ms", "--engine", process_engine, "--json", "--",
        sys.executable, "-c", EXECS, tmp_path / "c", EXECS,
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(row["base"] for row in rows) >= 2
    uffdtrack("verify", tmp_path / "c")


def test_target_notices_nothing(following: str, spawn: Spawn, build: Build, tmp_path: Path) -> None:
    """kill -9 of the session; its readers of events are gone, and nobody waits for them."""
    process = start_notices(spawn, build)
    before = state_of(process.pid)
    first = ask(process)
    for n in range(6):
        session = subprocess.Popen(
            [sys.executable, "-m", "checkpoint", "checkpoint", str(process.pid), "-o", str(tmp_path / str(n)),
             "--every", "1ms", "--engine", following, "--max-dirty", "50", "--json"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert session.stdout
        for _ in range(30):
            assert session.stdout.readline()
            last = ask(process)
        session.kill()
        session.wait()
        session.stdout.close()
        wait_for(lambda: not traps(process.pid), "the traps are gone")
    for kind, count in first.items():
        assert last[kind] > count, kind
    assert state_of(process.pid) == before


def test_limit_of_dirty_pages(
    process_engine: str, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run
) -> None:
    """Epochs come by the number of pages, not by the clock. sync: no write of user code goes beyond."""
    process = spawn(build("writer"), 1, 1)
    assert process.stdout and process.stdout.readline()
    argv = ("checkpoint", process.pid, "-o", tmp_path / "c", "--every", "1h", "--count", "20", "--json")
    argv = (*argv, "--engine", process_engine, "--max-dirty", "100")
    if process_engine == "scan":
        assert "--engine ring" in uffdtrack(*argv, code=2).stderr
        assert not (tmp_path / "c").exists()
        return
    rows = [json.loads(line) for line in uffdtrack(*argv).stdout.splitlines()]
    assert len(rows) == 20 and {row["engine"] for row in rows} == {process_engine}
    assert all(row["max_dirty"] == 100 and row["overshoot"] >= 0 for row in rows)
    if process_engine == "sync":
        # What the kernel writes goes beyond: the page of a pread(2), and of a thread's rseq area.
        assert all(row["overshoot"] <= 2 * row["threads"] for row in rows)
    assert len(Chain(tmp_path / "c").verify(b"")) == 20


def test_unstoppable_thread_with_a_limit(following: str, spawn: Spawn, build: Build, tmp_path: Path) -> None:
    """What was collected stays until a stop succeeds."""
    process = spawn(build("unstoppable"))
    assert process.stdout and process.stdout.readline() == b"ready\n"
    made = Mapper.__new__(Mapper)
    made.pid, made.directory, made.process = process.pid, tmp_path / "c", process
    taken: list[bool] = []
    for session in open_session(made, following):
        deadline = time.monotonic() + DEADLINE
        while taken.count(True) < 2 or False not in taken or not taken[-1]:
            assert time.monotonic() < deadline, taken
            try:
                session.take()
                taken.append(True)
            except (TargetBusyError, StopTimeoutError):
                taken.append(False)
                session.target.tracee.settle(DEADLINE)
    assert process.poll() is None
