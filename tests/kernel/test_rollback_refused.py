"""A rollback that cannot be whole is refused before anything is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint.directory import Lock
from tests.helpers import Build, Run, Spawn, wait_for
from tests.kernel.rollee import Rollee, take


def test_thread_that_has_ended_is_refused(rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    assert rollee.ask("s 5") == "5"
    threads = rollee.threads()
    take(uffdtrack, rollee.pid, tmp_path / "c")
    assert rollee.ask("e") == "5"
    wait_for(lambda: rollee.threads() == threads - 1, "the thread has ended")
    assert rollee.ask("s 6") == "6"
    done = uffdtrack("rollback", rollee.pid, tmp_path / "c", code=5)
    assert "has ended since" in done.stderr
    assert rollee.ask("c") == "6"


def test_another_process_is_refused(
    rollee: Rollee, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run
) -> None:
    take(uffdtrack, rollee.pid, tmp_path / "c")
    other = Rollee(spawn, build)
    done = uffdtrack("rollback", other.pid, tmp_path / "c", code=5)
    assert "is not the one" in done.stderr
    assert other.ask("c") == "1"


@pytest.mark.parametrize("damage", ["byte", "cut", "missing", "swapped"])
def test_damaged_chain_is_refused_before_anything_is_touched(
    rollee: Rollee, tmp_path: Path, uffdtrack: Run, damage: str
) -> None:
    chain = tmp_path / "c"
    uffdtrack("checkpoint", rollee.pid, "-o", chain, "--count", "4", "--every", "1ms")
    bad = chain / "epoch-00000002.core"
    if damage == "byte":
        data = bytearray(bad.read_bytes())
        data[len(data) // 2] ^= 1
        bad.write_bytes(data)
    elif damage == "cut":
        bad.write_bytes(bad.read_bytes()[:-100])
    elif damage == "missing":
        bad.unlink()
    else:
        other = chain / "epoch-00000003.core"
        a, b = bad.read_bytes(), other.read_bytes()
        bad.write_bytes(b)
        other.write_bytes(a)
    assert rollee.ask("s 8") == "8"
    for argv in (
        ("rollback", rollee.pid, f"{chain}@3"),
        ("export", f"{chain}@3", "-o", tmp_path / "out.core"),
        ("verify", chain),
    ):
        done = uffdtrack(*argv, code=6)
        assert "epoch-0000000" in done.stderr
    assert not (tmp_path / "out.core").exists()
    assert rollee.ask("c") == "8"


def test_chain_is_locked_before_it_is_verified(rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    """Else what was verified might be another chain when it is read."""
    chain = tmp_path / "c"
    uffdtrack("checkpoint", rollee.pid, "-o", chain, "--count", "2", "--every", "1ms")
    (chain / "epoch-00000000.core").write_bytes(b"")
    with Lock(chain):
        assert "in use" in uffdtrack("rollback", rollee.pid, chain, code=2).stderr
    assert "is damaged" in uffdtrack("rollback", rollee.pid, chain, code=6).stderr
    uffdtrack("rollback", rollee.pid, tmp_path / "nowhere", code=2)
    (tmp_path / "d").mkdir()
    uffdtrack("rollback", rollee.pid, tmp_path / "d", code=2)
    assert not list((tmp_path / "d").iterdir())
