"""Who belongs to a tree of processes, and how long a session of one lasts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from checkpoint.side_by_side import AT_ONCE, side_by_side
from checkpoint.targets.process import ProcessTarget
from checkpoint.tree import TreeWriter
from checkpoint.tree_session import TreeSession
from tests.conftest import missing, usable
from tests.helpers import Build, Run, Spawn, wait_for
from tests.kernel.test_calls import Program
from uffdtrack import Tracee, stop_together
from uffdtrack.errors import StorageError

WRITES = "import os, time\nparent = os.getppid()\nwhile os.getppid() == parent: time.sleep(0.01)"


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
    root: None, spawn: Spawn, build: Build, tmp_path: Path
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
    # A stop looks first, and asks then: a call may begin between the two. Else each stop would break one off.
    unheard = last["unheard"] - first["unheard"]
    assert unheard <= 3
    assert last["executed"] - first["executed"] <= last["calls"] - first["calls"] + unheard + 1


def test_our_own_processes_are_no_members(kernel: None, root: None, spawn: Spawn, tmp_path: Path) -> None:
    """The tree of the shell that has started us."""
    program = f"{sys.executable} -m checkpoint"
    command = f"{program} checkpoint --children $$ -o {tmp_path}/t --every 50ms --count 3 --json"
    shell = spawn("sh", "-c", f"sleep 60 & {command}; kill $!; exit 0", stderr=subprocess.STDOUT)
    try:
        out = shell.communicate(timeout=50)[0].decode()
    except subprocess.TimeoutExpired as error:
        listed = subprocess.run(["ps", "-eo", "pid,ppid,stat,wchan:30,args"], capture_output=True, text=True)
        raise AssertionError(f"{shell.pid} has not ended:\n{listed.stdout}") from error
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert len(rows) == 3, out
    assert [{p["comm"] for p in row["processes"]} for row in rows] == [{"sh", "sleep"}] * 3
    assert [row["left_out"] for row in rows] == [[]] * 3


@pytest.fixture
def pids_max(root: None) -> Iterator[Path]:
    """The limit of processes of a new cgroup (pids, of v1 or of v2)."""
    for hierarchy in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        try:
            group = Path(tempfile.mkdtemp(prefix="uffdtrack-", dir=hierarchy))
        except OSError:
            continue
        if (group / "pids.max").exists():
            break
        group.rmdir()
    else:
        missing("a cgroup with a limit of processes")
    yield group / "pids.max"
    wait_for(lambda: not (group / "cgroup.procs").read_text(), "all its processes have ended")
    group.rmdir()


@pytest.mark.parametrize("engine", ["scan", "sync"])
def test_a_limit_of_processes_is_reached(
    pids_max: Path, spawn: Spawn, uffdtrack: Run, tmp_path: Path, engine: str
) -> None:
    """We can make no thread and no process: who is followed stays so, and newcomers are named meanwhile."""
    usable(engine)
    one = f"{sys.executable} -c '{WRITES}' &"
    shell = spawn("sh", "-c", f"{one} {one} {one} while read l; do {one} done", stdin=subprocess.PIPE)
    session = spawn(
        "sh", "-c", f'echo $$ > {pids_max.parent}/cgroup.procs; exec "$@"', "sh",
        sys.executable, "-m", "checkpoint", "checkpoint", "--children", shell.pid, "-o", tmp_path / "t",
        "--every", "50ms", "--duration", "60s", "--json", "--engine", engine,
    )  # fmt: skip
    assert session.stdout and shell.stdin
    followed: set[int] = set()
    named = 0
    for line in session.stdout:
        row = json.loads(line)
        pids = {p["pid"] for p in row["processes"]}
        if not followed and len(pids) == 4:
            followed = pids
            pids_max.write_text("1")
            shell.stdin.write(b"one more\n")
            shell.stdin.flush()
        assert followed <= pids
        named += any("ulimit -u" in p["reason"] for p in row["left_out"])
        if named == 5:
            pids_max.write_text("max")
        if len(pids) == 5:
            break
    else:
        pytest.fail(f"the newcomer was named {named} times, and not followed after that")
    assert named >= 5
    session.terminate()
    session.communicate(timeout=60)
    assert session.returncode == 0
    uffdtrack("verify", tmp_path / "t")


@pytest.mark.parametrize("argv", [("sleep", "60"), (sys.executable, "-c", WRITES)], ids=["sleeps", "writes"])
def test_a_warning_of_a_failed_epoch_comes_with_the_next(
    kernel: None, spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...]
) -> None:
    """All is written but the tree's own entry. The epoch of a process that sleeps is its last one again."""
    given: list[str] = []

    def new_warnings(*_: object) -> list[str]:
        given.append(f"warning {len(given)}")
        return given[-1:]

    def full(*_: object) -> str:
        raise StorageError("no space left")

    pid = spawn(*argv).pid
    monkeypatch.setattr(ProcessTarget, "new_warnings", new_warnings)
    with (
        TreeWriter(tmp_path / "t", b"", force=False) as writer,
        TreeSession(pid, writer, "scan", None) as tree,
    ):
        with monkeypatch.context() as disk:
            disk.setattr(TreeWriter, "commit", full)
            for _ in range(3):
                with pytest.raises(StorageError):
                    tree.take()
        told: list[str] = []
        for _ in range(3):
            told += tree.take().processes[0].warnings
            assert told == given != []


@pytest.mark.parametrize("threads", range(AT_ONCE))
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
    assert len(started) == min(threads, AT_ONCE - 1)
    assert not any(thread.is_alive() for thread in started)

    def fails(item: int) -> None:
        done.append(item)
        if item == 5:
            raise OSError(item)

    done.clear()
    started.clear()
    with pytest.raises(OSError, match="5"):
        side_by_side(fails, range(50))
    assert 6 <= len(done) <= 50 if threads else len(done) == 6
    assert not any(thread.is_alive() for thread in started)
    side_by_side(fails, [])


SHARES = """
import mmap, os, signal, sys
with open(sys.argv[1], "r+b") as file:
    shared = mmap.mmap(file.fileno(), 0)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
assert all(shared[::4096])
child = os.fork() if len(sys.argv) == 2 else 0
if len(sys.argv) == 2 and not child:
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], sys.argv[1], "child"])
print("ready", flush=True)
while child and sys.stdin.readline():
    os.kill(child, signal.SIGUSR1)
if child:
    os.kill(child, signal.SIGKILL)
elif signal.sigwait([signal.SIGUSR1]):
    os.execv(sys.executable, [sys.executable, "-c", *sys.orig_argv[2:]])
"""


def test_who_calls_exec_stores_no_shared_memory_again(
    kernel: None, root: None, spawn: Spawn, uffdtrack: Run, tmp_path: Path
) -> None:
    size = 32 << 20
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(b"\1" * size)
        file.flush()
        program = spawn(sys.executable, "-c", SHARES, file.name)
        assert program.stdin and program.stdout
        assert [program.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
        command = (sys.executable, "-m", "checkpoint", "checkpoint", "--children", program.pid)
        taking = spawn(*map(str, command), "-o", tmp_path / "t", "--every", "50ms", "--json")
        assert taking.stdout
        bases = []
        for line in taking.stdout:
            for process in json.loads(line)["processes"]:
                if process["pid"] != program.pid and process["base"]:
                    bases.append(process["bytes"])
                    program.stdin.write(b"\n")
                    program.stdin.flush()
                    assert program.stdout.readline() == b"ready\n"
            if len(bases) == 4:
                break
        program.stdin.close()
        assert program.wait(30) == 0
    assert taking.wait(30) == 0
    assert len(bases) == 4
    assert max(bases) < size
