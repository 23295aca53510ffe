"""Our own edges: output that cannot be written, keys that do not end, chains with something missing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from checkpoint.chain import Chain
from checkpoint.cli.main import cli
from checkpoint.errors import ImageError
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
