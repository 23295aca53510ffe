"""The target sees no EINTR, no signal, no changed register, no lost wake-up, and keeps nothing of ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from checkpoint.chain import Chain
from tests.helpers import (
    DEADLINE,
    Build,
    Run,
    Spawn,
    ask,
    goes_on,
    session_of,
    start_notices,
    state_of,
    wait_for,
)
from uffdtrack import status_field


def test_calls_and_signals(kernel: None, spawn: Spawn, build: Build, tmp_path: Path) -> None:
    process = start_notices(spawn, build)
    before = state_of(process.pid)
    first = ask(process)
    session = session_of(spawn, process.pid, tmp_path / "c", "--every", "1ms", "--count", "400", "--json")
    assert session.stdout
    rows = []
    for line in session.stdout:
        rows.append(json.loads(line))
        last = ask(process)
    assert session.wait() == 0
    assert len(rows) == 400
    # Each kind of wait went on: limits ended, events and signals came.
    for kind, count in first.items():
        assert last[kind] > count, kind
    assert ask(process)["events"] >= 400
    assert state_of(process.pid) == before


def test_call_limit_ends_although_stops_are_more_frequent(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path
) -> None:
    """A call of 50 ms that is repeated at each stop, every few ms, still ends."""
    process = start_notices(spawn, build)
    session = session_of(spawn, process.pid, tmp_path / "c", "--every", "5ms", "--json")
    assert session.stdout and session.stdout.readline()
    reader = threading.Thread(target=session.stdout.read)
    reader.start()
    goes_on(process, ask(process), by=5)
    session.send_signal(signal.SIGINT)
    assert session.wait(DEADLINE) == 0
    reader.join()


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


def test_stopped_target_stays_stopped(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run
) -> None:
    """Job control: SIGSTOP before, still stopped after, SIGCONT continues."""
    process = start_notices(spawn, build)
    os.kill(process.pid, signal.SIGSTOP)
    wait_for(lambda: status_field(process.pid, "State").startswith("T"), "stopped")
    uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", "--every", "1ms", "--count", "5")
    assert status_field(process.pid, "State").startswith("T")
    os.kill(process.pid, signal.SIGCONT)
    assert ask(process)


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


def test_thread_that_cannot_be_stopped(kernel: None, spawn: Spawn, build: Build, tmp_path: Path) -> None:
    """The others run on meanwhile; the epoch is taken when it can be."""
    process = spawn(build("unstoppable"))
    assert process.stdout and process.stdout.readline() == b"ready\n"
    session = session_of(
        spawn, process.pid, tmp_path / "c", "--every", "20ms", "--json", stderr=subprocess.PIPE
    )
    assert session.stdout and session.stderr
    rows: list[bytes] = []
    output = session.stdout
    reader = threading.Thread(target=lambda: rows.extend(output))
    reader.start()
    for line in session.stderr:
        if b"does not stop" in line:
            break
    late = len(rows)
    wait_for(lambda: len(rows) > late + 5, "epochs go on")
    session.send_signal(signal.SIGINT)
    assert session.wait(DEADLINE) == 0
    reader.join()
    assert len(Chain(tmp_path / "c").verify(b"")) == len(rows)
    lines = [process.stdout.readline() for _ in range(5)]
    assert all(line == b"beat\n" for line in lines) and process.poll() is None
