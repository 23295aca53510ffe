"""More threads than we have descriptors, or locked memory, to follow each."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import usable
from tests.helpers import Build, Run, Spawn
from uffdtrack._sys import lib

THREADS = 200


@pytest.fixture
def many(kernel: None, spawn: Spawn, build: Build) -> subprocess.Popen[bytes]:
    process = spawn(build("threads"), THREADS)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    return process


def limited(soft: int, hard: int) -> dict[str, object]:
    """Options of Popen: a limit of open files."""
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))}


LIMITS = {
    "soft": (limited(256, 4096), "ring", ""),
    "hard": (limited(256, 256), "scan", "open files (ulimit -n)"),
}


@pytest.mark.parametrize("which", LIMITS)
def test_open_files(many: subprocess.Popen[bytes], tmp_path: Path, uffdtrack: Run, which: str) -> None:
    """A soft limit is raised; where the hard one is too low, "scan" is used, and that is said."""
    usable("ring")
    options, engine, said = LIMITS[which]
    done = uffdtrack(
        "checkpoint", many.pid, "-o", tmp_path / "c", "--engine", "ring", "--every", "1ms", "--count", "3",
        "--json", **options,
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["threads"] for row in rows] == [THREADS + 1] * 3
    assert {row["engine"] for row in rows} == {engine}
    assert rows[-1]["scanned"] == (engine == "scan")
    assert said in done.stderr and ("warning" in done.stderr) == bool(said)
    assert many.stdin and many.stdout
    many.stdin.write(b"\n")
    many.stdin.flush()
    assert many.stdout.readline()


def test_locked_memory(root: None, many: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """The rings of an unprivileged user count for it (perf_event_open(2)); "scan" is used beyond it."""
    usable("ring")
    user = ["setpriv", "--bounding-set=-all,+sys_ptrace,+perfmon", "--inh-caps=-all"]
    done = subprocess.run(
        [*user, sys.executable, "-m", "checkpoint", "checkpoint", str(many.pid), "-o", str(tmp_path / "c"),
         "--engine", "ring", "--every", "1ms", "--count", "3", "--json"],
        capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    engines = {json.loads(line)["engine"] for line in done.stdout.splitlines()}
    if engines == {"ring"}:
        pytest.skip("sysctl kernel.perf_event_mlock_kb is enough here for all")
    assert engines == {"scan"} and "locked memory" in done.stderr


def test_command_of_run_has_the_limit_it_was_given(kernel: None, tmp_path: Path, uffdtrack: Run) -> None:
    out = tmp_path / "limit"
    uffdtrack(
        "run", "-o", tmp_path / "c", "--every", "10ms", "--", "sh", "-c", f"ulimit -Sn > {out}; sleep 0.2",
        **limited(256, 4096),
    )  # fmt: skip
    assert out.read_text() == "256\n" and os.path.exists(tmp_path / "c")


def test_no_descriptor_of_ours_is_no_end_of_the_target(kernel: None, spawn: Spawn) -> None:
    """What /proc cannot be asked says nothing of the process."""
    process = spawn("sleep", "60")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        found = lib.ut_live_thread(process.pid)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found == process.pid
