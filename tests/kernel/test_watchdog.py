"""Whatever bug we have, a target stands for a bounded time, and works after: faults on purpose, see
`ut_sabotage` in guard.c."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.epoch import EpochRow
from checkpoint.schedule import Schedule, run_session
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from tests.helpers import Build, Run, Spawn, ask, goes_on, session_of, start_notices, state_of, wait_for
from tests.kernel.forks import is_dead
from uffdtrack import Window, status_field, verdict_on
from uffdtrack.errors import MaxStopError

KINDS = {
    "spin": "a loop that does not end",
    "sleep": "a wait that does not end",
    "stop": "SIGSTOP: a debugger's, a shell's, a frozen container's",
}
"""How we hang."""

POINTS = {
    "stopping": "attach: some threads stand, and what that did to their calls is not mended yet",
    "attach": "attach: all stand",
    "inject": "attach: a thread is on its way into a call of ours",
    "injected": "attach: it comes out of it, and has a userfaultfd of ours",
    "window": "an epoch: all stand",
    "harvested": "an epoch: what was written is found, and not copied",
}
"""Where."""

QUICK = {
    ("stopping", "stop"),
    ("inject", "stop"),
    ("injected", "spin"),
    ("window", "spin"),
    ("attach", "sleep"),
}


def hangs() -> list[Any]:
    return [
        pytest.param(point, kind, marks=[] if (point, kind) in QUICK else pytest.mark.slow)
        for point in POINTS
        for kind in KINDS
    ]


@pytest.mark.parametrize(("point", "kind"), hangs())
def test_we_hang(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run, point: str, kind: str
) -> None:
    process = start_notices(spawn, build)
    before, state = ask(process), state_of(process.pid)
    done = uffdtrack(
        "checkpoint", process.pid, "-o", tmp_path / "c", "--every", "10ms", "--count", "3",
        "--max-stop", "500ms",
        env={**os.environ, "UFFDTRACK_SABOTAGE": f"{kind}:{point}"}, code=5,
    )  # fmt: skip
    assert f"process {process.pid} stood still for" in done.stderr
    assert "--max-stop 0.5s" in done.stderr and "the process runs on" in done.stderr
    goes_on(process, before)
    assert state_of(process.pid) == state


def test_without_sabotage_nobody_is_ended(kernel: None, spawn: Spawn, build: Build, tmp_path: Path) -> None:
    """The negative control: the same session, and its watchdog has ended when it has."""
    process = start_notices(spawn, build)
    session = session_of(spawn, process.pid, tmp_path / "c", "--every", "50ms", "--max-stop", "1s", "--json")
    assert session.stdout
    end = time.monotonic() + 2.2  # more than two bounds
    while time.monotonic() < end:
        assert session.stdout.readline()
    (guard,) = watchdogs(session.pid)
    session.send_signal(signal.SIGINT)
    session.communicate(timeout=30)
    assert session.returncode == 0
    assert not os.path.exists(f"/proc/{guard}")


def watchdogs(pid: int) -> list[int]:
    """Those among the children of a process."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that has ended meanwhile
            if Path(f"/proc/{child}/comm").read_text() == "uffdtrack-guard\n":
                found.append(int(child))
    return found


def test_the_watchdog_outlives_a_kill_of_the_command(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path
) -> None:
    """Its process group and session are others; it holds no pipe of ours open, and ends with the worker."""
    process = start_notices(spawn, build)
    before = ask(process)
    session = subprocess.Popen(
        [sys.executable, "-m", "checkpoint", "checkpoint", str(process.pid), "-o", str(tmp_path / "c"),
         "--max-stop", "2s"],
        stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "UFFDTRACK_SABOTAGE": "stop:window"},
    )  # fmt: skip
    wait_for(lambda: bool(watchdogs(session.pid)), "there is a watchdog")
    guard = watchdogs(session.pid)[0]
    assert os.getpgid(guard) == guard and os.getsid(guard) == guard
    wait_for(lambda: bool(list(tmp_path.glob("c/.epoch*"))), "the base is being written")
    os.killpg(session.pid, signal.SIGINT)  # is blocked by who hangs, and noted only
    session.kill()  # the worker is there still, and hangs
    assert session.wait() == -signal.SIGKILL
    assert session.stderr and session.stderr.read() is not None
    session.stderr.close()
    wait_for(lambda: is_dead(guard), "the watchdog has ended")
    goes_on(process, before)


ROLLED = """
import mmap, sys
memory = bytearray(b'a') * (8 << 20)
kept = []
print("ready", flush=True)
for line in sys.stdin:
    if line == "change\\n":
        memory[:] = b'b' * len(memory)
        kept.append(mmap.mmap(-1, 1 << 20))
    print(len(memory) == memory.count(memory[0]) and chr(memory[0]), flush=True)
"""


def tell(process: subprocess.Popen[bytes], order: str) -> str:
    assert process.stdin and process.stdout
    process.stdin.write(order.encode() + b"\n")
    process.stdin.flush()
    return process.stdout.readline().decode().strip()


@pytest.fixture
def rolled(
    kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run
) -> tuple[subprocess.Popen[bytes], Path]:
    """A process that has changed since its epoch 1."""
    process = spawn(sys.executable, "-c", ROLLED)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    assert tell(process, "look") == "a"
    uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", "--every", "10ms", "--count", "2")
    assert tell(process, "change") == "b"
    return process, tmp_path / "c"


def test_slow_rollback_is_taken_back(rolled: tuple[subprocess.Popen[bytes], Path], uffdtrack: Run) -> None:
    """Past half of the time, while the other half is there for the way back."""
    process, chain = rolled
    done = uffdtrack(
        "rollback", process.pid, f"{chain}@1", "--max-stop", "4s", code=5,
        env={**os.environ, "UFFDTRACK_SABOTAGE": "slow:clock"},
    )  # fmt: skip
    assert "--max-stop 4s" in done.stderr and "the process is as it was" in done.stderr
    assert tell(process, "look") == "b"
    uffdtrack("rollback", process.pid, f"{chain}@1", "--max-stop", "60s")
    assert tell(process, "look") == "a"


@pytest.mark.parametrize("order", ["spin:clock", pytest.param("stop:inject", marks=pytest.mark.slow)])
def test_rollback_that_hangs(
    rolled: tuple[subprocess.Popen[bytes], Path], uffdtrack: Run, order: str
) -> None:
    """It is ended, and says that memory may be of two times; the registers are the target's own."""
    process, chain = rolled
    done = uffdtrack(
        "rollback", process.pid, f"{chain}@1", "--max-stop", "2s", code=5,
        env={**os.environ, "UFFDTRACK_SABOTAGE": order},
    )  # fmt: skip
    assert "the watchdog has ended this" in done.stderr and "may be partly that of the epoch" in done.stderr
    assert tell(process, "look") == "b"
    uffdtrack("rollback", process.pid, f"{chain}@1", "--max-stop", "60s")
    assert tell(process, "look") == "a"


def test_window_that_takes_too_long(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run
) -> None:
    process = start_notices(spawn, build)
    before = ask(process)
    done = uffdtrack(
        "checkpoint", process.pid, "-o", tmp_path / "c", "--max-stop", "3s", code=5,
        env={**os.environ, "UFFDTRACK_SABOTAGE": "slow:look"},
    )  # fmt: skip
    assert "--max-stop 3s" in done.stderr and "runs on" in done.stderr
    goes_on(process, before)


def test_too_much_for_a_stop_is_copied_while_the_target_runs(
    rolled: tuple[subprocess.Popen[bytes], Path], tmp_path: Path
) -> None:
    """Nothing of it is lost: the next epoch is a base."""
    process, _ = rolled
    rows: list[EpochRow] = []
    said: list[str] = []
    with ProcessTarget(process.pid) as target, ChainWriter(tmp_path / "d", b"", False) as chain:
        session = Session(target, chain)
        window, calls = target.window, itertools.count()

        def too_long_once() -> Window:
            if next(calls) == 2:
                target.pending.everything = True
                tell(process, "change")
                raise MaxStopError("too much")
            return window()

        target.window = too_long_once  # type: ignore[method-assign]
        run_session(session, Schedule(0.01, 5, None), lambda s: False, rows.append, said.append)
    assert [row.base for row in rows] == [True, False, True, False, False]
    assert len(said) == 1 and "too much" in said[0]
    assert len(Chain(tmp_path / "d").verify(b"")) == 5


NO_RAISING = ("setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource")
"""Whoever may raise a hard limit makes no thread."""
CROWDED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (40, {hard}))
try:
    while True: os.dup(0)
except OSError: pass
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("point", "hard", "prefix"),
    [
        pytest.param("limited", 1000, (), id="a raised limit"),
        pytest.param("born", 40, NO_RAISING, id="a thread", marks=pytest.mark.slow),
    ],
)
def test_what_we_have_made_in_the_target_goes(
    kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run, point: str, hard: int, prefix: tuple[str, ...]
) -> None:
    """A process without a free descriptor is attached to with a higher limit, or by a thread of our own."""
    process = spawn(sys.executable, "-c", CROWDED.format(hard=hard))
    assert process.stdout and process.stdout.readline() == b"ready\n"
    argv = ("checkpoint", process.pid, "-o", tmp_path / "c", "--count", "1", "--max-stop", "500ms")
    environment = {**os.environ, "UFFDTRACK_SABOTAGE": f"stop:{point}"}
    command = [*prefix, sys.executable, "-m", "checkpoint", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 5 and "the watchdog has ended this" in done.stderr
    threads = Path(f"/proc/{process.pid}/task")
    wait_for(lambda: len(os.listdir(threads)) == 1, "it has its own thread alone")
    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0] == 40
    assert status_field(process.pid, "TracerPid") == "0" and process.poll() is None
    uffdtrack(*argv[:-2], "--force")


def test_verdicts(kernel: None) -> None:
    """Of a process that was not ended there is none."""
    assert verdict_on(os.getpid()) is None
