"""Our own edges: output that cannot be written, keys that do not end, chains with something missing."""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from checkpoint.chain import Chain
from checkpoint.cli.main import cli
from checkpoint.epoch import EpochRow, Times
from checkpoint.errors import ImageError
from checkpoint.pipeline import Pipeline
from checkpoint.report import Sample, Summary, moments
from checkpoint.schedule import Schedule, run_session
from checkpoint.targets.children import children
from tests.helpers import Build, Run, Spawn
from uffdtrack import how_to_be_allowed, status_field
from uffdtrack.errors import InvalidInputError

SHELL = f"{sys.executable} -m checkpoint"

OUTPUTS = {
    "full": (">/dev/full", 7),
    "closed": (">&-", 0),
    "its reader has gone": ("| true", 141),
    "stderr full": ("2>/dev/full >/dev/null", 0),
    "stderr closed": ("2>&- >/dev/null", 0),
    "all closed": ("<&- >&- 2>&-", 0),
}
"""Where our output can go, and the exit code then."""


@pytest.fixture(scope="module")
def chain(kernel: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("edges") / "c"
    with subprocess.Popen(["sleep", "600"]) as process:
        subprocess.run(
            [sys.executable, "-m", "checkpoint", "checkpoint", str(process.pid), "-o", str(directory),
             "--count", "4", "--every", "1ms"],
            check=True,
        )  # fmt: skip
        process.kill()
    return directory


def shell(command: str) -> tuple[int, str]:
    """The exit code of the first of a pipe, and what all of it said on stderr."""
    line = f"{command}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("where", "form"), [*((where, "--json") for where in OUTPUTS), ("full", ""), ("its reader has gone", "")]
)
def test_output_of_a_session(spawn: Spawn, kernel: None, tmp_path: Path, where: str, form: str) -> None:
    """It ends in order, and says that the process runs on; its epochs are whole."""
    process = spawn("sleep", "600")
    to, code = OUTPUTS[where]
    # Of a pipe the reader has gone when the last row comes.
    session = f"{SHELL} checkpoint {process.pid} -o {tmp_path}/c --every 1ms --count 3 {form}"
    found, said = shell(f"{session} {to}")
    assert found == code, said
    if "2>" not in to:
        assert f"process {process.pid} runs on, untracked" in said
        assert ("No space left" in said) == (code == 7)
    assert shell(f"{SHELL} verify {tmp_path}/c")[0] == 0
    assert process.poll() is None


@pytest.mark.parametrize("verb", ["ls", "verify"])
def test_output_of_other_verbs(chain: Path, verb: str) -> None:
    for to, code in (OUTPUTS[key] for key in ("full", "its reader has gone")):
        assert shell(f"{SHELL} {verb} {chain} {to}")[0] == code


KEYS = {
    "/dev/zero": "more than 64",
    "/dev/null": "no bytes",
    "a FIFO that brings nothing": "nothing came",
    "a directory": "directory",
    "65 bytes": "more than 64",
}


@pytest.mark.parametrize("what", KEYS)
def test_keys_that_are_none(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr("checkpoint.cli.common.KEY_SECONDS", 0.2)
    path = Path(what) if what.startswith("/") else tmp_path / "key"
    if "FIFO" in what:
        os.mkfifo(path)
    elif what == "a directory":
        path.mkdir()
    elif what == "65 bytes":
        path.write_bytes(b"k" * 65)
    done = CliRunner().invoke(cli, ["verify", str(chain), "--key-file", str(path)])
    assert done.exit_code == 2 and KEYS[what] in done.output


def test_key_from_a_pipe(spawn: Spawn, kernel: None, tmp_path: Path) -> None:
    process = spawn("sleep", "600")
    session = f"{SHELL} checkpoint {process.pid} -o {tmp_path}/c --every 1ms --count 2"
    assert shell(f"{session} --key-file <(sleep 0.2; echo secret)")[0] == 0
    assert shell(f"{SHELL} verify {tmp_path}/c --key-file <(echo secret)")[0] == 0


HEADS = {"missing": None, "junk": b"junk\n", "empty": b"", "negative": b"-1\n", "long": b"9" * 40}


@pytest.mark.parametrize("what", HEADS)
def test_chain_without_its_head(chain: Path, tmp_path: Path, uffdtrack: Run, what: str) -> None:
    """Without it a chain that was cut short looks whole."""
    copy = tmp_path / "c"
    shutil.copytree(chain, copy)
    content = HEADS[what]
    (copy / "head").unlink()
    if content is not None:
        (copy / "head").write_bytes(content)
    with pytest.raises(ImageError, match="head"):
        Chain(copy).verify(b"")
    if what in ("missing", "junk"):
        assert "head" in uffdtrack("ls", copy, code=6).stderr


def test_base_alone_needs_no_head(chain: Path, tmp_path: Path) -> None:
    """As a session leaves it that was killed between the two."""
    (tmp_path / "c").mkdir()
    shutil.copy(chain / "epoch-00000000.core", tmp_path / "c")
    assert len(Chain(tmp_path / "c").verify(b"")) == 1


@pytest.mark.parametrize("epoch", [1, 3])
def test_ls_of_a_chain_with_a_hole(chain: Path, tmp_path: Path, uffdtrack: Run, epoch: int) -> None:
    copy = tmp_path / "c"
    shutil.copytree(chain, copy)
    (copy / f"epoch-0000000{epoch}.core").unlink()
    done = uffdtrack("ls", copy, "--json", code=6)
    assert [json.loads(line)["epoch"] for line in done.stdout.splitlines()] == sorted({0, 1, 2, 3} - {epoch})
    assert f"epoch-0000000{epoch}.core is missing" in done.stderr


@pytest.mark.parametrize(("size", "said"), [(0, "it is empty"), (10, "it is cut off"), (70, "cut off")])
def test_file_that_is_cut_short(chain: Path, tmp_path: Path, size: int, said: str) -> None:
    copy = tmp_path / "c"
    shutil.copytree(chain, copy)
    os.truncate(copy / "epoch-00000002.core", size)
    with pytest.raises(ImageError, match=said) as caught:
        Chain(copy).verify(b"")
    assert "unpack" not in str(caught.value)


def test_time_without_a_unit(tmp_path: Path) -> None:
    for option in ("--every", "--duration"):
        done = CliRunner().invoke(cli, ["checkpoint", "1", "-o", str(tmp_path / "c"), option, "100"])
        assert done.exit_code == 2 and "100ms or 100s" in done.output


class Slow:
    """A session each of whose epochs takes a time, by a clock of its own."""

    skipped = 0
    skip_reason = ""

    def __init__(self, clock: list[float], takes: float) -> None:
        self.clock, self.takes, self.late = clock, takes, 0
        self.pipeline = Pipeline()

    def put(self, announce: Any) -> None:
        self.clock[0] += self.takes
        times = Times(1000.0, 0.0, 0.0, 0.0, 0.0)
        row = EpochRow(
            epoch=0,
            base=False,
            pid=1,
            engine="scan",
            pages=0,
            bytes=0,
            times=times,
            threads=1,
            late=self.late,
            waited_us=self.takes * 1e6,
        )
        self.pipeline.tell(SimpleNamespace(row=row))


@pytest.mark.parametrize(("takes", "late"), [(0.05, 0), (0.35, 2), (2.6, 25)])
def test_late_epochs_are_counted(monkeypatch: pytest.MonkeyPatch, takes: float, late: int) -> None:
    clock = [1000.0]
    monkeypatch.setattr("checkpoint.schedule.time.monotonic", lambda: clock[0])

    def wait(seconds: float) -> bool:
        clock[0] += seconds
        return False

    rows: list[EpochRow] = []
    session: Any = Slow(clock, takes)
    run_session(session, Schedule(0.1, 4, None), wait, rows.append, print)
    # The second is due 0.1 s after the base is safe, each other one so long after the one before was begun.
    assert [row.late for row in rows] == [0, 0, late, late]
    summary = Summary(0.1)
    for row in rows:
        summary.add(row)
    writing = "350.0 ms" if late == 2 else "2.60 s"
    said = f"; {2 * late} of {2 * late + 3} intervals missed: writing takes {writing}"
    assert summary.missed == (said if late else "")


def test_times_are_as_short_as_tells_them_apart() -> None:
    now = datetime.datetime.now().replace(hour=12, minute=1, second=2, microsecond=0)

    def of(*milliseconds: float) -> list[str]:
        times = [now + datetime.timedelta(milliseconds=after) for after in milliseconds]
        return moments([replace(row_that(1), time_ns=round(one.timestamp() * 1e9)) for one in times])

    assert of(0, 1000) == ["12:01:02", "12:01:03"]
    assert of(0, 20) == ["12:01:02.000", "12:01:02.020"]
    assert of(0, 0.02) == ["12:01:02.000000", "12:01:02.000020"]
    assert of(0, -86_400_000)[0] == f"{now.date()}T12:01:02"
    assert of() == []


def row_that(pause: float, late: int = 0, waited: float = 0.0) -> EpochRow:
    times = Times(pause, 0, 0, 0, 0)
    return EpochRow(epoch=0, base=False, pid=1, engine="scan", pages=1, bytes=10, times=times, threads=1,
                    late=late, waited_us=waited)  # fmt: skip


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (row_that(60_000), "a stop takes 60.0 ms"),
        (row_that(3800, waited=400_000), "writing takes 400.0 ms"),
        (row_that(3800, waited=900), "a stop takes 3.8 ms, so the machine was busy, or the interval is"),
    ],
)
def test_summary_names_no_false_cause(before: EpochRow, why: str) -> None:
    """A stop of 3.8 ms misses no interval of 50 ms; of several causes the one counts that has missed most."""
    summary = Summary(0.05)
    for row in (before, row_that(3800, late=7), row_that(3800, late=1), before, row_that(3800, late=7)):
        summary.add(row)
    assert summary.missed.startswith(f"; 15 of 19 intervals missed: {why}")


def test_a_summary_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20,000 epochs it says the same as of all numbers, about, with few of them."""
    monkeypatch.setattr(Sample, "most", 100)
    summary, pauses = Summary(1e-4), random.Random(3)
    tracemalloc.start()
    for n in range(20_000):
        times = Times(pauses.uniform(100, 300), 0, 0, 0, 0)
        summary.add(EpochRow(epoch=n, base=not n, pid=1, engine="scan", pages=1, bytes=10, times=times,
                             threads=1, late=n % 2, overshoot=n % 7))  # fmt: skip
        if n == 1000:
            before, _ = tracemalloc.get_traced_memory()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 4096
    assert (summary.bytes, summary.overshoot, summary.span) == (200_000, 6, "epochs 0 to 19999")
    said = re.fullmatch(r"pause median (\d+) us, longest 300 us; 10000 of 29999 intervals missed: a stop .*",
                        summary.pauses)  # fmt: skip
    assert said and 170 < int(said[1]) < 230


def test_session_says_what_it_misses(spawn: Spawn, kernel: None, tmp_path: Path, uffdtrack: Run) -> None:
    process = spawn("sleep", "600")
    done = uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", "--every", "1us", "--count", "5")
    assert "intervals missed" in done.stdout


def test_bench_leaves_earlier_results_alone(tmp_path: Path) -> None:
    """What is wrong with the arguments is found first."""
    series = tmp_path / "ab.jsonl"
    series.write_text("{}\n")
    done = CliRunner().invoke(cli, ["bench", "ab", "-o", str(tmp_path), "--engines", "nope"])
    assert isinstance(done.exception, InvalidInputError) and series.read_text() == "{}\n"
    assert list(tmp_path.iterdir()) == [series]


RIGHTS: dict[str, tuple[int, dict[str, str], str]] = {
    "of root": (1000, {"status": "Uid:\t0\t0\t0\t0"}, "The process is root's: run as root"),
    "of another user": (1000, {"status": "Uid:\t7\t7\t7\t7"}, "or as the user of the process"),
    "of another user, Yama": (
        1000, {"status": "Uid:\t7\t7\t7\t7", "ptrace_scope": "1"}, "process; kernel.yama.ptrace_scope is 1",
    ),
    "of a user, Yama": (
        1000, {"status": "Uid:\t1000\t1000\t1000\t1000", "ptrace_scope": "1"}, "root; kernel.yama.ptrace",
    ),
    "of a user": (1000, {"status": "Uid:\t1000\t1000\t1000\t1000"}, "has more rights than its user"),
    "Yama forbids all": (0, {"ptrace_scope": "3"}, "ptrace_scope is 3"),
    "root of a container": (0, {"status": "CapEff:\t0000000000000000"}, "--cap-add SYS_PTRACE"),
    "another security module": (0, {"status": "CapEff:\t000001ffffffffff"}, "security module"),
}  # fmt: skip


@pytest.mark.parametrize("who", RIGHTS)
def test_root_is_not_told_to_be_root(monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    uid, files, said = RIGHTS[who]
    monkeypatch.setattr("uffdtrack.rights.os.geteuid", lambda: uid)
    monkeypatch.setattr("uffdtrack.procfs.glance", lambda path: files.get(Path(path).name, ""))
    hint = how_to_be_allowed(os.getpid())
    assert said in hint and ("un as root" in hint) == bool(uid)
    assert ("yama" in hint) == ("ptrace_scope" in files)


def test_process_of_another_pid_namespace(
    root: None, process_engine: str, build: Build, spawn: Spawn, tmp_path: Path, uffdtrack: Run
) -> None:
    """Its numbers are ours in /proc, and others for itself."""
    outer = spawn("unshare", "-pf", "--mount-proc", build("threads"), 3)
    assert outer.stdin and outer.stdout and outer.stdout.readline() == b"ready\n"
    pid = children(outer.pid)[0]
    assert status_field(pid, "NSpid").split() == [str(pid), "1"]
    try:
        uffdtrack("checkpoint", pid, "-o", tmp_path / "c", "--every", "5ms", "--count", "3",
                  "--engine", process_engine)  # fmt: skip
        for count in (0, 1):
            outer.stdin.write(b"\n")
            outer.stdin.flush()
            assert int(outer.stdout.readline()) == count
        uffdtrack("rollback", pid, f"{tmp_path}/c@1")
        outer.stdin.write(b"\n")
        outer.stdin.flush()
        assert int(outer.stdout.readline()) == 0
    finally:
        os.kill(pid, signal.SIGKILL)
