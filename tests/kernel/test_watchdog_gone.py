"""Somebody kills the watchdog: no further stop begins, since nothing would end one that takes too long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint.chain import Chain, epoch_numbers
from checkpoint.rollback.order import rollback
from tests.helpers import Build, Run, Spawn, ask, goes_on, session_of, start_notices, state_of, wait_for
from tests.kernel.test_watchdog import watchdogs
from uffdtrack import MAX_STOP, Tracee, WatchdogGoneError, end_watchdog, start_watchdog


def kill_watchdog_of(session: subprocess.Popen[bytes]) -> int:
    (guard,) = watchdogs(session.pid)
    os.kill(guard, signal.SIGKILL)
    return guard


@pytest.mark.parametrize("options", [(), ("--children",), ("--keep", "3")], ids=["one", "tree", "keep"])
def test_of_a_session(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run, options: tuple[str, ...]
) -> None:
    """It ends with an error, its epochs are whole, and it leaves no zombie."""
    process = start_notices(spawn, build)
    before, state = ask(process), state_of(process.pid)
    session = session_of(
        spawn, process.pid, tmp_path / "c", "--every", "50ms", "--json", *options, stderr=subprocess.PIPE
    )
    assert session.stdout
    for _ in range(3):
        assert session.stdout.readline()
    guard = kill_watchdog_of(session)
    _, said = session.communicate(timeout=30)
    assert session.returncode == 5
    assert b"watchdog (uffdtrack-guard) has ended" in said and b"begin anew" in said
    assert not os.path.exists(f"/proc/{guard}")
    goes_on(process, before)
    assert state_of(process.pid) == state
    if "--keep" not in options:
        uffdtrack("verify", tmp_path / "c")


def test_of_run(kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    """The command goes on."""
    errors, counting = tmp_path / "errors", "import time\nwhile True: print(time.sleep(0.01), flush=True)"
    with errors.open("wb") as stderr:
        session = spawn(
            sys.executable, "-m", "checkpoint", "run", "-o", tmp_path / "c", "--every", "50ms", "--",
            sys.executable, "-c", counting, stderr=stderr,
        )  # fmt: skip
    wait_for(lambda: (tmp_path / "c").exists() and len(epoch_numbers(tmp_path / "c")) > 2, "epochs are safe")
    kill_watchdog_of(session)
    assert session.wait(timeout=30) == 5
    assert "watchdog (uffdtrack-guard) has ended" in errors.read_text()
    uffdtrack("verify", tmp_path / "c")
    command = Chain(tmp_path / "c").open(None).facts.process.pid
    assert session.stdout
    for _ in range(3):
        assert session.stdout.readline()
    os.kill(command, signal.SIGKILL)


def test_of_a_rollback(kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run) -> None:
    """It is refused before it touches the process. With a watchdog that lives, it is done."""
    process = start_notices(spawn, build)
    uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", "--count", "1")
    before = ask(process)
    guard = start_watchdog(MAX_STOP)
    try:
        with Tracee(process.pid) as tracee:
            tracee.stop()
            tracee.resume()
            os.kill(guard, signal.SIGKILL)
            os.waitid(os.P_PID, guard, os.WEXITED | os.WNOWAIT)
            with pytest.raises(WatchdogGoneError, match=f"of process {process.pid}"):
                tracee.stop()
        goes_on(process, before)
        with pytest.raises(WatchdogGoneError, match="begin anew"):
            rollback(process.pid, Chain(tmp_path / "c").view(0))
    finally:
        end_watchdog(guard)
    goes_on(process, before)
    rollback(process.pid, Chain(tmp_path / "c").view(0))
