"""Programs that others wrote, under their own load: they notice nothing, and are put back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import Run
from tests.real import programs
from tests.real.programs import Program
from uffdtrack import status_field

Tool = Callable[[str], str]
EPOCHS = 15
CAP_SYS_PTRACE = 19

pytestmark = pytest.mark.slow


@pytest.fixture(params=programs.ALL, ids=lambda kind: kind.__name__.lower())
def program(request: pytest.FixtureRequest, root: None, tool: Tool, tmp_path: Path) -> Iterator[Program]:
    directory = tmp_path / "program"
    directory.mkdir()
    started = request.param(directory, tool)
    yield started
    started.close()


class Session:
    """Its output goes to files: a row of a tree is long, and nobody reads a pipe while the load is made."""

    def __init__(self, program: Program, directory: Path, engine: str, *options: str) -> None:
        tree = ["--children"] if program.tree else []
        self._out, self._err = directory.with_suffix(".out"), directory.with_suffix(".err")
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "checkpoint", "checkpoint", str(program.pid), "-o", str(directory),
                 "--engine", engine, "--json", *tree, *options],
                stdout=out, stderr=err,
            )  # fmt: skip

    def end(self) -> list[str]:
        """Its rows."""
        assert self.process.wait() == 0, self._err.read_text()
        return self._out.read_text().splitlines()


def may_answer_faults(pid: int) -> bool:
    """Whether engine sync can be had: of a server that has put down root's privileges it cannot."""
    allowed = Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "1"
    return allowed or bool(int(status_field(pid, "CapEff"), 16) >> CAP_SYS_PTRACE & 1)


def cores(program: Program, chain: Path) -> list[Path]:
    """A chain, or those of a tree."""
    return sorted({path.parent for path in chain.rglob("epoch-*.core")}) if program.tree else [chain]


def test_load_and_rollback(
    program: Program, process_engine: str, tmp_path: Path, uffdtrack: Run, tool: Tool
) -> None:
    loaded, quiet = tmp_path / "loaded", tmp_path / "quiet"
    if process_engine == "sync" and not may_answer_faults(program.pid):
        done = uffdtrack("checkpoint", program.pid, "-o", loaded, "--engine", "sync", code=4)
        assert "vm.unprivileged_userfaultfd" in done.stderr
        program.bump()
        return
    taking = Session(program, loaded, process_engine, "--every", "100ms", "--count", str(EPOCHS))
    bumps = 0
    while taking.process.poll() is None:
        program.bump()
        bumps += 1
    assert len(taking.end()) == EPOCHS
    assert bumps > 3
    uffdtrack("verify", loaded)

    before = program.value()
    assert len(Session(program, quiet, process_engine, "--every", "50ms", "--count", "2").end()) == 2
    for _ in range(3):
        program.bump()
    changed = program.value()
    assert not program.stateful or changed > before
    back = subprocess.run(
        [sys.executable, "-m", "checkpoint", "rollback", str(program.pid), str(quiet), "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    # Engine sync cannot follow what has put down its privileges, as renderers of a browser: refused, by name.
    left_out = program.tree and process_engine == "sync" and "vm.unprivileged_userfaultfd" in back.stderr
    ended = program.ends_threads and "ended since" in back.stderr
    assert back.returncode == 0 or ended or left_out, back.stderr
    now = program.value()
    if program.stateful:
        assert now == (before if back.returncode == 0 else changed) + program.asking
    for _ in range(3):
        program.bump()
    read_by_gdb(program, loaded, tmp_path, uffdtrack, tool)


def read_by_gdb(program: Program, chain: Path, tmp_path: Path, uffdtrack: Run, tool: Tool) -> None:
    for i, directory in enumerate(cores(program, chain)[:3]):
        core = tmp_path / f"core.{i}"
        uffdtrack("export", directory, "-o", core)
        said = subprocess.run(
            [tool("gdb"), "-nx", "-batch", "-ex", "thread apply all bt 3", "-c", core],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "#0 " in said
        core.unlink()


def test_ffmpeg_encodes_the_same(process_engine: str, tmp_path: Path, tool: Tool, uffdtrack: Run) -> None:
    """A film's checksum, with and without checkpoints."""
    command = [
        tool("ffmpeg"), "-hide_banner", "-loglevel", "error", "-f", "lavfi", "-i",
        "testsrc2=duration=30:size=640x360:rate=25", "-c:v", "mpeg4", "-threads", "2", "-f", "md5", "-",
    ]  # fmt: skip
    expected = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    done = uffdtrack(
        "run", "-o", tmp_path / "c", "--every", "20ms", "--engine", process_engine, "--", *command
    )
    assert expected.startswith("MD5=") and expected.strip() in done.stdout.splitlines()
    uffdtrack("verify", tmp_path / "c")
