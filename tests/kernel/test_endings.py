"""How a session ends: killed, interrupted, with its target. The chain is whole, and the target runs on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.epoch import EpochRow
from tests.helpers import Build, Run, Spawn, ask, session_of, start_notices, state_changes, traps, wait_for
from tests.kernel.test_oracle import start_writer
from tests.oracle import Memory
from uffdtrack import children, status_field
from uffdtrack.errors import OutputError


@pytest.mark.parametrize("round_", [0, 1, 3, 7])
def test_survives_our_death(kernel: None, spawn: Spawn, build: Build, in_memory: Path, round_: int) -> None:
    """kill -9 at any instant: the target runs on, untracked, and what was written is a chain."""
    process = spawn(build("writer"), 2, round_)
    assert process.stdout
    process.stdout.readline()
    before = status_field(process.pid, "TracerPid")
    session = session_of(spawn, process.pid, in_memory / "c", "--every", "1us", "--json")
    assert session.stdout
    for _ in range(1 + round_ * 3):
        session.stdout.readline()
    # Some instant within the next epochs: as long as this takes.
    for _ in range(round_ * 1000):
        pass
    session.kill()
    session.wait()
    # The worker sees our death, finishes its epoch and takes the traps away.
    wait_for(lambda: not traps(process.pid), "the traps are gone")
    assert status_field(process.pid, "TracerPid") == before == "0"
    state_changes(process.pid)
    assert len(Chain(in_memory / "c").verify(b"")) >= 1 + round_ * 3


@pytest.mark.parametrize("durable", [[], ["--durable", "40ms"]], ids=["", "together"])
@pytest.mark.parametrize("seed", range(3))
def test_what_was_reported_safe_is_there(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, seed: int, durable: list[str]
) -> None:
    """kill -9 of the process that writes, while epochs wait to become safe."""
    rng = random.Random(seed)
    pid, control = start_writer(spawn, build, 2, seed)
    session = session_of(spawn, pid, in_memory / "c", "--every", "1us", "--json", *durable)
    assert session.stdout
    rows = [json.loads(session.stdout.readline()) for _ in range(rng.randrange(20, 60))]
    # The watchdog is in a session of its own.
    (worker,) = (pid for pid in children(session.pid) if os.getsid(pid) == os.getsid(session.pid))
    for _ in range(rng.randrange(3000)):
        pass
    os.kill(worker, signal.SIGKILL)
    rows += [json.loads(line) for line in session.stdout.read().splitlines() if line.endswith(b"}")]
    session.wait()
    wait_for(lambda: not traps(pid), "the traps are gone")
    state_changes(pid)
    os.kill(pid, signal.SIGKILL)  # its threads would go on writing while all is looked at
    schemas = {row["schema"] for row in rows}
    assert schemas == {"uffdtrack/epoch/1"} | ({"uffdtrack/taken/1"} if durable else set())
    safe = [row for row in rows if row["schema"] == "uffdtrack/epoch/1"]
    assert [row["epoch"] for row in safe] == list(range(len(safe)))
    files = Chain(in_memory / "c").verify(b"")
    memory = Memory(control)
    for file in files:
        memory.apply(file)
        memory.check(file)
    assert [file.digest for file in files[: len(safe)]] == [row["digest"] for row in safe]
    with ChainWriter(in_memory / "c", b"", force=True):
        assert not list((in_memory / "c").glob(".epoch*"))


def test_death_is_not_noticed(kernel: None, spawn: Spawn, build: Build, tmp_path: Path) -> None:
    """kill -9 while threads sit in calls that a stop breaks off: none of them sees it."""
    process = start_notices(spawn, build)
    for n in range(12):
        session = session_of(spawn, process.pid, tmp_path / str(n), "--every", "1us", "--json")
        assert session.stdout
        for _ in range(2 + n):
            session.stdout.readline()
        session.kill()
        session.wait()
        wait_for(lambda: not traps(process.pid), "the traps are gone")
        assert ask(process)


def run_until(
    spawn: Spawn, directory: Path, command: tuple[str, ...], told: Callable[[list[dict[str, Any]]], None]
) -> tuple[list[dict[str, Any]], str]:
    """The rows of a `run` to its end, and what it said; `told` gets those so far at each row."""
    session = spawn(
        sys.executable, "-m", "checkpoint", "run", "-o", directory, "--every", "10ms", "--json",
        "--", *command, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert session.stdout and session.stderr
    rows: list[EpochRow] = []
    for line in session.stdout:
        rows.append(json.loads(line))
        told(rows)
    said = session.stderr.read().decode()
    assert session.wait() == 0, said
    return rows, said


def let_go(fifo: Path) -> None:
    """Whoever waits in open(2) of it goes on."""
    with suppress(OSError):  # nobody does, yet
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))


def test_exec_gives_a_new_base(kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    os.mkfifo(first)
    os.mkfifo(second)
    script = f"read line < {first}; exec sh -c 'read line < {second}; true'"

    def told(rows: list[dict[str, Any]]) -> None:
        bases = sum(row["base"] for row in rows)
        if len(rows) > 2:
            let_go(second if bases > 1 and not rows[-1]["base"] else first)

    rows, _ = run_until(spawn, tmp_path / "c", ("sh", "-c", script), told)
    assert sum(row["base"] for row in rows) >= 2
    assert [row["epoch"] for row in rows] == list(range(len(rows)))
    uffdtrack("verify", tmp_path / "c")


def test_exit_is_a_clean_end(kernel: None, spawn: Spawn, tmp_path: Path) -> None:
    fifo = tmp_path / "end"
    os.mkfifo(fifo)

    def told(rows: list[dict[str, Any]]) -> None:
        if len(rows) > 2:
            let_go(fifo)

    _, said = run_until(spawn, tmp_path / "c", ("sh", "-c", f"read line < {fifo}; true"), told)
    assert "has ended" in said
    assert len(Chain(tmp_path / "c").verify(b"")) > 2


def test_ctrl_c_ends_a_session(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run
) -> None:
    process = start_notices(spawn, build)
    session = session_of(
        spawn, process.pid, tmp_path / "c", "--every", "2ms", "--json", stderr=subprocess.PIPE
    )
    assert session.stdout and session.stderr
    for _ in range(5):
        session.stdout.readline()
    session.send_signal(signal.SIGINT)
    rows = 5 + len(session.stdout.readlines())
    err = session.stderr.read()
    assert session.wait(timeout=30) == 0, err
    assert len(Chain(tmp_path / "c").verify(b"")) == rows
    assert ask(process)
    assert not list((tmp_path / "c").glob(".epoch*"))


def test_ctrl_c_drops_a_base_whole(kernel: None, spawn: Spawn, tmp_path: Path) -> None:
    """A base of a large process takes long; it is not waited for."""
    process = spawn(
        sys.executable, "-c", "x = b'x' * (1 << 29); print(flush=True); import time; time.sleep(60)"
    )
    assert process.stdout and process.stdout.readline()
    session = session_of(spawn, process.pid, tmp_path / "c", stderr=subprocess.PIPE)
    wait_for(lambda: bool(list(tmp_path.glob("c/.epoch*"))), "the base is being written")
    session.send_signal(signal.SIGINT)
    err = session.communicate(timeout=30)[1]
    assert session.returncode == 0 and b"no epoch was taken" in err
    assert not [n for n in os.listdir(tmp_path / "c") if "epoch" in n]
    assert status_field(process.pid, "TracerPid") == "0" and process.poll() is None


def fill(pipe: int) -> None:
    """To the last byte: where poll(2) says that there is no room, a row may fit into the last page."""
    end = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(end, b" ")
    os.close(end)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("ends", [os.pipe, os.openpty])
def test_nobody_reads_the_rows(
    kernel: None,
    spawn: Spawn,
    build: Build,
    tmp_path: Path,
    number: signal.Signals,
    ends: Callable[[], tuple[int, int]],
) -> None:
    """The target must not stay tracked for that, when the session has to end."""
    process = start_notices(spawn, build)
    reader, writer = ends()
    options = "--every", "1ms", "--json"
    session = session_of(spawn, process.pid, tmp_path / "c", *options, stdout=writer, stderr=subprocess.PIPE)
    assert session.stderr and os.read(reader, 1)
    if ends is os.pipe:
        fill(writer)
    wait_for(lambda: len(list((tmp_path / "c").glob(".epoch*.tmp"))) > 30, "rows are due")
    if ends is os.openpty:
        # Most often a row is on its way: a terminal may say that there is room where there is too little.
        termios.tcflow(writer, termios.TCOOFF)
    session.send_signal(number)
    wait_for(lambda: not traps(process.pid), "the traps are gone")
    assert ask(process)
    assert session.wait() == (-number if number == signal.SIGKILL else OutputError.exit_code)
    if number == signal.SIGINT:
        assert b"nobody has read the output" in session.stderr.read()
    os.close(writer)
    os.close(reader)
