"""The target sees no EINTR, no signal, no changed register, no lost wake-up, and keeps nothing of ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from checkpoint.chain import Chain
from checkpoint.targets.identity import stat_fields
from uffdtrack import parse_maps, status_field

Spawn = Callable[..., subprocess.Popen[bytes]]
Run = Callable[..., subprocess.CompletedProcess[str]]


def ask(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """The counters of notices.c; asking also sends an event and a signal that must not be lost."""
    assert process.stdin and process.stdout
    process.stdin.write(b"\n")
    process.stdin.flush()
    line = process.stdout.readline()
    assert line, f"the target died: {process.poll()}"
    counters: dict[str, int] = json.loads(line)
    return counters


def start_notices(spawn: Spawn, build: Callable[[str], Path]) -> subprocess.Popen[bytes]:
    process = spawn(build("notices"))
    assert process.stdout and process.stdout.readline() == b"ready\n"
    return process


def state_of(pid: int) -> tuple[list[str], list[str], str]:
    """Open files, mappings and tracer: what must be as before when we are gone."""
    names = sorted(os.listdir(f"/proc/{pid}/fd"))
    files = [f"{name} {os.readlink(f'/proc/{pid}/fd/{name}')}" for name in names]
    regions = parse_maps(Path(f"/proc/{pid}/maps").read_text())
    names = [f"{r.start:x}-{r.end:x} {r.permissions} {r.name}" for r in regions]
    return files, names, status_field(pid, "TracerPid")


def test_calls_and_signals(kernel: None, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path) -> None:
    process = start_notices(spawn, build)
    before = state_of(process.pid)
    first = ask(process)
    session = subprocess.Popen(
        [sys.executable, "-m", "checkpoint", "checkpoint", str(process.pid), "-o", str(tmp_path / "c"),
         "--every", "1ms", "--count", "400", "--json"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert session.stdout
    rows = []
    for line in session.stdout:
        rows.append(json.loads(line))
        last = ask(process)
    session.stdout.close()
    assert session.wait() == 0
    assert len(rows) == 400
    # Each kind of wait went on: limits ended, events and signals came.
    for kind, count in first.items():
        assert last[kind] > count, kind
    assert ask(process)["events"] >= 400
    assert state_of(process.pid) == before


def test_call_limit_ends_although_stops_are_more_frequent(
    kernel: None, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path, uffdtrack: Run
) -> None:
    """A call of 50 ms that is repeated at each stop, every few ms, still ends."""
    process = start_notices(spawn, build)
    first = ask(process)
    uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", "--every", "5ms", "--duration", "1s")
    last = ask(process)
    for kind in ("timeouts", "socket_timeouts", "sig_timeouts", "const_polls"):
        assert last[kind] - first[kind] >= 5, kind
    assert last["const_selects"] > first["const_selects"]


FILTERED = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
class Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte),
                ("k", ctypes.c_uint)]
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Filter))]
# userfaultfd 323 and restart_syscall 219 kill; all else is allowed.
rules = (Filter * 5)((0x20, 0, 0, 0), (0x15, 2, 0, 323), (0x15, 1, 0, 219), (0x06, 0, 0, 0x7fff0000),
                     (0x06, 0, 0, 0x80000000))
program = Program(5, rules)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program)) == 0
print("ready", flush=True)
n = 0
while True:
    t = time.monotonic()
    time.sleep(0.02)
    assert time.monotonic() - t >= 0.02
    n += 1
    if n % 5 == 0:
        print(n, flush=True)
"""


def test_seccomp_filter(root: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    """A filter that kills for userfaultfd(2) and for restart_syscall(2), which the kernel's restart uses."""
    process = spawn(sys.executable, "-c", FILTERED)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", "--every", "3ms", "--count", "100")
    n = int(process.stdout.readline())
    while int(process.stdout.readline()) <= n + 20:
        pass
    assert process.poll() is None
    assert status_field(process.pid, "Seccomp") == "2"


@pytest.mark.parametrize("round_", [0, 1, 3, 7])
def test_survives_our_death(
    kernel: None, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path, round_: int
) -> None:
    """kill -9 at any instant: the target runs on, untracked, and what was written is a chain."""
    process = spawn(build("writer"), 2, round_)
    assert process.stdout
    process.stdout.readline()
    before = status_field(process.pid, "TracerPid")
    session = subprocess.Popen(
        [sys.executable, "-m", "checkpoint", "checkpoint", str(process.pid), "-o", str(tmp_path / "c"),
         "--every", "1us", "--json"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert session.stdout
    for _ in range(1 + round_ * 7):
        session.stdout.readline()
    # Some instant within the next epochs: as long as this takes.
    for _ in range(round_ * 1000):
        pass
    session.kill()
    session.wait()
    session.stdout.close()
    # The worker sees our death, finishes its epoch and takes the traps away.
    wait_for(lambda: not traps(process.pid), "the traps are gone")
    assert status_field(process.pid, "TracerPid") == before == "0"
    state_changes(process.pid)
    assert len(Chain(tmp_path / "c").verify(b"")) >= 1 + round_ * 7


def traps(pid: int) -> bool:
    """Whether any mapping is under write-protect."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    return any("uw" in line.split() for line in text.splitlines() if line.startswith("VmFlags"))


def test_death_is_not_noticed(
    kernel: None, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path
) -> None:
    """kill -9 while threads sit in calls that a stop breaks off: none of them sees it."""
    process = start_notices(spawn, build)
    for n in range(12):
        session = subprocess.Popen(
            [sys.executable, "-m", "checkpoint", "checkpoint", str(process.pid), "-o", str(tmp_path / str(n)),
             "--every", "1us", "--json"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert session.stdout
        for _ in range(2 + n):
            session.stdout.readline()
        session.kill()
        session.wait()
        session.stdout.close()
        wait_for(lambda: not traps(process.pid), "the traps are gone")
        assert ask(process)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"


def state_changes(pid: int) -> None:
    """The target uses the processor."""

    def used() -> int:
        return int(stat_fields(pid)[11])

    first = used()
    wait_for(lambda: used() > first, "user time grows")


def run_until(
    spawn: Spawn, directory: Path, command: tuple[str, ...], told: Callable[[list[dict[str, Any]]], None]
) -> tuple[list[dict[str, Any]], str]:
    """The rows of a `run` to its end, and what it said; `told` gets those so far at each row."""
    session = spawn(
        sys.executable, "-m", "checkpoint", "run", "-o", directory, "--every", "10ms", "--json",
        "--", *command, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert session.stdout and session.stderr
    rows: list[dict[str, Any]] = []
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


def test_stopped_target_stays_stopped(
    kernel: None, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path, uffdtrack: Run
) -> None:
    """Job control: SIGSTOP before, still stopped after, SIGCONT continues."""
    process = start_notices(spawn, build)
    os.kill(process.pid, signal.SIGSTOP)
    wait_for(lambda: status_field(process.pid, "State").startswith("T"), "stopped")
    uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", "--every", "1ms", "--count", "5")
    assert status_field(process.pid, "State").startswith("T")
    os.kill(process.pid, signal.SIGCONT)
    assert ask(process)


def test_ctrl_c_ends_a_session(
    kernel: None, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path, uffdtrack: Run
) -> None:
    process = start_notices(spawn, build)
    session = subprocess.Popen(
        [sys.executable, "-m", "checkpoint", "checkpoint", str(process.pid), "-o", str(tmp_path / "c"),
         "--every", "2ms", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert session.stdout and session.stderr
    for _ in range(5):
        session.stdout.readline()
    session.send_signal(signal.SIGINT)
    rows = 5 + len(session.stdout.readlines())
    err = session.stderr.read()
    assert session.wait(timeout=30) == 0, err
    session.stdout.close()
    session.stderr.close()
    assert len(Chain(tmp_path / "c").verify(b"")) == rows
    assert ask(process)
    assert not list((tmp_path / "c").glob(".epoch*"))


def test_ctrl_c_drops_a_base_whole(kernel: None, spawn: Spawn, tmp_path: Path) -> None:
    """A base of a large process takes long; it is not waited for."""
    process = spawn(
        sys.executable, "-c", "x = b'x' * (1 << 30); print(flush=True); import time; time.sleep(60)"
    )
    assert process.stdout and process.stdout.readline()
    session = subprocess.Popen(
        [sys.executable, "-m", "checkpoint", "checkpoint", str(process.pid), "-o", str(tmp_path / "c")],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: bool(list(tmp_path.glob("c/.epoch*"))), "the base is being written")
    session.send_signal(signal.SIGINT)
    err = session.communicate(timeout=30)[1]
    assert session.returncode == 0 and "no epoch was taken" in err
    assert not [n for n in os.listdir(tmp_path / "c") if "epoch" in n]
    assert status_field(process.pid, "TracerPid") == "0" and process.poll() is None


VFORKS = """
import os, subprocess, threading, time
def spawn():
    while True:
        # posix_spawn and vfork: the parent cannot be stopped until the child has called exec
        assert subprocess.run(["true"], close_fds=False).returncode == 0
        assert os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1] == 0
for _ in range(2): threading.Thread(target=spawn, daemon=True).start()
print("ready", flush=True)
n = 0
while True:
    time.sleep(0.01); n += 1
    if n % 10 == 0: print(n, flush=True)
"""


def test_target_that_spawns(kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    process = spawn(sys.executable, "-c", VFORKS)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", "--every", "5ms", "--count", "40")
    n = int(process.stdout.readline())
    while int(process.stdout.readline()) <= n + 20:
        pass
    assert process.poll() is None


def test_thread_that_cannot_be_stopped(
    kernel: None, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path, uffdtrack: Run
) -> None:
    """The others run on meanwhile; the epoch is taken when it can be."""
    process = spawn(build("unstoppable"))
    assert process.stdout and process.stdout.readline() == b"ready\n"
    argv = ("checkpoint", process.pid, "-o", tmp_path / "c", "--every", "50ms", "--duration", "5s")
    done = uffdtrack(*argv)
    assert "does not stop" in done.stderr
    assert len(Chain(tmp_path / "c").verify(b"")) > 5
    lines = [process.stdout.readline() for _ in range(5)]
    assert all(line == b"beat\n" for line in lines) and process.poll() is None
