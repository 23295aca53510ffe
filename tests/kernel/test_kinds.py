"""What can be mapped, by what is behind it: what becomes of it in an image, whatever its name is."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from checkpoint.chain import Chain
from checkpoint.elf import PHDR
from checkpoint.export import export
from checkpoint.session import Session
from tests.helpers import Build, Run, Spawn
from tests.kernel.mapper import Mapper, open_session, read
from uffdtrack import PAGE, Region, read_maps

PRIVATE, SHARED = 2, 1
FILE = "sized(os.open({!r}, os.O_RDWR | os.O_CREAT))"
GONE = "sized(removed({!r}))"

TOOLS = """[
    globals().update(
        sized=lambda fd: [os.ftruncate(fd, 65536), fd][1],
        removed=lambda name: [fd := os.open(name, os.O_RDWR | os.O_CREAT), os.unlink(name), fd][2],
        node=lambda name, kind, device: [os.mknod(name, kind | 0o600, device), os.open(name, os.O_RDWR)][1],
        secret=lambda: libc.syscall(447, 0),
    )
]"""


@dataclass(frozen=True)
class Kind:
    """`file` is an expression that opens it; {tmp} is a directory of the test's, {pid} its own number."""

    what: str
    file: str
    flags: int
    kind: str
    protection: int = 3
    root: bool = False


TABLE = [
    Kind("private /dev/zero", "os.open('/dev/zero', os.O_RDWR)", PRIVATE, "anonymous"),
    Kind("shared /dev/zero", "os.open('/dev/zero', os.O_RDWR)", SHARED, "shared-memory"),
    Kind("its node elsewhere", "node('{tmp}/a', 0o020000, os.makedev(1, 5))", PRIVATE,
         "anonymous", root=True),
    Kind("its node below a misleading name", "node('{tmp}/[vdso]', 0o020000, os.makedev(1, 5))", PRIVATE,
         "anonymous", root=True),
    Kind("memfd", "sized(os.memfd_create('x'))", SHARED, "shared-memory"),
    Kind("memfd, private", "sized(os.memfd_create('x'))", PRIVATE, "private-memory"),
    Kind("memfd named like a device", "sized(os.memfd_create('/dev/nvidia0'))", SHARED, "shared-memory"),
    Kind("memfd named like aio", "sized(os.memfd_create('[aio]'))", SHARED, "shared-memory"),
    Kind("memfd_secret", "sized(secret())", SHARED, "secret"),
    Kind("file", FILE.format("{tmp}/file"), PRIVATE, "file"),
    Kind("file, shared", FILE.format("{tmp}/file2"), SHARED, "shared"),
    Kind("file, shared and read-only", FILE.format("{tmp}/file3"), SHARED, "view", protection=1),
    Kind("deleted file", GONE.format("{tmp}/file4"), PRIVATE, "deleted"),
    Kind("deleted file, shared", GONE.format("{tmp}/file5"), SHARED, "shared"),
    Kind("file named like a deleted one", FILE.format("{tmp}/x (deleted)"), PRIVATE, "file"),
    Kind("file named like a memfd", FILE.format("{tmp}/memfd:x (deleted)"), PRIVATE, "file"),
    Kind("file named like an object", FILE.format("{tmp}/anon_inode:[x]"), PRIVATE, "file"),
    Kind("file of a file system below /dev", GONE.format("/dev/uffdtrack-{pid}"), PRIVATE, "private-memory",
         root=True),
    Kind("the same, shared", GONE.format("/dev/uffdtrack-{pid}"), SHARED, "shared-memory", root=True),
    Kind("block device", "os.open('/dev/loop0', os.O_RDONLY)", PRIVATE, "file", protection=1, root=True),
]  # fmt: skip


@pytest.fixture
def mapped(kernel: None, spawn: Spawn, tmp_path: Path) -> tuple[Mapper, dict[str, int]]:
    """A process with all of the table, and where."""
    mapper = Mapper(spawn, tmp_path / "c")
    assert mapper(" ".join(TOOLS.split())) == "[None]"
    places = {}
    for row in TABLE:
        if row.root and os.geteuid():
            continue
        if "loop0" in row.file and not Path("/dev/loop0").exists():
            continue
        file = row.file.replace("{tmp}", str(tmp_path)).replace("{pid}", str(mapper.pid))
        if "secret()" in file and int(mapper("secret()")) < 0:
            continue  # no CONFIG_SECRETMEM
        places[row.what] = int(mapper(f"new(65536, {row.protection}, {row.flags}, {file})"))
    return mapper, places


@pytest.fixture
def session(mapped: tuple[Mapper, dict[str, int]], process_engine: str) -> Iterator[Session]:
    yield from open_session(mapped[0], process_engine)


def at(regions: list[Region], place: int) -> Region:
    return next(r for r in regions if r.start <= place < r.end)


def test_each_kind(mapped: tuple[Mapper, dict[str, int]], session: Session) -> None:
    mapper, places = mapped
    assert len(places) > 10
    rows = {row.what: row for row in TABLE if row.what in places}
    found = {what: at(read_maps(mapper.pid), place).kind for what, place in places.items()}
    assert found == {what: row.kind for what, row in rows.items()}

    writable = {what: place for what, place in places.items() if rows[what].protection & 2}
    for text in (b"one", b"two"):
        for place in writable.values():
            mapper(f"put({place}, {text!r})")
        taken = session.take()
    regions = Chain(mapper.directory).open(1).regions
    assert {what: at(regions, place).kind for what, place in places.items()} == found
    for what, place in writable.items():
        expected = (b"", b"") if found[what] == "secret" else (b"one", b"two")
        assert (read(mapper, place, epoch=0), read(mapper, place, epoch=1)) == expected, what
    left_out = [place for what, place in places.items() if found[what] == "secret"]
    assert (taken.left_out, taken.left_out_bytes) == (len(left_out), len(left_out) * 65536)


def test_what_is_left_out_is_said(kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    mapper = Mapper(spawn, tmp_path / "c")
    # An aio ring, which the kernel maps by itself.
    assert mapper("libc.syscall(206, 8, ctypes.byref(globals().setdefault('c', ctypes.c_ulong())))") == "0"
    done = uffdtrack("checkpoint", mapper.pid, "-o", mapper.directory, "--count", "3", "--every", "10ms")
    assert done.stderr.count("is left out of the image: it is shared with an object of the kernel") == 1
    assert "left out" in uffdtrack("show", mapper.directory).stdout


def test_left_out_later_is_said(mapped: tuple[Mapper, dict[str, int]], session: Session) -> None:
    mapper, _ = mapped
    session.take()
    mapper("libc.syscall(206, 8, ctypes.byref(globals().setdefault('c', ctypes.c_ulong())))")
    assert any("object of the kernel" in warning for warning in session.take().warnings)
    assert not session.take().warnings


NAMES = [
    b"Icon\r", b"a\vb", b"a\fb", b"a\x1cb", "nel\x85".encode(), "line\u2028sep".encode(), b"new\nline",
    b"back\\slash", b"two  spaces ", b"\xff\xfe", b"x (deleted)",
]  # fmt: skip
"""The kernel escapes the newline and nothing else."""


def test_names(kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    mapper = Mapper(spawn, tmp_path / "c")
    places = []
    for name in NAMES:
        path = os.fsencode(tmp_path) + b"/" + name
        Path(os.fsdecode(path)).write_bytes(bytes(2 * PAGE))
        places.append(mapper.new(2 * PAGE, 3, 2, int(mapper(f"os.open({path!r}, os.O_RDWR)"))))
        mapper(f"put({places[-1]}, b'one')")
    uffdtrack("checkpoint", mapper.pid, "-o", mapper.directory, "--count", "2", "--every", "5ms")
    uffdtrack("show", mapper.directory, errors="surrogateescape")
    found = {at(Chain(mapper.directory).open(1).regions, place).name for place in places}
    assert found == {str(tmp_path / os.fsdecode(name.replace(b"\n", b"\\012"))) for name in NAMES}
    for place in places:
        mapper(f"put({place}, b'two')")
    uffdtrack("rollback", mapper.pid, mapper.directory)
    assert [mapper(f"get({place}, 3)") for place in places] == ["b'one'"] * len(NAMES)


# -- memory that is shared by fork ---------------------------------------------------------------------


def private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().split("\n")
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def read_pinned(pid: int, address: int, size: int) -> None:
    class Range(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    buffer = ctypes.create_string_buffer(size)
    local, remote = Range(ctypes.addressof(buffer), size), Range(address, size)
    libc = ctypes.CDLL(None)
    n = libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    assert n == size


def test_memory_shared_by_fork_stays_shared(
    build: Build, spawn: Spawn, tmp_path: Path, process_engine: str, uffdtrack: Run
) -> None:
    parent = spawn(build("forked"))
    assert parent.stdin and parent.stdout
    pid, address = (int(word, 0) for word in parent.stdout.readline().split())
    before = private_kib(pid)
    c = tmp_path / "c"
    uffdtrack("checkpoint", pid, "-o", c, "--count", "3", "--every", "10ms", "--engine", process_engine)
    parent.stdin.write(b"new\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == b"done\n"
    uffdtrack("rollback", pid, c)
    assert private_kib(pid) - before < 256
    # That the figure would tell.
    read_pinned(pid, address, 256 * PAGE)
    assert private_kib(pid) - before >= 1024


# -- the head of a mapped file ---------------------------------------------------------------------------


def head_in(core: Path, address: int) -> bytes:
    data = core.read_bytes()
    place, count = int.from_bytes(data[32:40], "little"), int.from_bytes(data[56:58], "little")
    for header in np.frombuffer(data, PHDR, count, place):
        if header["type"] == 1 and header["vaddr"] == address and header["filesz"]:
            return data[int(header["offset"]) :][:PAGE]
    return b""


def test_the_head_is_that_of_the_mapped_file(
    build: Build, kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run
) -> None:
    program = tmp_path / "program"
    program.write_bytes(build("forked").read_bytes())
    program.chmod(0o755)
    process = spawn(program)
    assert process.stdout and process.stdout.readline()
    start = next(r.start for r in read_maps(process.pid) if r.name == str(program) and not r.offset)
    c, core = tmp_path / "c", tmp_path / "core"
    uffdtrack("checkpoint", process.pid, "-o", c, "--count", "4", "--every", "5ms")
    head = program.read_bytes()[:PAGE]
    program.unlink()
    program.write_bytes(build("changes").read_bytes())
    assert program.read_bytes()[:PAGE] != head
    export(Chain(c).view(3), core, force=False)
    assert head_in(core, start) == head
    uffdtrack("compact", c, "--before", "2")
    export(Chain(c).view(3), core, force=True)
    assert head_in(core, start) == head
