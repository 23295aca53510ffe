"""What many tests share: waits with a deadline, what is looked at from outside, the program notices.c."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

import kvmglue._sys
import uffdtrack._sys
from uffdtrack import parse_maps, stat_fields, status_field

Spawn = Callable[..., subprocess.Popen[bytes]]
Run = Callable[..., subprocess.CompletedProcess[str]]
Build = Callable[..., Path]
DEADLINE = 30.0
"""Seconds after which what should come is given up. No test's result depends on a shorter time."""
LOOK = 0.001
"""Seconds between two looks: who is waited for may need the processor."""


@contextmanager
def broken(what: str) -> Iterator[None]:
    """A negative control: the tracking of this process is broken on purpose (native_common/sabotage.h)."""
    flag = getattr(uffdtrack._sys.lib, f"UT_BREAK_{what.upper().replace('-', '_')}")
    modules = uffdtrack._sys.lib, kvmglue._sys.lib
    for module in modules:
        module.ut_break(flag)
    try:
        yield
    finally:
        for module in modules:
            module.ut_break(0)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(LOOK)


def stands(pid: int) -> bool:
    """Whether no thread of a process takes a step: SIGSTOP needs a while to get to those that run."""
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if path.read_text().rpartition(")")[2].split()[0] not in "TZX":
                return False
    return True


def rows_that_differ(one: Any, other: Any) -> list[int]:
    """Of two memories, the rows of pages that are not alike; by words, which takes a third of the time."""
    a, b = (memory.reshape(-1, 4096).view(np.uint64) for memory in (one, other))
    return np.flatnonzero((a != b).any(axis=1)).tolist()


def ask(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """The counters of notices.c; asking also sends an event and a signal that must not be lost."""
    assert process.stdin and process.stdout
    process.stdin.write(b"\n")
    process.stdin.flush()
    line = process.stdout.readline()
    assert line, f"the target died: {process.poll()}"
    counters: dict[str, int] = json.loads(line)
    return counters


def start_notices(spawn: Spawn, build: Build) -> subprocess.Popen[bytes]:
    process = spawn(build("notices"))
    assert process.stdout and process.stdout.readline() == b"ready\n"
    return process


def goes_on(process: subprocess.Popen[bytes], before: dict[str, int], by: int = 1) -> None:
    """Every kind of call of the target's goes on; it ends itself at the first thing that it notices."""
    wait_for(
        lambda: all(n >= before[kind] + by for kind, n in ask(process).items()), "each kind of call ends"
    )


def state_of(pid: int) -> tuple[list[str], list[str], str]:
    """Open files, mappings and tracer: what must be as before when we are gone."""
    names = sorted(os.listdir(f"/proc/{pid}/fd"))
    files = [f"{name} {os.readlink(f'/proc/{pid}/fd/{name}')}" for name in names]
    regions = parse_maps(Path(f"/proc/{pid}/maps").read_text())
    names = [f"{r.start:x}-{r.end:x} {r.permissions} {r.name}" for r in regions]
    return files, names, status_field(pid, "TracerPid")


def traps(pid: int) -> bool:
    """Whether any mapping is under write-protect."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    return any("uw" in line.split() for line in text.splitlines() if line.startswith("VmFlags"))


def state_changes(pid: int) -> None:
    """The target uses the processor."""

    def used() -> int:
        return int(stat_fields(pid)[11])

    first = used()
    wait_for(lambda: used() > first, "user time grows")


def listens(pid: int, port: int) -> bool:
    """Whether a process has a socket that listens at a port of 127.0.0.1."""
    place = f"0100007F:{port:04X} 00000000:0000 0A"
    with suppress(OSError):  # it ends, or closes a file
        lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()]
        inodes = {f"socket:[{f[9]}]" for f in lines if " ".join(f[1:4]) == place}
        return not inodes.isdisjoint(os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir())
    return False


def on_a_free_port(
    start: Callable[[int], subprocess.Popen[bytes]], answers: Callable[[int], bool]
) -> tuple[subprocess.Popen[bytes], int]:
    """A server and its port: another one if somebody takes it between its choice and its use."""
    for _ in range(10):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = int(s.getsockname()[1])
        process = start(port)
        wait_for(lambda p=process, n=port: p.poll() is not None or listens(p.pid, n), "it listens")  # type: ignore[misc]
        if process.poll() is None:
            wait_for(lambda n=port: answers(n), "it answers")  # type: ignore[misc]
            return process, port
    raise AssertionError(f"it has ended with {process.returncode}")


HUGE_PAGES = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"


@contextmanager
def alone_on(path: str) -> Iterator[Path]:
    """A setting of the host's that one test at a time may change, of all sessions that run here."""
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        kept = Path(path).read_text()
        try:
            yield Path(path)
        finally:
            Path(path).write_text(kept)


def session_of(
    spawn: Spawn, pid: int, directory: Path, *options: object, **more: object
) -> subprocess.Popen[bytes]:
    """A session of the command line that goes on while the test does."""
    command = (sys.executable, "-m", "checkpoint", "checkpoint", pid, "-o", directory)
    return spawn(*command, *options, **more)
