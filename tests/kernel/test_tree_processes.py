"""Who belongs to a tree of processes, and how long a session of one lasts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from checkpoint.tree_member import WRITERS, side_by_side
from tests.conftest import missing
from tests.kernel.test_calls import Program
from uffdtrack import Tracee, children, stop_together

Spawn = Callable[..., subprocess.Popen[bytes]]
Run = Callable[..., subprocess.CompletedProcess[str]]

WRITES = "import time\nwhile True: time.sleep(0.01)"


def test_run_goes_on_until_the_last_has_ended(
    kernel: None, spawn: Spawn, uffdtrack: Run, tmp_path: Path
) -> None:
    """A shell that ends before its children: an orphan is a child of ours then. The status is the shell's."""
    for name in ("shell", "orphan"):
        os.mkfifo(tmp_path / name)
    script = f"(exec cat {tmp_path}/orphan &); read line < {tmp_path}/shell; exit 3"
    command = (sys.executable, "-m", "checkpoint", "run", "--children", "-o", tmp_path / "t")
    running = spawn(*command, "--every", "50ms", "--json", "--", "sh", "-c", script, stderr=subprocess.STDOUT)
    assert running.stdout
    rows, said = [], ""
    ends = [({"sh", "cat"}, "shell"), ({"cat"}, "orphan")]
    for line in running.stdout:
        if not line.startswith(b"{"):
            said += line.decode()
            continue
        rows.append(json.loads(line))
        if ends and {p["comm"] for p in rows[-1]["processes"]} == ends[0][0]:
            (tmp_path / ends.pop(0)[1]).write_text("\n")
    assert running.wait(60) == 3, said
    assert not ends, said
    assert "have ended" in said
    assert not [p for row in rows for p in row["left_out"] if "uffdtrack" in p["comm"]]
    uffdtrack("verify", tmp_path / "t")


def test_a_session_ends_when_the_last_process_does(kernel: None, uffdtrack: Run, tmp_path: Path) -> None:
    """However long it is to the next epoch: this test would never end."""
    done = uffdtrack("run", "--children", "-o", tmp_path / "t", "--every", "1h", "--", "sleep", "1")
    assert "have ended" in done.stderr


def test_who_answers_calls_of_another_does_not_stand_for_them(
    root: None, spawn: Spawn, build: Callable[[str], Path], tmp_path: Path
) -> None:
    """A seccomp supervisor and the process that it answers, call for call, in one tree."""
    program = Program(spawn(build("calls"), "supervised"))
    first = program.counters()
    pids = [program.process.pid, program.pid]
    with ExitStack() as stack:
        tracees = [stack.enter_context(Tracee(pid)) for pid in pids]
        for _ in range(5):
            stop_together(tracees)
            for tracee in tracees:
                tracee.resume()
    done = subprocess.run(
        [sys.executable, "-m", "checkpoint", "checkpoint", "--children", str(pids[0]), "-o", tmp_path / "t",
         "--every", "50ms", "--count", "5", "--json"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert {p["pid"] for p in json.loads(line)["processes"]} == set(pids)
    last = program.counters()
    # A stop looks first, and asks then: a call may begin between the two.
    assert last["unheard"] <= 1
    assert last["executed"] - first["executed"] <= last["calls"] - first["calls"] + 2


def test_our_own_processes_are_no_members(kernel: None, root: None, spawn: Spawn, tmp_path: Path) -> None:
    """The tree of the shell that has started us."""
    program = f"{sys.executable} -m checkpoint"
    command = f"{program} checkpoint --children $$ -o {tmp_path}/t --every 50ms --count 3 --json"
    shell = spawn("sh", "-c", f"sleep 60 & {command}; kill $!; exit 0", stderr=subprocess.STDOUT)
    out = shell.communicate(timeout=60)[0].decode()
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert len(rows) == 3, out
    assert [{p["comm"] for p in row["processes"]} for row in rows] == [{"sh", "sleep"}] * 3
    assert [row["left_out"] for row in rows] == [[]] * 3


@pytest.fixture
def pids_max(root: None) -> Iterator[Path]:
    """The limit of processes of a new cgroup (pids, of v1 or of v2)."""
    for hierarchy in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        group = Path(hierarchy) / f"uffdtrack-pids-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / "pids.max").exists():
            break
        group.rmdir()
    else:
        missing("a cgroup with a limit of processes")
    yield group / "pids.max"
    group.rmdir()


@pytest.fixture
def shell(spawn: Spawn) -> Iterator[subprocess.Popen[bytes]]:
    """With three children that write now and then, and one more for each line."""
    script = f"for i in 1 2 3; do {sys.executable} -c '{WRITES}' & done; while read l; do sleep 1000 & done"
    process = spawn("sh", "-c", script, stdin=subprocess.PIPE)
    yield process
    for pid in children(process.pid):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("engine", ["scan", "sync"])
def test_a_limit_of_processes_is_reached(
    pids_max: Path, shell: subprocess.Popen[bytes], spawn: Spawn, uffdtrack: Run, tmp_path: Path, engine: str
) -> None:
    """We can make no thread and no process: who is followed stays so, and newcomers are named meanwhile."""
    session = spawn(
        sys.executable, "-m", "checkpoint", "checkpoint", "--children", shell.pid, "-o", tmp_path / "t",
        "--every", "50ms", "--duration", "60s", "--json", "--engine", engine,
    )  # fmt: skip
    (pids_max.parent / "cgroup.procs").write_text(str(session.pid))
    assert session.stdout and shell.stdin
    full = left = 0
    for line in session.stdout:
        row = json.loads(line)
        assert all("ulimit -u" in p["reason"] for p in row["left_out"])
        left += len(row["left_out"])
        full += len(row["processes"]) == 4
        if full == 2:
            pids_max.write_text("1")
            shell.stdin.write(b"one more\n")
            shell.stdin.flush()
        if left == 5:
            pids_max.write_text("max")
        if len(row["processes"]) == 5:
            break
    session.terminate()
    session.communicate(timeout=60)
    assert session.returncode == 0
    assert left >= 5
    uffdtrack("verify", tmp_path / "t")


@pytest.mark.parametrize("threads", range(WRITERS))
def test_side_by_side(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, however few threads can be made; and the first failure ends it."""
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def few(thread: threading.Thread) -> None:
        if len(started) == threads:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", few)
    done: list[int] = []
    side_by_side(done.append, range(50))
    assert sorted(done) == list(range(50))
    assert len(started) == min(threads, WRITERS - 1)
    assert not any(thread.is_alive() for thread in started)

    def fails(item: int) -> None:
        done.append(item)
        if item == 5:
            raise OSError(item)

    done.clear()
    started.clear()
    with pytest.raises(OSError, match="5"):
        side_by_side(fails, range(50))
    assert 6 <= len(done) <= 50
    side_by_side(fails, [])
