"""What a mapping has beside its protection comes back with it, or the rollback is refused whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.errors import RollbackRefusedError
from checkpoint.rollback.attributes import Attributes
from checkpoint.rollback.order import rollback
from checkpoint.rollback.outcome import Outcome
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from tests.conftest import missing
from tests.helpers import HUGE_PAGES, Build, Spawn, alone_on

# Each with the codes of VmFlags that it has (proc_pid_smaps(5)), and what the rollback does if it was
# cleared, set, or unmapped with its mapping since: "back", or why it is refused.
TABLE: dict[str, tuple[str, str, str, str]] = {
    "plain": ("", "back", "back", "back"),
    "wipeonfork": ("wf", "back", "back", "back"),
    "dontfork": ("dc", "back", "back", "back"),
    "dontdump": ("dd", "back", "back", "back"),
    "hugepage": ("hg", "back", "back", "back"),
    "nohugepage": ("nh", "back", "back", "back"),
    "mergeable": ("mg", "back", "back", "back"),
    "random": ("rr", "back", "back", "back"),
    "sequential": ("sr", "back", "back", "back"),
    "locked": ("lo", "back", "back", "back"),
    "onfault": ("lo lf", "back", "back", "back"),
    "pkey": ("key:1", "back", "back", "back"),
    "name": ("", "back", "back", "back"),
    "growsdown": ("gd", "back", "back", "back"),
    "noreserve": ("nr", "same", "same", "back"),
    "droppable": ("dp wf dd", "back", "back", "back"),
    "hugetlb": ("ht page:2048", "back", "back", "back"),
    "sealed": ("sl", "never", "EPERM", "never"),
}
CASES = [
    (name, mode, row[1 + i])
    for name, row in TABLE.items()
    for i, mode in enumerate(("clear", "set", "unmap"))
    if row[1 + i] != "never"
]


def take(pid: int, directory: Path) -> None:
    """One epoch, without the command line."""
    with ChainWriter(directory, b"", force=False) as chain, ProcessTarget(pid) as target:
        Session(target, chain).take()


def back(pid: int, directory: Path) -> Outcome:
    return rollback(pid, Chain(directory).view(None))


def without(name: str) -> None:
    """Some are a matter of the kernel's configuration, of the processor, or of how free memory lies."""
    if name in ("name", "pkey", "hugetlb"):
        pytest.skip(f"this host has no {name} of a mapping")
    missing(f"a mapping that is {name}")


class Target:
    """tests/programs/attributes.c."""

    def __init__(self, spawn: Spawn, program: Path, name: str, mode: str) -> None:
        self.process = spawn(program, name, mode)
        self.pid = self.process.pid
        word, self.address, self.size = self._read()
        if word != "ready":
            without(name)

    def _read(self) -> tuple[str, int, int]:
        assert self.process.stdout
        word, address, size = self.process.stdout.readline().split()
        return word.decode(), int(address, 16), int(size)

    def ask(self, line: str) -> str:
        assert self.process.stdin
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        return self._read()[0]

    def state(self) -> tuple[set[str], set[str]]:
        """The attributes and names of the memory."""
        ends = self.address, self.address + self.size
        lines = [line.split(maxsplit=5) for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines()]
        names = {
            f"{line[1]} {line[5] if len(line) > 5 else ''}"
            for line in lines
            if ends[0] <= int(line[0].split("-")[0], 16) < ends[1]
        }
        flags = Attributes.read(self.pid)
        found = {f for page in range(*ends, 4096) for f in flags.at(page)}
        return found, names


@pytest.fixture
def huge_page(root: None) -> Iterator[None]:
    if not Path(HUGE_PAGES).exists():
        missing("pages of 2 MiB (hugetlb)")
    with alone_on(HUGE_PAGES) as pool:
        pool.write_text("4")
        yield


@pytest.mark.parametrize(("name", "mode", "outcome"), CASES)
def test_attribute_is_that_of_the_epoch(
    kernel: None,
    request: pytest.FixtureRequest,
    spawn: Spawn,
    build: Build,
    tmp_path: Path,
    name: str,
    mode: str,
    outcome: str,
) -> None:
    if name == "hugetlb":
        request.getfixturevalue("huge_page")
    target = Target(spawn, build("attributes"), name, mode)
    then = target.state()
    assert (set(TABLE[name][0].split()) <= then[0]) == (mode != "set" or name == "plain" or name == "name")
    take(target.pid, tmp_path / "c")
    if target.ask("x") != "done":
        without(name)
    now = target.state()
    if name != "plain" and outcome != "same":
        assert now != then, "the test changes nothing"
    if outcome in ("back", "same"):
        outcome_of = back(target.pid, tmp_path / "c")
        told = any("random numbers" in text for text in outcome_of.warnings)
        assert told == (name == "wipeonfork" and mode != "set")
        assert target.state() == (then if outcome == "back" else target.state())
        # What may be dropped is: it holds nothing then.
        assert target.ask("p") == ("none" if name == "droppable" and mode != "set" else "old")
    else:
        with pytest.raises(RollbackRefusedError, match=f"{outcome}; the process is as it was"):
            back(target.pid, tmp_path / "c")
        assert target.state() == now
        assert target.ask("p") == "new"


def test_advice_that_stays_is_not_touched(kernel: None, spawn: Spawn, build: Build, tmp_path: Path) -> None:
    target = Target(spawn, build("attributes"), "dontfork", "keep")
    take(target.pid, tmp_path / "c")
    assert target.ask("x") == "done"
    back(target.pid, tmp_path / "c")
    assert "dc" in target.state()[0]
