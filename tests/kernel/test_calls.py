"""Calls that a stop breaks off: what a program sees of it is nothing, and each call ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.calls_table import rules
from tests.conftest import missing
from tests.helpers import Build, Spawn
from uffdtrack._sys import lib

HEADERS = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h")
NEWER = {"fchmodat2": 452, "futex_wait": 455}
"""Numbers that the headers of an older distribution lack."""


def numbers() -> dict[str, int]:
    """The calls of this machine."""
    for header in HEADERS:
        if os.path.exists(header):
            text = Path(header).read_text()
            return {n: int(v) for n, v in re.findall(r"^#define __NR_(\w+) (\d+)$", text, re.MULTILINE)}
    missing("asm/unistd_64.h")
    return {}


def test_every_call_has_a_rule() -> None:
    """The core's rule of each number is that of the table, or the default; so it is for numbers to come."""
    names = {lib.UT_CALL_LEAVE: "leave", lib.UT_CALL_WAIT: "wait", lib.UT_CALL_ANEW: "anew",
             lib.UT_CALL_FILE: "file", lib.UT_CALL_DRIVER: "driver"}  # fmt: skip
    table = rules()
    here = {**NEWER, **numbers()}
    assert len(here) > 300
    assert set(table) <= set(here)
    for name, number in here.items():
        assert names[lib.ut_call_rule(number)] == table.get(name, "anew"), name
    for number in range(max(here.values()) + 1, 2000):
        assert lib.ut_call_rule(number) == lib.UT_CALL_ANEW


class Program:
    """tests/programs/calls.c at work, and the pid to checkpoint."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        assert process.stdout
        line = process.stdout.readline().split()
        if not line and process.wait() == 77:
            missing("what the program needs is not to be had here")
        assert line and line[0] == b"ready", process.poll()
        self.pid = int(line[1])

    def counters(self) -> dict[str, int]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the program has noticed something: {self.process.wait()}"
        counters: dict[str, int] = json.loads(line)
        return counters


def session(program: Program, directory: Path, every: str, count: int) -> None:
    """That many checkpoints, however long it takes."""
    done = subprocess.run(
        [sys.executable, "-m", "checkpoint", "checkpoint", str(program.pid), "-o", str(directory),
         "--every", every, "--count", str(count), "--json"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == count


@pytest.mark.parametrize("what", ["waits", "children"])
def test_waits(root: None, spawn: Spawn, build: Build, tmp_path: Path, what: str) -> None:
    """Stops every few ms: each call goes on, with the results, limits and effects that it has alone."""
    (tmp_path / "d").mkdir()
    program = Program(spawn(build("calls"), what, tmp_path / "d"))
    first = program.counters()
    session(program, tmp_path / "c", "4ms", 60)
    last = program.counters()
    for name, count in first.items():
        assert last[name] > count, name


@pytest.mark.parametrize("what", ["load", "allocate"])
def test_work_that_begins_anew_ends(
    root: None, spawn: Spawn, build: Build, tmp_path: Path, what: str
) -> None:
    """Work that takes longer than the time between two stops: it is never seen to fail, and it ends."""
    program = Program(spawn(build("calls"), what))
    first = program.counters()
    session(program, tmp_path / "c", "5ms", 10)
    assert program.counters()[what] > first[what]


@pytest.mark.parametrize("what", ["supervised", "own"])
def test_supervised_calls_are_made_once(
    root: None, spawn: Spawn, build: Build, tmp_path: Path, what: str
) -> None:
    """Calls of 60 ms that a supervisor answers, one behind the other, under a stop every 20 ms."""
    program = Program(spawn(build("calls"), what))
    first = program.counters()
    session(program, tmp_path / "c", "20ms", 15)
    last = program.counters()
    assert last["calls"] - first["calls"] >= 4
    # A stop looks first, and asks then: a call may begin between the two. Else each stop would break one off.
    unheard = last["unheard"] - first["unheard"]
    assert unheard <= 3
    assert last["executed"] - first["executed"] <= last["calls"] - first["calls"] + unheard + 1


def test_file_system_in_user_space(root: None, spawn: Spawn, build: Build, tmp_path: Path) -> None:
    """It answers EINTR to what is interrupted, and takes as long as the time between two stops."""
    mount = tmp_path / "m"
    mount.mkdir()
    server = spawn(build("fusefs"), mount, 8)
    assert server.stdout
    if server.stdout.readline() != b"mounted\n":
        missing("FUSE")
    program = None
    try:
        program = Program(spawn(build("calls"), "files", mount))
        first = program.counters()
        session(program, tmp_path / "c", "8ms", 40)
        assert program.counters()["files"] > first["files"]
    finally:
        if program:
            program.process.kill()
        server.send_signal(signal.SIGTERM)
        subprocess.run(["umount", "-l", mount], check=False)
