"""Each verb as a user calls it: text for people, JSON for programs, cores for debuggers."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from elftools.elf.elffile import ELFFile

from checkpoint.cli.common import Time
from checkpoint.cli.main import VERBS, cli
from tests.contract.conftest import need_kvm
from tests.helpers import Build, Run, Spawn

EPOCH_KEYS = {
    "schema", "epoch", "pid", "engine", "pages", "bytes", "pause_us", "stop_us", "harvest_us", "copy_us",
    "rearm_us", "resume_us", "threads", "time_ns",
}  # fmt: skip


@pytest.fixture(scope="module")
def chain(kernel: None, build: Build, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, Path]:
    """Pid, program and chain of a process that has ended since."""
    directory = tmp_path_factory.mktemp("cli") / "c"
    program = build("rollee")
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stdout.readline()
        subprocess.run(
            [sys.executable, "-m", "checkpoint", "checkpoint", str(process.pid), "-o", str(directory),
             "--count", "6", "--every", "5ms"],
            check=True,
        )  # fmt: skip
        process.kill()
    return process.pid, program, directory


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_ls(chain: tuple[int, Path, Path], uffdtrack: Run) -> None:
    pid, _, directory = chain
    found = rows(uffdtrack("ls", directory, "--json"))
    assert [r["epoch"] for r in found] == list(range(6))
    for row in found:
        assert row.keys() >= EPOCH_KEYS
        assert row["schema"] == "uffdtrack/epoch/1" and row["pid"] == pid and row["engine"] == "scan"
        assert row["file_bytes"] == (directory / str(row["file"])).stat().st_size > int(str(row["bytes"]))
    text = uffdtrack("ls", directory).stdout.splitlines()
    assert len(text) == 7 and "pause" in text[0]
    taken = datetime.datetime.fromtimestamp(int(str(found[3]["time_ns"])) / 1e9)
    assert text[0].split()[:5] == ["epoch", "taken", "pages", "bytes", "file"]
    assert taken.time().isoformat("seconds") in text[4].split()[1]


def test_session_rows(kernel: None, tmp_path: Path, uffdtrack: Run) -> None:
    # Its output is not ours: who reads ours would wait for its end.
    command = ("sh", "-c", "exec sleep 60 > /dev/null 2>&1")
    done = uffdtrack("run", "-o", tmp_path / "c", "--json", "--count", "4", "--every", "2ms", "--", *command)
    found = rows(done)
    assert len(found) == 4 and all(r.keys() >= EPOCH_KEYS for r in found)
    for row in found:
        parts = sum(float(str(row[k])) for k in ("stop_us", "harvest_us", "copy_us", "rearm_us", "resume_us"))
        assert 0 < parts == pytest.approx(float(str(row["pause_us"])), abs=1)
    first, *later = found
    assert 0 < float(str(first["longest_us"])) <= float(str(first["pause_us"])), "a base has several stops"
    assert not any("longest_us" in row for row in later)
    pid = int(str(found[0]["pid"]))
    assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "the command runs on"
    subprocess.run(["kill", str(pid)], check=True)


def test_show(chain: tuple[int, Path, Path], uffdtrack: Run) -> None:
    _, _, directory = chain
    shown = rows(uffdtrack("show", f"{directory}@3", "--json"))[0]
    assert shown["schema"] == "uffdtrack/show/1" and shown["epoch"] == 3
    regions, threads = shown["region_list"], shown["thread_list"]
    assert isinstance(regions, list) and isinstance(threads, list)
    assert len(threads) == shown["threads"] == 3
    assert sum(r["pages"] for r in regions) == shown["pages"]
    text = uffdtrack("show", f"{directory}@3").stdout
    assert "[heap]" in text and str(shown["digest"]) in text
    last = rows(uffdtrack("show", directory, "--json"))[0]
    assert last["epoch"] == 5


def test_diff(chain: tuple[int, Path, Path], uffdtrack: Run) -> None:
    _, _, directory = chain
    assert rows(uffdtrack("diff", f"{directory}@2", f"{directory}@2", "--json")) == []
    found = rows(uffdtrack("diff", f"{directory}@0", f"{directory}@5", "--json"))
    assert found and all(r["schema"] == "uffdtrack/diff/1" for r in found)
    assert all(r["pages"] == len(r["page_list"]) for r in found)  # type: ignore[arg-type]
    assert "pages differ" in uffdtrack("diff", f"{directory}@0", f"{directory}@5").stdout


def test_compact(chain: tuple[int, Path, Path], tmp_path: Path, uffdtrack: Run) -> None:
    _, _, directory = chain
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    uffdtrack("export", f"{copy}@4", "-o", tmp_path / "before.core")
    done = rows(uffdtrack("compact", copy, "--before", 3, "--json"))[0]
    assert done["removed"] == [0, 1, 2]
    uffdtrack("verify", copy)
    uffdtrack("export", f"{copy}@4", "-o", tmp_path / "after.core")
    assert (tmp_path / "before.core").read_bytes() == (tmp_path / "after.core").read_bytes()
    assert [r["epoch"] for r in rows(uffdtrack("ls", copy, "--json"))] == [3, 4, 5]
    # What a compaction that was killed leaves is no part of the chain.
    for old in ("epoch-00000000.core", "epoch-00000002.core"):
        shutil.copy(directory / old, copy)
    uffdtrack("verify", copy)
    assert [r["epoch"] for r in rows(uffdtrack("ls", copy, "--json"))] == [3, 4, 5]
    uffdtrack("export", f"{copy}@2", "-o", tmp_path / "old.core", code=2)


def test_key_file(kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    process = spawn("sleep", "60")
    key = tmp_path / "key"
    key.write_text("a secret\n")
    uffdtrack("checkpoint", process.pid, "-o", tmp_path / "c", "--count", "2", "--every", "1ms",
              "--key-file", key)  # fmt: skip
    uffdtrack("verify", tmp_path / "c", "--key-file", key)
    assert "--key-file" in uffdtrack("verify", tmp_path / "c", code=6).stderr
    uffdtrack("rollback", process.pid, tmp_path / "c", code=6)
    uffdtrack("rollback", process.pid, tmp_path / "c", "--key-file", key)
    key.write_text("")
    uffdtrack("verify", tmp_path / "c", "--key-file", key, code=2)


def test_epoch_file_is_a_core(chain: tuple[int, Path, Path], tool: Callable[[str], str]) -> None:
    _, _, directory = chain
    path = directory / "epoch-00000002.core"
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        assert elf.header.e_type == "ET_CORE" and elf.header.e_machine == "EM_X86_64"
        notes = [n for s in elf.iter_segments("PT_NOTE") for n in s.iter_notes()]
        kinds = [n["n_type"] for n in notes]
        assert kinds.count("NT_PRSTATUS") == 3 and "NT_FILE" in kinds and "NT_AUXV" in kinds
    done = subprocess.run([tool("readelf"), "-a", "-W", path], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert "NT_PRSTATUS" in done.stdout and "uffdtrack" in done.stdout


def test_gdb_reads_an_exported_core(
    chain: tuple[int, Path, Path], tmp_path: Path, tool: Callable[[str], str], uffdtrack: Run
) -> None:
    """Backtraces of all threads and the value of a variable."""
    pid, program, directory = chain
    core = tmp_path / "core"
    uffdtrack("export", f"{directory}@4", "-o", core)
    assert core.stat().st_mode & 0o777 == 0o600
    uffdtrack("export", f"{directory}@4", "-o", core, code=2)
    done = subprocess.run(
        [tool("gdb"), "-nx", "-q", "-batch", "-ex", "thread apply all bt", "-ex", "p in_data",
         "-ex", "p tables[3][64]", "-ex", "p beats > 0", program, core],
        capture_output=True, text=True,
    )  # fmt: skip
    assert len(re.findall(r"^Thread \d+ \(", done.stdout, re.MULTILINE)) == 3
    assert " main () at " in done.stdout and " beat (arg=" in done.stdout and " stay (arg=" in done.stdout
    assert "$1 = 1\n" in done.stdout and "$2 = 1\n" in done.stdout and "$3 = 1\n" in done.stdout
    assert f"LWP {pid}" in done.stdout


def test_export_replaces_regular_files_alone(
    chain: tuple[int, Path, Path], tmp_path: Path, uffdtrack: Run
) -> None:
    _, _, directory = chain
    fifo, link, file = (tmp_path / name for name in ("fifo", "link", "file"))
    os.mkfifo(fifo)
    file.write_text("old")
    link.symlink_to(file)
    for path in (fifo, link):
        done = uffdtrack("export", directory, "-o", path, "--force", code=2)
        assert "not a regular file" in done.stderr
    assert fifo.is_fifo() and link.is_symlink() and file.read_text() == "old"
    uffdtrack("export", directory, "-o", file, "--force")
    assert file.read_bytes().startswith(b"\x7fELF")


def test_names_that_are_not_utf_8(chain: tuple[int, Path, Path], tmp_path: Path, uffdtrack: Run) -> None:
    _, _, directory = chain
    name = os.fsdecode(os.fsencode(tmp_path) + b"/c\xff")
    shutil.copytree(directory, name)
    strict = {"env": {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, "errors": "surrogateescape"}
    assert name in uffdtrack("verify", name, **strict).stdout
    assert name in uffdtrack("show", name, **strict).stdout
    Path(name, "epoch-00000001.core").unlink()
    assert name in uffdtrack("verify", name, code=6, **strict).stderr


READING = [
    ("ls",), ("verify",), ("show",), ("export", "-o", "{out}"), ("diff", "{chain}"),
]  # fmt: skip


@pytest.mark.parametrize("verb", READING, ids=lambda verb: verb[0])
@pytest.mark.parametrize("closed", ["directory", "file"])
def test_chain_of_another_user(
    root: None, chain: tuple[int, Path, Path], tmp_path: Path, verb: tuple[str, ...], closed: str
) -> None:
    """Without root's capabilities, a chain of somebody else's cannot be read: exit code 4."""
    directory = tmp_path / "c"
    shutil.copytree(chain[2], directory)
    (directory / ".lock").unlink()
    for path in (directory, *directory.iterdir()):
        os.chown(path, 65534, 65534)
    directory.chmod(0o700 if closed == "directory" else 0o755)
    words = [w.format(out=tmp_path / "out", chain=directory) for w in verb]
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    command = [*drop, sys.executable, "-m", "checkpoint", words[0], directory, *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4, done.stderr
    assert "cannot read" in done.stderr and "This root lacks CAP_DAC_READ_SEARCH" in done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("100ms", 0.1), ("2s", 2.0), ("1.5m", 90.0), ("250us", 0.00025), ("1 h", 3600.0)],
)
def test_times(text: str, seconds: float) -> None:
    assert Time().convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "x", "-1s", "0", "0s", "100", "1.5", "5 parsecs", "1e9h", "nan", "٣s"])
def test_bad_times(text: str) -> None:
    result = CliRunner().invoke(cli, ["checkpoint", "1", "-o", "x", "--every", text])
    assert result.exit_code == 2 and "--every" in result.output


def test_usage(uffdtrack: Run) -> None:
    assert "Exit codes" in uffdtrack("--help").stdout
    for verb in VERBS:
        assert "Usage" in CliRunner().invoke(cli, [verb, "--help"]).output
        if verb not in ("doctor", "status"):
            assert CliRunner().invoke(cli, [verb]).exit_code == 2
    uffdtrack("show", code=2)
    uffdtrack("run", "-o", "/tmp/uffdtrack-none", "--", "/no/such/program", code=2)


def test_vm_and_bench(kernel: None, uffdtrack: Run) -> None:
    """They start as all others do; what they do: tests/kvm."""
    need_kvm()
    assert uffdtrack("vm", "run", "count", "--until", 3).stdout == "1\n2\n3\n"
    assert "--engines" in uffdtrack("bench", "ab", "--help").stdout


def test_doctor(kernel: None, uffdtrack: Run) -> None:
    found = rows(uffdtrack("doctor", "--json"))
    status = {str(r["check"]): r["status"] for r in found}
    assert status["tracking"] == status["ptrace"] == "pass"
    assert "/dev/kvm" in status and "huge pages" in status
    assert all(r["fix"] for r in found if r["status"] in ("warn", "fail") and r["check"] != "KVM dirty log")
    assert "tracking" in uffdtrack("doctor").stdout


def test_unsupported_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a kernel without WP_ASYNC everything that needs it says so, with exit code 3."""
    import dataclasses

    import checkpoint.cli.worker
    import checkpoint.health
    from checkpoint.cli.main import main
    from uffdtrack import probe

    old = dataclasses.replace(probe(), wp_async="EINVAL", pagemap_scan="ENOTTY", uffd_features=frozenset())
    monkeypatch.setattr(checkpoint.cli.worker, "probe", lambda: old)
    monkeypatch.setattr(checkpoint.health, "probe", lambda: old)
    for argv in (["checkpoint", "1", "-o", str(tmp_path / "c")], ["doctor"]):
        monkeypatch.setattr(sys, "argv", ["uffdtrack", *argv])
        with pytest.raises(SystemExit) as done:
            main()
        assert done.value.code == 3
    assert not (tmp_path / "c").exists()
