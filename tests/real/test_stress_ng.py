"""stress-ng checks its own results: none is wrong under checkpoints that is right without."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real.programs import descendants, used_ticks

Tool = Callable[[str], str]

pytestmark = pytest.mark.slow

OWN_MEMORY = ("vm", "mmap", "mremap", "madvise", "brk", "stack", "mprotect", "memfd", "shm", "shm-sysv")
"""Their state is in their memory: a worker is rolled back in the middle of them."""
STRESSORS = (
    *OWN_MEMORY, "fork", "clone", "vfork", "futex", "signal", "timer", "timerfd", "itimer", "pipe", "sock",
    "aio", "io-uring", "seccomp", "rseq", "bpf-syscall", "userfaultfd", "pthread", "poll", "epoll", "eventfd",
)  # fmt: skip
SECONDS = 5


@pytest.fixture(scope="session")
def stress_ng(root: None, tool: Tool) -> Callable[[str], list[str]]:
    program = tool("stress-ng")
    known = subprocess.run(
        [program, "--stressors"], capture_output=True, text=True, check=True
    ).stdout.split()

    def command(name: str) -> list[str]:
        if name not in known:
            pytest.skip(f"this stress-ng has no {name}")  # of its version, not of the host
        bound = {
            "vm": ["--vm-bytes", "64m"],
            "mremap": ["--mremap-bytes", "64m"],
            "shm": ["--shm-bytes", "32m"],
        }
        return [program, f"--{name}", "1", *bound.get(name, []), "--verify", "-t", str(SECONDS), "--oomable"]

    return command


def failures(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What stress-ng says of wrong results, without what differs from run to run."""
    lines = (done.stdout + done.stderr).splitlines()
    return [line.split("]", 1)[-1].strip() for line in lines if " fail:" in line or "unsuccessful" in line]


@pytest.mark.parametrize("name", STRESSORS)
def test_stress_ng(
    name: str, process_engine: str, stress_ng: Callable[[str], list[str]], tmp_path: Path
) -> None:
    command = stress_ng(name)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        rows, err = follow(worker_of(process), process_engine, tmp_path, name in OWN_MEMORY)
    finally:
        out, said = process.communicate(timeout=120)
    done = subprocess.CompletedProcess(command, process.returncode, out, said)
    if failures(done) or done.returncode:
        alone = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert failures(alone) and alone.returncode == done.returncode, f"{out}{said}{err}{rows}"


def worker_of(process: subprocess.Popen[str]) -> int:
    """Who does the work: some stressors have it done by a child, which they start anew if it dies."""
    deadline = time.monotonic() + SECONDS / 5
    family: list[int] = []
    while process.poll() is None:
        family = descendants(process.pid) or family
        busy = [pid for pid in family if used_ticks(pid) >= 5]
        if busy or (family and time.monotonic() > deadline):
            return (busy or family)[-1]
    return process.pid


def follow(worker: int, engine: str, tmp_path: Path, put_back: bool) -> tuple[int, str]:
    """Checkpoints of one worker until it ends, with a rollback in the middle; a refusal is no failure."""
    base = [sys.executable, "-m", "checkpoint"]
    argv = [
        *base,
        "checkpoint",
        str(worker),
        "-o",
        str(tmp_path / "c"),
        "--every",
        "50ms",
        "--engine",
        engine,
    ]
    if put_back:
        argv += ["--duration", f"{SECONDS / 3}s"]
    taken = subprocess.run([*argv, "--json"], capture_output=True, text=True)
    # Some workers put down their privileges at once.
    without = engine == "sync" and "vm.unprivileged_userfaultfd" in taken.stderr
    assert taken.returncode in (0, 5) or without, taken.stderr
    assert taken.returncode == 0 or "Traceback" not in taken.stderr
    rows = [json.loads(line) for line in taken.stdout.splitlines()]
    if rows:
        subprocess.run([*base, "verify", str(tmp_path / "c")], check=True, capture_output=True)
    if put_back and rows:
        back = subprocess.run(
            [*base, "rollback", str(worker), f"{tmp_path / 'c'}@{rows[-1]['epoch']}"],
            capture_output=True,
            text=True,
        )
        assert back.returncode in (0, 5), back.stderr
    return len(rows), taken.stderr
