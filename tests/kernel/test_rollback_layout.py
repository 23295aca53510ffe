"""A rollback looks at the mappings of a process that runs, and the stop sees whether they are still those."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from checkpoint.rollback.attributes import Attributes
from checkpoint.rollback.mappings import Mappings
from tests.helpers import Spawn
from tests.kernel.mapper import Mapper
from tests.kernel.rolled import Target
from uffdtrack import PAGE, parse_maps

AT = 0x7000_0000_0000
MAP = f"libc.mmap({AT}, {PAGE}, 3, 0x32, -1, 0), put({AT}, b'x')"
UNMAP = f"libc.munmap(ctypes.c_void_p({AT}), {PAGE})"


def is_mapped(pid: int) -> bool:
    return any(r.start == AT for r in parse_maps(Path(f"/proc/{pid}/maps").read_text()))


@pytest.mark.parametrize(
    ("then", "now"), [(True, False), (False, True)], ids=["has gone since", "has come since"]
)
def test_a_mapping_that_changes_twice_while_we_look(
    by: str, spawn: Spawn, stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    then: bool, now: bool,
) -> None:  # fmt: skip
    """As at the epoch for the moment in which we look, and in the stop what it was before that."""
    mapper = Mapper(spawn, tmp_path / "m")
    mapper(MAP if then else UNMAP)
    target = Target(stack, mapper.pid, tmp_path / "c", by)
    mapper(MAP if now else UNMAP)
    look, found, moments = Attributes.read, Mappings.__init__, ["attributes", "mappings"]

    def reading(pid: int) -> Attributes | None:
        attributes = look(pid)
        if moments == ["attributes", "mappings"]:
            moments.remove("attributes")
            mapper(MAP if then else UNMAP)
        return attributes

    def finding(self: Mappings, *arguments: object, **more: object) -> None:
        found(self, *arguments, **more)  # type: ignore[arg-type]
        if moments == ["mappings"]:
            moments.clear()
            mapper(MAP if now else UNMAP)

    monkeypatch.setattr(Attributes, "read", reading)
    monkeypatch.setattr(Mappings, "__init__", finding)
    target.back_to()
    assert by == "itself" or not moments, "by itself it is another process that has looked"
    assert is_mapped(mapper.pid) == then
    if then:
        assert mapper(f"get({AT}, 1)") == "b'x'"


def test_private_memory_of_a_file_that_has_lost_its_name(
    by: str, spawn: Spawn, stack: ExitStack, tmp_path: Path
) -> None:
    """A page that was not in use at the epoch, and one that was."""
    contents = bytearray(b"abcd" * 4 * PAGE)
    path = tmp_path / "file"
    path.write_bytes(contents)
    mapper = Mapper(spawn, tmp_path / "m")
    at = mapper.new(4 * PAGE, 3, 2, int(mapper(f"os.open({str(path)!r}, os.O_RDONLY)")))
    path.unlink()
    mapper(f"put({at + PAGE}, b'then')")
    contents[PAGE : PAGE + 4] = b"then"
    target = Target(stack, mapper.pid, tmp_path / "c", by)
    mapper(f"put({at}, b'new'), put({at + PAGE}, b'new'), put({at + 3 * PAGE}, b'new')")
    outcome = target.back_to()
    assert not any("left as they are" in text for text in outcome.warnings)
    assert mapper(f"get({at}, {4 * PAGE}).hex()") == contents[: 4 * PAGE].hex()


@pytest.mark.parametrize("unmap", [True, False], ids=["mapped again", "kept"])
def test_shared_memory_that_another_has_filled_since(
    by: str, spawn: Spawn, stack: ExitStack, tmp_path: Path, unmap: bool
) -> None:
    """A hole at the epoch, which the process has never touched itself."""
    fd = os.memfd_create("shared")
    stack.callback(os.close, fd)
    os.truncate(fd, 8 * PAGE)
    mapper = Mapper(spawn, tmp_path / "m", pass_fds=(fd,))
    at = mapper.new(8 * PAGE, 3, 1, fd)
    mapper(f"put({at}, b'then')")
    target = Target(stack, mapper.pid, tmp_path / "c", by)
    if unmap:
        mapper(f"libc.munmap(ctypes.c_void_p({at}), {8 * PAGE})")
    os.pwrite(fd, b"now", 0)
    os.pwrite(fd, b"now", 5 * PAGE)
    target.back_to()
    assert os.pread(fd, 4, 0) == b"then"
    assert os.pread(fd, 3, 5 * PAGE) == bytes(3)
    assert mapper(f"get({at + 5 * PAGE}, 3)") == repr(bytes(3))
