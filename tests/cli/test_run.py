"""`run`: the command's exit status, its parent, and the child that does its work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import Run, Spawn, wait_for
from uffdtrack import Kept, status_field
from uffdtrack.errors import TargetGoneError

STATUSES = {
    "exit 0": (0, "exit status 0"),
    "exit 3": (3, "exit status 3"),
    "exit 255": (255, "exit status 255"),
    "kill -TERM $$": (143, "signal 15"),
    "kill -KILL $$": (137, "signal 9"),
    "kill -40 $$": (168, "signal 40"),
}
"""How a command ends, and what a shell says of it ($?)."""


@pytest.mark.parametrize(
    ("how", "when"),
    [*((how, "within the session") for how in STATUSES), ("exit 3", "at once"), ("kill -TERM $$", "at once")],
)
def test_exit_status(kernel: None, tmp_path: Path, uffdtrack: Run, how: str, when: str) -> None:
    status, said = STATUSES[how]
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    first = f"read line < {fifo}; " if when == "within the session" else ""
    command = ["run", "-o", tmp_path / "c", "--every", "10ms", "--json", "--", "sh", "-c", first + how]
    if when == "at once":
        done = uffdtrack(*command, code=status)
        assert said in done.stderr
        return
    session = subprocess.Popen(
        [sys.executable, "-m", "checkpoint", *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert session.stdout
    session.stdout.readline()
    fifo.write_text("\n")
    _, stderr = session.communicate(timeout=60)
    assert session.returncode == status, stderr
    assert said in stderr and "has ended\n" in stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--", "/no/such/program"], 2), (["--", "/"], 2), (["--every", "x", "--", "true"], 2)],
)
def test_errors_of_our_own(
    kernel: None, tmp_path: Path, uffdtrack: Run, arguments: list[str], code: int
) -> None:
    done = uffdtrack("run", "-o", tmp_path / "c", *arguments, code=code)
    assert "rror: " in done.stderr and "exit status" not in done.stderr


DIES_WITH_ITS_PARENT = (
    "import ctypes, sys, time\n"
    "assert not ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)\n"  # PR_SET_PDEATHSIG
    "print('ready', flush=True); sys.stdin.read(); time.sleep(600)"
)


def test_parent_death_signal(kernel: None, spawn: Spawn, tmp_path: Path) -> None:
    """The end of the session is not that of the command's parent."""
    session = spawn(
        sys.executable, "-m", "checkpoint", "run", "-o", tmp_path / "c", "--every", "1h", "--json", "--",
        sys.executable, "-c", DIES_WITH_ITS_PARENT,
    )  # fmt: skip
    assert session.stdout
    lines = [session.stdout.readline() for _ in range(2)]
    while b"ready\n" not in lines:
        lines.append(session.stdout.readline())
    pid = next(json.loads(line)["pid"] for line in lines if b"epoch" in line)
    pidfd = os.pidfd_open(pid)
    try:
        keeper = int(status_field(pid, "PPid"))
        session.send_signal(signal.SIGINT)
        assert session.wait(60) == 0
        assert int(status_field(pid, "PPid")) == keeper
        # It costs nothing: no file of ours, no memory to speak of.
        assert len(os.listdir(f"/proc/{keeper}/fd")) <= 1 and os.readlink(f"/proc/{keeper}/cwd") == "/"
        assert int(status_field(keeper, "RssAnon").split()[0]) < 8192
        # Negative control: it is the keeper's end that the command does not outlive.
        os.kill(keeper, signal.SIGKILL)
        wait_for(lambda: not lives(pid), "its parent-death signal has come")
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def lives(pid: int) -> bool:
    try:
        return bool(status_field(pid, "State")) and not status_field(pid, "State").startswith("Z")
    except TargetGoneError:
        return False


def test_keeper_ends_with_its_command(kernel: None) -> None:
    """In a process of its own, since it forks."""
    script = (
        "import os, sys; from uffdtrack import Kept\n"
        "kept = Kept(['sh', '-c', 'exit 7'])\n"
        "assert kept.status() == 7\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 0\n"
        "try: Kept(['/no/such'])\n"
        "except FileNotFoundError: print('as it should')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "as it should\n", done.stderr
    assert Kept.__doc__


def test_child_that_does_the_work_is_said(kernel: None, spawn: Spawn, tmp_path: Path) -> None:
    session = spawn(
        sys.executable, "-m", "checkpoint", "run", "-o", tmp_path / "c", "--every", "1h", "--", "sh", "-c",
        "sleep 600; exit 3", stderr=subprocess.PIPE,
    )  # fmt: skip
    assert session.stderr
    line = session.stderr.readline().decode()
    assert (
        "the command has a child process" in line and "(sleep)" in line and "not in these checkpoints" in line
    )
    child = int(line.partition("child process ")[2].split()[0])
    os.kill(child, signal.SIGKILL)
    assert session.wait(60) == 3


def test_process_that_works_itself_is_not_said_to_wait(kernel: None, tmp_path: Path, uffdtrack: Run) -> None:
    """It has a child, and does things beside it; it does not wait for its end, which may take a while."""
    script = (
        "import os, subprocess, time; child = subprocess.Popen(['sleep', '600'])\n"
        "end = time.monotonic() + 1.5\n"
        "while time.monotonic() < end: sum(range(1000))\n"
        "child.kill(); os._exit(0)"
    )
    done = uffdtrack("run", "-o", tmp_path / "c", "--every", "20ms", "--", sys.executable, "-c", script)
    assert "child process" not in done.stderr
