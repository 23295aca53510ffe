"""Epochs that a session keeps in its memory, and rollbacks to them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from checkpoint.kept_epoch import Index
from checkpoint.kept_in_memory import keeper_of
from tests.helpers import Build, Run, Spawn, session_of, traps, wait_for
from tests.kernel.rolled import roll
from tests.kernel.rollee import Rollee
from tests.kernel.test_rollback_in_session import start_writer
from uffdtrack.runs import Rows

KEEP = 4
SEED = 31


@pytest.mark.parametrize("engine", ["ring", "scan"])
def test_rolled_back_to_random_epochs(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, engine: str
) -> None:
    """Each epoch is checked against the writer's log, each rollback byte by byte."""
    pid, control = start_writer(spawn, build, 2, SEED)
    assert roll(pid, control, in_memory / "c", engine, 4, SEED, keep=KEEP)


def test_negative_control(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When two epochs become one, what the later one has voided must go."""
    cut = Index.cut

    def keep(self: Index, ranges: object) -> Rows:
        return cut(self, ranges[:0])  # type: ignore[index]

    monkeypatch.setattr(Index, "cut", keep)
    pid, control = start_writer(spawn, build, 2, SEED)
    with pytest.raises(AssertionError):
        roll(pid, control, in_memory / "c", "scan", 300, SEED, keep=KEEP)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ring", "scan"])
def test_many_rollbacks(kernel: None, spawn: Spawn, build: Build, in_memory: Path, engine: str) -> None:
    done = 0
    for n in range(3):
        pid, control = start_writer(spawn, build, 1 + n, 2000 + n)
        done += roll(pid, control, in_memory / f"c{n}", engine, 30, n, keep=1 + 5 * n)
        os.kill(pid, signal.SIGKILL)
    assert done > 30


def test_the_verbs(spawn: Spawn, rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    """From the base to its end; what is kept is in no file."""
    directory = tmp_path / "c"
    rows = tmp_path / "rows"
    with rows.open("wb") as out:
        options = "--every", "20ms", "--keep", "3", "--json"
        session = session_of(spawn, rollee.pid, directory, *options, stdout=out)
    wait_for(lambda: rows.read_bytes().count(b"\n") > 5, "there are some epochs")
    first, *_, last = (json.loads(line) for line in rows.read_text().splitlines()[:6])
    assert (first["epoch"], first["base"], first["kept"]) == (0, True, 1) and "digest" not in first
    assert first["kept_bytes"] >= first["bytes"] > 0 and last["kept"] == 3
    keeper = keeper_of(directory)
    for verb in (
        ["ls", directory],
        ["verify", directory],
        ["export", f"{directory}@3", "-o", tmp_path / "x"],
    ):
        failed = uffdtrack(*verb, code=2)
        assert f"in the memory of its session, process {keeper}" in failed.stderr
    assert rollee.ask("s 7") == "7"
    old = uffdtrack("rollback", rollee.pid, f"{directory}@0", code=2)
    assert "the session keeps the epochs" in old.stderr
    assert "is back at epoch" in uffdtrack("rollback", rollee.pid, directory).stdout
    assert rollee.ask("c") == "7"
    session.send_signal(signal.SIGINT)
    assert session.wait() == 0 and not traps(rollee.pid) and keeper_of(directory) is None
    assert "holds no checkpoint" in uffdtrack("ls", directory, code=2).stderr
    assert rollee.ask("s 8") == "8"


def test_a_session_that_is_killed(spawn: Spawn, rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    directory = tmp_path / "c"
    session = session_of(spawn, rollee.pid, directory, "--every", "20ms", "--keep", "3", "--json")
    assert session.stdout and session.stdout.readline()
    keeper = keeper_of(directory)
    assert keeper and rollee.ask("s 1") == "1"
    os.kill(keeper, signal.SIGKILL)
    session.communicate()
    wait_for(lambda: not traps(rollee.pid), "no trap is left")
    assert rollee.ask("s 2") == "2" and keeper_of(directory) is None
    uffdtrack("checkpoint", rollee.pid, "-o", directory, "--count", "2")
    assert len(uffdtrack("ls", directory, "--json").stdout.splitlines()) == 2


def test_what_does_not_go_together(rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    key = tmp_path / "key"
    key.write_text("a secret")
    for more in (["--durable", "50ms"], ["--children"], ["--key-file", str(key)]):
        failed = uffdtrack("checkpoint", rollee.pid, "-o", tmp_path / "c", "--keep", "2", *more, code=2)
        assert "--keep" in failed.stderr


def test_a_chain_stays_what_it_is(rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    """Else `c@1` would be one of its epochs as soon as the session has ended."""
    directory = tmp_path / "c"
    uffdtrack("checkpoint", rollee.pid, "-o", directory, "--count", "2", "--every", "1ms")

    def stored() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in directory.glob("epoch-*")}

    before = stored()
    for more in ([], ["--force"]):
        failed = uffdtrack("checkpoint", rollee.pid, "-o", directory, "--keep", "2", *more, code=2)
        assert "holds a chain" in failed.stderr and "give another directory" in failed.stderr
    assert len(before) == 2 and before == stored()
    done = uffdtrack("checkpoint", rollee.pid, "-o", tmp_path / "d", "--keep", "2", "--force", "--count", "3")
    assert "epochs 0 to 2, the last 2 of them in memory: gone with the session" in done.stdout
    assert "warning" not in done.stderr
