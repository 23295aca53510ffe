"""Breakpoints of uprobes belong to the kernel: a rollback neither brings them back nor takes them away."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from checkpoint.errors import RollbackRefusedError
from tests.conftest import missing
from tests.helpers import Build, Spawn
from tests.kernel.mapper import Mapper
from tests.kernel.rolled import Target
from tests.kernel.test_rollback_attributes import back, take
from uffdtrack import PAGE, parse_maps

FORMS = {"lea": ("l", 0), "nop": ("n", 1), "waits": ("w", 2)}


class Asked:
    """A program that answers each line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode().strip()

    def ask(self, line: str) -> str:
        assert self.process.stdin
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        return self.read()


class Probed(Asked):
    """tests/programs/probed.c, with uprobes that come and go."""

    def __init__(self, spawn: Spawn, build: Build, form: str) -> None:
        super().__init__(spawn(build("probed")))
        self.pid = self.process.pid
        self.line, which = FORMS[form]
        self.address = int(self.read().split()[which], 16)
        self._spawn, self._program = spawn, build("uprobe")

    def call(self) -> str:
        return self.ask(self.line)

    def probe(self, *, returns: bool = False) -> Asked:
        region = next(
            r
            for r in parse_maps(Path(f"/proc/{self.pid}/maps").read_text())
            if r.start <= self.address < r.end
        )
        offset = region.offset + self.address - region.start
        probe = Asked(self._spawn(self._program, self.pid, region.name, offset, int(returns)))
        if not probe.read():
            missing("uprobes")
        return probe

    def code(self) -> bytes:
        with open(f"/proc/{self.pid}/mem", "rb") as memory:
            memory.seek(self.address)
            return memory.read(5)


def end(probe: Asked) -> None:
    assert probe.process.stdin
    probe.process.stdin.close()
    assert probe.process.wait() == 0


@pytest.fixture(params=["lea", "nop"])
def probed(request: pytest.FixtureRequest, root: None, spawn: Spawn, build: Build) -> Probed:
    return Probed(spawn, build, request.param)


def test_probe_that_has_gone_does_not_come_back(probed: Probed, tmp_path: Path) -> None:
    clean = probed.code()
    probe = probed.probe()
    assert probed.call() == "1" and probed.call() == "2" and probe.ask("") == "2"
    assert probed.code() != clean, "the epoch has the probe"
    take(probed.pid, tmp_path / "c")
    end(probe)
    assert probed.call() == "3"
    back(probed.pid, tmp_path / "c")
    assert probed.call() == "3"
    assert probed.code() == clean


def test_probe_that_has_come_stays(probed: Probed, tmp_path: Path) -> None:
    assert probed.call() == "1"
    take(probed.pid, tmp_path / "c")
    probe = probed.probe()
    assert probed.call() == "2" and probed.call() == "3" and probe.ask("") == "2"
    back(probed.pid, tmp_path / "c")
    assert probed.call() == "2" and probe.ask("") == "3"
    end(probe)
    assert probed.call() == "3"


def test_probe_that_is_there_all_the_time(probed: Probed, tmp_path: Path) -> None:
    probe = probed.probe()
    assert probed.call() == "1"
    take(probed.pid, tmp_path / "c")
    assert probed.call() == "2"
    back(probed.pid, tmp_path / "c")
    assert probed.call() == "2" and probe.ask("") == "3"


def test_probe_that_has_come_and_gone(probed: Probed, tmp_path: Path) -> None:
    """[uprobes] is mapped since, and the kernel goes on using it."""
    clean = probed.code()
    take(probed.pid, tmp_path / "c")
    probe = probed.probe()
    assert probed.call() == "1"
    end(probe)
    assert any(
        r.special for r in parse_maps(Path(f"/proc/{probed.pid}/maps").read_text()) if "uprobes" in r.name
    )
    for _ in range(2):
        back(probed.pid, tmp_path / "c")
        assert probed.code() == clean
        probe = probed.probe()
        assert probed.call() == "1" and probe.ask("") == "1"
        end(probe)


def test_epoch_inside_of_a_function_whose_return_is_probed(
    root: None, spawn: Spawn, build: Build, tmp_path: Path
) -> None:
    probed = Probed(spawn, build, "waits")
    probe = probed.probe(returns=True)
    assert probed.call() == "inside"
    take(probed.pid, tmp_path / "c")
    assert probed.ask("") == "1" and probe.ask("") == "1"
    with pytest.raises(RollbackRefusedError, match="uretprobe"):
        back(probed.pid, tmp_path / "c")
    end(probe)
    assert probed.ask("l") == "2"


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("stored", [True, False])
def test_what_only_looks_like_a_breakpoint(
    by: str, spawn: Spawn, stack: ExitStack, tmp_path: Path, writable: bool, stored: bool
) -> None:
    """Pages of a file that has such bytes itself, read-only at the epoch and written since."""
    contents = bytearray(b"abcd" * PAGE)
    contents[100] = 0xCC
    path = tmp_path / "file"
    path.write_bytes(contents)
    mapper = Mapper(spawn, tmp_path / "m")
    at = mapper.new(4 * PAGE, 3, 2, int(mapper(f"os.open({str(path)!r}, os.O_RDONLY)")))
    if stored:
        mapper(f"put({at + 8}, b'own')")
        contents[8:11] = b"own"
    mapper(f"libc.mprotect(ctypes.c_void_p({at}), {4 * PAGE}, 1)")
    target = Target(stack, mapper.pid, tmp_path / "c", by)
    mapper(f"libc.mprotect(ctypes.c_void_p({at}), {4 * PAGE}, 3)")
    mapper(f"put({at}, b'new'), put({at + PAGE}, b'new')")
    if not writable:
        mapper(f"libc.mprotect(ctypes.c_void_p({at}), {4 * PAGE}, 1)")
    target.back_to()
    assert mapper(f"get({at}, {4 * PAGE}).hex()") == contents.hex()
