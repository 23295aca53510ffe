"""Somebody else traces the target for a while: epochs are skipped, nothing is lost, the session goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.epoch import EpochRow
from checkpoint.schedule import Schedule, run_session
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from checkpoint.targets.refusals import check_living_target
from tests.helpers import Build, Run, Spawn, alone_on, wait_for
from uffdtrack import PAGE, Runs, status_field
from uffdtrack.errors import TargetBusyError

AT = 0x200000000000  # of visited.c
VALUE = 0x5EED
PATTERN = "/proc/sys/kernel/core_pattern"

VISITS = {
    "attach": "gdb -p, PTRACE_ATTACH: every thread stands",
    "attach-stop": "PTRACE_ATTACH, and the process is left in a group-stop",
    "attach-killed": "PTRACE_ATTACH, and the tracer ends without a word",
    "run": "strace -p, PTRACE_SEIZE: the threads run on",
    "watch": "PTRACE_SEIZE, and nothing is ever stopped",
    "one": "PTRACE_SEIZE of a thread that is not the first",
}
"""How ptrace(2) lets a process have another one."""


class Visited:
    """visited.c, and who visits it."""

    def __init__(self, spawn: Spawn, build: Build) -> None:
        self.spawn, self.visitor = spawn, build("visitor")
        self.process = spawn(build("visited"))
        self.pid = self.process.pid
        assert self.process.stdout
        self.second = int(self.process.stdout.readline().split()[1])

    def tell(self, line: str = "") -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def answer(self) -> int:
        """What it counts; a page of its own is written for it."""
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def arrive(self, how: str) -> tuple[subprocess.Popen[bytes], int]:
        """The visitor, and how much it could write."""
        visitor = self.spawn(self.visitor, how, self.pid, self.second, VALUE)
        assert visitor.stdout
        return visitor, int(visitor.stdout.readline().split()[1])

    def leave(self, visitor: subprocess.Popen[bytes], how: str) -> None:
        if how == "attach-killed":
            visitor.kill()
        assert visitor.stdin
        visitor.communicate(b"\n")
        if how == "attach-stop":
            wait_for(lambda: status_field(self.pid, "State").startswith("T"), "it has stopped")

    def image(self, directory: Path, epoch: int, page: int) -> int:
        view = Chain(directory).view(epoch)
        data = view.read(view.pages[view.pages == AT // PAGE + page])
        return int.from_bytes(data.tobytes()[:8], "little")


@pytest.fixture
def visited(kernel: None, spawn: Spawn, build: Build) -> Visited:
    return Visited(spawn, build)


@contextmanager
def attached(visited: Visited, engine: str, directory: Path) -> Iterator[Session]:
    check_living_target(visited.pid)
    with ChainWriter(directory, b"", False) as chain, ProcessTarget(visited.pid, engine) as target:
        yield Session(target, chain)


def skipped(session: Session) -> TargetBusyError:
    with pytest.raises(TargetBusyError) as caught:
        session.take()
    return caught.value


@pytest.mark.parametrize("how", VISITS)
def test_visit(process_engine: str, visited: Visited, tmp_path: Path, how: str) -> None:
    """What is written during the visit, by the visitor too, is in the first epoch after it."""
    with attached(visited, process_engine, tmp_path / "c") as session:
        for _ in range(2):
            session.take()
        visitor, poked = visited.arrive(how)
        for _ in range(5):
            assert f"visitor (pid {visitor.pid}) traces" in skipped(session).reason
        if how in ("run", "watch", "one"):
            visited.tell()
            assert visited.answer() == 2
        visited.leave(visitor, how)
        row = session.take()
        if how == "attach-stop":
            assert status_field(visited.pid, "State").startswith("T"), "a stop of others is left alone"
            os.kill(visited.pid, signal.SIGCONT)
        visited.tell()
        assert visited.answer() == (3 if how in ("run", "watch", "one") else 2)
        last = session.take()
    assert visited.image(tmp_path / "c", last.epoch, 1) == (3 if how in ("run", "watch", "one") else 2)
    if process_engine == "sync":
        assert poked <= 2  # a write by ptrace does not wait for an answer to its fault: docs/limits.md
    elif how != "watch":
        assert poked == 2
        assert [visited.image(tmp_path / "c", row.epoch, page) for page in (3, 4)] == [VALUE, VALUE]
    assert len(Chain(tmp_path / "c").verify(b"")) == 4
    assert status_field(visited.pid, "TracerPid") == "0" and visited.process.poll() is None


def test_ring_looks_through_everything_after_a_visit(
    kernel: None, visited: Visited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without that, what a debugger has written is in no epoch."""
    from tests.conftest import usable

    with attached(visited, usable("ring"), tmp_path / "c") as session:
        monkeypatch.setattr(session.target.space, "passed_over", lambda: None)  # type: ignore[attr-defined]
        for _ in range(20):
            session.take()
            base = session.take()
            visitor, poked = visited.arrive("attach")
            assert poked == 2
            skipped(session)
            visited.leave(visitor, "attach")
            row = session.take()
            if not row.scanned:
                break
            # It was, for another reason: it is attached just now, a thread is new, ...
        assert not row.scanned
    assert visited.image(tmp_path / "c", row.epoch, 3) == visited.image(tmp_path / "c", base.epoch, 3)


def test_leak_checker(process_engine: str, visited: Visited, tmp_path: Path) -> None:
    """LeakSanitizer at exit: a clone(2) with the memory of the target traces all its threads."""
    with attached(visited, process_engine, tmp_path / "c") as session:
        session.take()
        visited.tell("fork")
        wait_for(lambda: status_field(visited.pid, "TracerPid") != "0", "it is traced")
        assert "visited (pid" in skipped(session).reason
        visited.tell()
        assert visited.answer() == 2
        row = session.take()
    assert visited.image(tmp_path / "c", row.epoch, 5) == 2


def cores_whole(path: Path) -> bool:
    """The last segment of a core that is cut short lies beyond its end."""
    with path.open("rb") as file:
        last = list(ELFFile(file).iter_segments())[-1]
    return path.stat().st_size >= int(last["p_offset"]) + int(last["p_filesz"])


@pytest.mark.slow  # core_pattern is the host's: another program's crash would come here
def test_core_dump(process_engine: str, visited: Visited, tmp_path: Path) -> None:
    """The kernel writes a core into a pipe that nobody reads yet; a stop would cut it short."""
    if os.geteuid() or not os.access(PATTERN, os.W_OK):
        pytest.skip("core_pattern cannot be set")
    fifo, script = tmp_path / "go", tmp_path / "take"
    os.mkfifo(fifo)
    script.write_text(f"#!/bin/sh\n: > {tmp_path}/began\nread line < {fifo}\ncat > {tmp_path}/core\n")
    script.chmod(0o755)
    with attached(visited, process_engine, tmp_path / "c") as session:
        session.take()
        with alone_on(PATTERN) as pattern:
            pattern.write_text(f"|{script}")
            visited.tell("abort")
            wait_for((tmp_path / "began").exists, "it dumps core")
        for _ in range(4):
            assert "core" in skipped(session).reason
        fifo.write_text("\n")
        wait_for(lambda: session.target.settle(0.1) and session.target.ended(), "it ends")
    assert visited.process.wait(30) == -signal.SIGABRT
    wait_for(lambda: cores_whole(tmp_path / "core"), "its core is whole")


def test_visit_across_exec(process_engine: str, spawn: Spawn, build: Build, tmp_path: Path) -> None:
    """A new program has to be attached to: that waits for the visitor as well."""
    script = f"read line; exec {build('visited')}"
    process = spawn("sh", "-c", script)
    visited = Visited.__new__(Visited)
    visited.spawn, visited.visitor = spawn, build("visitor")
    visited.process, visited.pid, visited.second = process, process.pid, process.pid
    with attached(visited, process_engine, tmp_path / "c") as session:
        session.take()
        visitor, _ = visited.arrive("watch-one")
        skipped(session)
        visited.tell()
        assert process.stdout and process.stdout.readline().startswith(b"ready")
        for _ in range(3):
            assert "traces the process" in skipped(session).reason
        visited.leave(visitor, "watch-one")
        row = session.take()
        assert row.base and row.skipped == 0  # counted by run_session
    assert visited.image(tmp_path / "c", row.epoch, 1) == 1


def test_visit_while_the_base_is_copied(
    process_engine: str, visited: Visited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visits: list[tuple[subprocess.Popen[bytes], int]] = []
    with attached(visited, process_engine, tmp_path / "c") as session:
        harvest = session.target.harvest

        def harvest_and_visit(everything: bool) -> tuple[Runs, Runs]:
            found = harvest(everything)
            if not visits:
                visits.append(visited.arrive("run"))
            return found

        monkeypatch.setattr(session.target, "harvest", harvest_and_visit)
        monkeypatch.setattr("checkpoint.session.PATIENCE", 0.2)
        assert "visitor" in skipped(session).reason
        assert not list((tmp_path / "c").glob("*.core*"))
        visited.leave(visits[0][0], "run")
        assert session.take().base
    assert len(Chain(tmp_path / "c").verify(b"")) == 1


@pytest.mark.parametrize("end", ["wait", "duration"])
def test_end_of_a_session_in_the_midst(visited: Visited, tmp_path: Path, end: str) -> None:
    said: list[str] = []
    rows: list[EpochRow] = []
    with attached(visited, "scan", tmp_path / "c") as session:
        session.take()
        visitor, _ = visited.arrive("run")

        def wait(seconds: float) -> bool:
            return end == "wait" and session.skipped > 4

        schedule = Schedule(0.001, None, None if end == "wait" else 0.3)
        assert not run_session(session, schedule, wait, rows.append, said.append)
        visited.leave(visitor, "run")
    assert not rows and len(said) == 1 and said[0].startswith("epochs are skipped while visitor")


def test_session_goes_on_after_a_visit(
    process_engine: str, visited: Visited, tmp_path: Path, uffdtrack: Run
) -> None:
    """As a user sees it: a word when it begins, one when it goes on, the number in a row."""
    session = visited.spawn(
        sys.executable, "-m", "checkpoint", "checkpoint", visited.pid, "-o", tmp_path / "c", "--every", "5ms",
        "--engine", process_engine, "--json", stderr=subprocess.PIPE,
    )  # fmt: skip
    assert session.stdout and session.stderr
    said: list[str] = []
    errors = session.stderr
    reader = threading.Thread(target=lambda: said.extend(line.decode() for line in errors))
    reader.start()
    rows = [json.loads(session.stdout.readline()) for _ in range(3)]
    visitor, _ = visited.arrive("run")
    wait_for(lambda: len(said) == 1, "the visit is said")
    assert said[0] == f"uffdtrack: epochs are skipped while visitor (pid {visitor.pid}) traces the process\n"
    visited.leave(visitor, "run")
    while not rows[-1]["skipped"]:
        rows.append(json.loads(session.stdout.readline()))
    assert rows[-1]["skip_reason"] == f"visitor (pid {visitor.pid}) traces the process"
    rows.append(json.loads(session.stdout.readline()))
    assert rows[-1]["skipped"] == 0 and rows[-1]["skip_reason"] == ""
    session.send_signal(signal.SIGINT)
    for _ in session.stdout:
        pass
    assert session.wait(60) == 0
    reader.join()
    assert sum("epochs go on" in line for line in said) == 1
    uffdtrack("verify", tmp_path / "c")
    visited.tell()
    assert visited.answer() == 2
