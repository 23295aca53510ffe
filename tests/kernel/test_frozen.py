"""Targets in a frozen cgroup, of v1 or of v2: refused, or skipped until the thaw, and never left broken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from checkpoint.chain import Chain
from tests.conftest import missing, usable
from tests.helpers import Build, Run, Spawn, ask, goes_on, wait_for
from tests.kernel.own_calls import Target
from uffdtrack import descriptors, frozen_cgroup, status_field
from uffdtrack.errors import TargetGoneError

HIERARCHIES = {
    "v1": (("/sys/fs/cgroup/freezer",), "freezer.state", "FROZEN", "THAWED"),
    "v2": (("/sys/fs/cgroup", "/sys/fs/cgroup/unified"), "cgroup.freeze", "1", "0"),
}
"""The freezers: where they are mounted, and how a cgroup is frozen and thawed (cgroups(7))."""


class Cgroup:
    """A cgroup of its own for the test."""

    def __init__(self, version: str) -> None:
        self.version = version
        roots, self._file, self._frozen, self._thawed = HIERARCHIES[version]
        if version == "v2":
            roots = tuple(r for r in roots if (Path(r) / "cgroup.controllers").exists())
        if not roots or not Path(roots[0]).exists():
            pytest.skip(f"no cgroup {version} here")
        try:
            self.path = Path(tempfile.mkdtemp(prefix="uffdtrack-test-", dir=roots[0]))
        except OSError as error:
            missing(f"a cgroup of one's own: {error}")

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def freeze(self, pid: int) -> None:
        (self.path / self._file).write_text(self._frozen)
        wait_for(lambda: frozen_cgroup(pid) == f"/{self.path.name}", "it is frozen")
        if self.version == "v2":
            events = self.path / "cgroup.events"
            wait_for(lambda: "frozen 1" in events.read_text(), "all its threads are")

    def thaw(self) -> None:
        (self.path / self._file).write_text(self._thawed)


@pytest.fixture(params=list(HIERARCHIES))
def cgroup(request: pytest.FixtureRequest, root: None) -> Iterator[Cgroup]:
    group = Cgroup(request.param)
    yield group
    group.thaw()
    wait_for(lambda: not (group.path / "cgroup.procs").read_text(), "all its processes have ended")
    group.path.rmdir()


@pytest.fixture
def target(cgroup: Cgroup, spawn: Spawn, build: Build) -> Iterator[subprocess.Popen[bytes]]:
    process = spawn(build("steady"))
    assert process.stdout and process.stdout.readline() == b"ready\n"
    cgroup.add(process.pid)
    yield process
    cgroup.thaw()
    process.kill()
    process.wait()


def start(argv: list[Any], **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "checkpoint", *[str(a) for a in argv]]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # who has ended meanwhile
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def is_stopped(pid: int) -> bool:
    with suppress(TargetGoneError):
        return status_field(pid, "State").startswith("T")
    return False


def lives(process: subprocess.Popen[bytes], before: dict[str, int]) -> None:
    """All its threads go on, and nobody traces it."""
    goes_on(process, before)
    assert status_field(process.pid, "TracerPid") == "0"


def test_frozen_process_is_refused(
    cgroup: Cgroup, target: subprocess.Popen[bytes], tmp_path: Path, uffdtrack: Run
) -> None:
    """Before anything of it is touched; after the thaw it is one like any other."""
    argv = ("checkpoint", target.pid, "-o", tmp_path / "c", "--every", "5ms", "--count", "3")
    before = ask(target)
    cgroup.freeze(target.pid)
    assert f"frozen, with its cgroup /{cgroup.path.name}" in uffdtrack(*argv, code=5).stderr
    assert status_field(target.pid, "TracerPid") == "0"
    cgroup.thaw()
    uffdtrack(*argv)
    cgroup.freeze(target.pid)
    assert "frozen" in uffdtrack("rollback", target.pid, tmp_path / "c", code=5).stderr
    cgroup.thaw()
    lives(target, before)


@pytest.mark.parametrize(
    "engine",
    ["scan", pytest.param("ring", marks=pytest.mark.slow), pytest.param("sync", marks=pytest.mark.slow)],
)
def test_freeze_in_a_session(
    cgroup: Cgroup, target: subprocess.Popen[bytes], tmp_path: Path, engine: str
) -> None:
    """Threads that v1 has frozen do not stop: epochs are skipped. Those of v2 do. The session goes on."""
    before = ask(target)
    argv = ["checkpoint", target.pid, "-o", tmp_path / "c", "--every", "20ms", "--json"]
    session = start([*argv, "--engine", usable(engine)])
    assert session.stdout and session.stderr
    rows = [json.loads(session.stdout.readline()) for _ in range(3)]
    cgroup.freeze(target.pid)
    if cgroup.version == "v1":
        assert f"the cgroup /{cgroup.path.name} of the process is frozen" in session.stderr.readline()
    cgroup.thaw()
    after = time.time_ns()
    while rows[-1]["time_ns"] < after:
        rows.append(json.loads(session.stdout.readline()))
    assert all(row["pause_us"] < 5e6 for row in rows)
    session.send_signal(signal.SIGINT)
    _, err = session.communicate(timeout=30)
    assert session.returncode == 0 and "runs on, untracked" in err
    assert len(Chain(tmp_path / "c").verify(b"")) >= len(rows)
    lives(target, before)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_session_ends_while_it_is_frozen(
    cgroup: Cgroup, target: subprocess.Popen[bytes], tmp_path: Path, number: int
) -> None:
    before = ask(target)
    session = start(["checkpoint", target.pid, "-o", tmp_path / "c", "--every", "20ms", "--json"])
    assert session.stdout and session.stdout.readline()
    cgroup.freeze(target.pid)
    session.send_signal(number)
    _, err = session.communicate(timeout=30)
    assert session.returncode == 0, err
    assert status_field(target.pid, "TracerPid") == "0"
    cgroup.thaw()
    lives(target, before)


def test_freeze_inside_of_an_injected_call(
    cgroup: Cgroup, target: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """The thread has registers of ours, and cannot stop before the thaw: the watchdog waits for that."""
    before = ask(target)
    argv = ["checkpoint", target.pid, "-o", tmp_path / "c", "--max-stop", "500ms"]
    session = start(argv, UFFDTRACK_SABOTAGE="stop:inject")
    # Who attaches has stopped itself: the thread is on its way into the call.
    wait_for(lambda: any(is_stopped(p) for p in descendants(session.pid)), "the sabotage")
    cgroup.freeze(target.pid)
    _, err = session.communicate(timeout=60)
    assert session.returncode == 5 and "the watchdog has ended this" in err, err
    cgroup.thaw()
    lives(target, before)
    # The one thread comes back to its own registers when it is thawed; the others answer before that.
    wait_for(
        lambda: "anon_inode:[userfaultfd]" not in [name for _, name in descriptors(target.pid)],
        "the userfaultfd is gone",
    )


@pytest.mark.parametrize("cgroup", ["v2"], indirect=True)
def test_freeze_between_an_instruction_and_its_signal(
    cgroup: Cgroup, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run
) -> None:
    """No epoch has the one without the other: the thread comes to its signal's stop when it is thawed.

    With v1 nobody stops while the cgroup is frozen: test_freeze_in_a_session.
    """
    program = Target(spawn, build, "trap")
    cgroup.add(program.pid)
    said = tmp_path / "said"
    command = [sys.executable, "-m", "checkpoint", "checkpoint", str(program.pid), "-o", tmp_path / "c"]
    with said.open("w") as file:
        session = spawn(*command, "--every", "50ms", stdout=file, stderr=file)
    wait_for(lambda: len(list((tmp_path / "c").glob("epoch-*"))) > 1, "there are epochs")
    for number in (1, 2, 3):
        program.works_on()
        deadline = time.monotonic() + 30
        cgroup.freeze(program.pid)
        while not int(status_field(program.pid, "SigPnd"), 16):
            assert time.monotonic() < deadline
            cgroup.thaw()
            cgroup.freeze(program.pid)
        wait_for(
            lambda n=number: said.read_text().count("of the process is frozen") == n, "epochs are skipped"
        )
        cgroup.thaw()
        wait_for(lambda n=number: said.read_text().count("epochs go on") == n, "they go on")
    session.send_signal(signal.SIGINT)
    assert session.wait(30) == 0, said.read_text()
    for _ in range(2):
        program.works_on()
        uffdtrack("rollback", program.pid, tmp_path / "c")
    program.works_on()
    program.process.kill()
