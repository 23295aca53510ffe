"""Kinds of mappings one by one: what of them an epoch holds."""

from __future__ import annotations

import mmap
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from checkpoint.chain import Chain, ChainWriter
from checkpoint.cycle import Session
from checkpoint.image import EpochFile
from checkpoint.targets.process import ProcessTarget
from tests.conftest import missing
from tests.helpers import HUGE_PAGES, alone_on
from uffdtrack import PAGE, status_field

Spawn = Callable[..., subprocess.Popen[bytes]]

MAPPER = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
def new(size, prot=3, flags=0x22, fd=-1):
    at = libc.mmap(None, size, prot, flags, fd, 0)
    assert at != 2**64 - 1, os.strerror(ctypes.get_errno())
    return at
def put(at, text):
    ctypes.memmove(at, text, len(text))
def get(at, n):
    return ctypes.string_at(at, n)
while True:
    line = sys.stdin.readline()
    if not line: break
    print(eval(line), flush=True)
"""


class Mapper:
    """A process that evaluates what it is told, with mmap at hand, and a session on it."""

    def __init__(self, spawn: Spawn, directory: Path, pass_fds: tuple[int, ...] = ()) -> None:
        self.process = spawn(sys.executable, "-c", MAPPER, pass_fds=pass_fds)
        self.pid = self.process.pid
        self.directory = directory

    def __call__(self, expression: str) -> str:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(expression.encode() + b"\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().decode().strip()

    def new(self, *arguments: object) -> int:
        return int(self(f"new({', '.join(map(repr, arguments))})"))


@pytest.fixture
def mapper(kernel: None, spawn: Spawn, tmp_path: Path) -> Mapper:
    made = Mapper(spawn, tmp_path / "c")
    assert made("1") == "1"
    return made


@pytest.fixture
def session(mapper: Mapper, process_engine: str) -> Iterator[Session]:
    yield from open_session(mapper, process_engine)


def open_session(mapper: Mapper, engine: str) -> Iterator[Session]:
    with ChainWriter(mapper.directory, b"", False) as chain, ProcessTarget(mapper.pid, engine) as target:
        yield Session(target, chain)


def read(mapper: Mapper, address: int, size: int = 3, epoch: int | None = None) -> bytes:
    """Memory of an epoch as the image has it; b"" where it has none."""
    view = Chain(mapper.directory).view(epoch)
    page = address // PAGE
    if page not in view.pages:
        return b""
    start = address % PAGE
    return view.read(view.pages[view.pages == page])[0].tobytes()[start : start + size]


def test_reservation_of_a_tebibyte(mapper: Mapper, session: Session) -> None:
    """It is neither scanned page by page, nor do page tables appear for it."""
    at = mapper.new(1 << 40, 3, 0x4022)
    mapper(f"put({at + (5 << 30)}, b'one')")
    before = int(status_field(mapper.pid, "VmPTE").split()[0])
    session.take()
    mapper(f"put({at + (700 << 30)}, b'two')")
    for _ in range(3):
        row = session.take()
    assert read(mapper, at + (5 << 30)) == b"one" and read(mapper, at + (700 << 30)) == b"two"
    assert int(status_field(mapper.pid, "VmPTE").split()[0]) < before + 64
    assert row["pages"] < 2000


@pytest.mark.parametrize("how", ["pwrite", "mapping", "untouched"])
def test_shared_memory_that_another_process_writes(
    root: None, process_engine: str, spawn: Spawn, tmp_path: Path, how: str
) -> None:
    fd = os.memfd_create("shared")
    os.ftruncate(fd, 64 * PAGE)
    mapper = Mapper(spawn, tmp_path / "c", pass_fds=(fd,))
    at = mapper.new(64 * PAGE, 3, 1, fd)
    if how != "untouched":
        mapper(f"put({at + 7 * PAGE}, b'own')")
    with mmap.mmap(fd, 64 * PAGE) as ours:
        for session in open_session(mapper, process_engine):
            session.take()
            if how == "pwrite":
                os.pwrite(fd, b"new", 7 * PAGE)
            else:
                ours[7 * PAGE : 7 * PAGE + 3] = b"new"
            session.take()
            assert session.take()["pages"] < 200
    assert read(mapper, at + 7 * PAGE, epoch=1) == b"new"
    assert read(mapper, at + 7 * PAGE, epoch=0) == (b"" if how == "untouched" else b"own")
    # Looking has allocated nothing of what nobody wrote.
    assert os.fstat(fd).st_blocks * 512 <= 2 * PAGE
    os.close(fd)


def test_large_shared_memory(mapper: Mapper, session: Session) -> None:
    """It is compared by all processors, each its share: every page that was written, and no other."""
    pages = 4099
    rng = np.random.default_rng(1)
    with mmap.mmap(-1, pages * PAGE) as ours:  # the same memory, which only we write
        fd = os.memfd_create("large")
        os.ftruncate(fd, pages * PAGE)
        with mmap.mmap(fd, pages * PAGE) as shared:
            shared[:] = ours[:] = rng.bytes(pages * PAGE)
            at = int(mapper(f"new({pages * PAGE}, 3, 1, os.open('/proc/{os.getpid()}/fd/{fd}', os.O_RDWR))"))
            mapper(f"[get({at} + page, 1) for page in range(0, {pages * PAGE}, {PAGE})].clear()")
            session.take()
            session.take()
            edges = [n for share in range(9) for n in range(pages * share // 8 - 1, pages * share // 8 + 3)]
            for chosen in (edges[1:-4], range(pages), [], rng.choice(pages, 700, replace=False), [pages - 1]):
                for page in map(int, chosen):
                    where = page * PAGE + int(rng.integers(PAGE))
                    shared[where] = ours[where] = (ours[where] + 1) % 256
                row = session.take()
                held = EpochFile(mapper.directory / f"epoch-{row['epoch']:08d}.core").pages
                found = held[(held >= at // PAGE) & (held < at // PAGE + pages)] - np.uint64(at // PAGE)
                assert sorted(map(int, chosen)) == found.tolist()
            view = Chain(mapper.directory).view(None)
            inside = (view.pages >= at // PAGE) & (view.pages < at // PAGE + pages)
            assert view.read(view.pages[inside]).tobytes() == ours[:]
        os.close(fd)


def test_shared_memory_that_is_exchanged(mapper: Mapper, session: Session) -> None:
    """Other shared memory at the same place: what stood there once is no reason to leave a page out."""
    at = mapper.new(16 * PAGE, 3, 0x21)
    for again in ("munmap", "MAP_FIXED"):
        mapper(f"put({at}, b'a' * {16 * PAGE})")
        session.take()
        if again == "munmap":
            mapper(f"libc.munmap(ctypes.c_void_p({at}), {16 * PAGE})")
            session.take()
        assert mapper(f"libc.mmap({at}, {16 * PAGE}, 3, 0x31, -1, 0)") == str(at)
        session.take()
        assert mapper(f"get({at + 9 * PAGE}, 3)") == repr(bytes(3))
        assert (read(mapper, at + 9 * PAGE) or bytes(3)) == bytes(3)
        mapper(f"put({at}, b'a' * {16 * PAGE})")
        session.take()
        assert read(mapper, at + 9 * PAGE) == b"aaa"


def test_shared_memory_in_a_second_base(mapper: Mapper, session: Session) -> None:
    """What could not be told page by page is taken whole, and nothing of before counts after."""
    at = mapper.new(16 * PAGE, 3, 0x21)
    mapper(f"put({at}, b'a' * {16 * PAGE})")
    session.take()
    session.pending.everything = True
    mapper(f"libc.madvise({at}, {16 * PAGE}, 9)")
    session.take()
    mapper(f"put({at}, b'a' * {16 * PAGE})")
    session.take()
    assert read(mapper, at + 9 * PAGE) == b"aaa"


def test_private_file_pages_come_and_go(mapper: Mapper, session: Session, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    at = int(mapper(f"new(65536, 3, 2, os.open({str(path)!r}, os.O_RDONLY))"))
    session.take()
    assert read(mapper, at) == b""
    mapper(f"put({at}, b'new')")
    session.take()
    assert read(mapper, at) == b"new"
    assert mapper(f"libc.madvise({at}, 4096, 4), get({at}, 3)") == "(0, b'abc')"
    session.take()
    # sync compares file mappings, and stores the file's own pages too.
    assert read(mapper, at) == (b"abc" if session.target.engine == "sync" else b"")
    mapper(f"put({at}, b'two')")
    session.take()
    assert read(mapper, at, 6) == b"twoabc"


def test_guard_pages_in_a_private_file_mapping(mapper: Mapper, session: Session, tmp_path: Path) -> None:
    """Some kernels never come back from MADV_GUARD_INSTALL over armed pages of a file."""
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    at = int(mapper(f"new(65536, 3, 2, os.open({str(path)!r}, os.O_RDONLY))"))
    mapper(f"put({at}, b'x' * {4 * PAGE})")
    session.take()
    session.take()
    assert mapper.process.stdin and mapper.process.stdout
    mapper.process.stdin.write(f"libc.madvise({at}, {2 * PAGE}, 102)\n".encode())
    mapper.process.stdin.flush()
    assert select.select([mapper.process.stdout], [], [], 30)[0], "the target does not come back"
    if mapper.process.stdout.readline() != b"0\n":
        pytest.skip("no MADV_GUARD_INSTALL over files (Linux 6.15)")
    session.take()
    assert read(mapper, at) in (b"", bytes(3))
    assert read(mapper, at + 3 * PAGE) == b"xxx"
    mapper(f"libc.madvise({at}, {2 * PAGE}, 103), put({at}, b'new')")
    session.take()
    assert read(mapper, at) == b"new"


def test_private_file_mapping_that_is_protected_and_not(
    mapper: Mapper, session: Session, tmp_path: Path
) -> None:
    """Read-only it is under traps, writable it is compared."""
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    at = int(mapper(f"new(65536, 3, 2, os.open({str(path)!r}, os.O_RDONLY))"))
    for text in (b"one", b"two", b"one", b"one"):
        mapper(f"put({at}, {text!r}), libc.mprotect(ctypes.c_void_p({at}), 65536, 1)")
        session.take()
        assert read(mapper, at, 4) == text + b"a"
        mapper(f"libc.mprotect(ctypes.c_void_p({at}), 65536, 3), put({at + PAGE}, {text!r})")
        session.take()
        assert read(mapper, at, 4) == text + b"a" and read(mapper, at + PAGE) == text
        mapper(f"libc.madvise({at}, 65536, 4)")
        session.take()
        assert (read(mapper, at) or b"abc") == b"abc"


def test_private_mapping_of_a_deleted_file(mapper: Mapper, session: Session, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    at = int(mapper(f"new(65536, 3, 2, os.open({str(path)!r}, os.O_RDONLY))"))
    path.unlink()
    assert mapper(f"get({at}, 3)") == "b'abc'"
    session.take()
    assert read(mapper, at) == b"abc"
    mapper(f"put({at}, b'new')")
    session.take()
    assert read(mapper, at) == b"new"
    mapper(f"libc.madvise({at}, 4096, 4)")
    session.take()
    assert read(mapper, at) == b"abc"


def test_private_mapping_of_a_memfd_that_is_written(mapper: Mapper, session: Session) -> None:
    """By write(2), which no page table of the target's shows: it sees that where it has not written."""
    fd = int(
        mapper(f"[fd := os.memfd_create('x'), os.ftruncate(fd, {16 * PAGE}), globals().update(fd=fd)][0]")
    )
    mapper(f"os.pwrite({fd}, b'a' * {16 * PAGE}, 0)")
    at = mapper.new(16 * PAGE, 3, 2, fd)
    assert mapper(f"get({at}, {8 * PAGE}) == b'a' * {8 * PAGE}") == "True"
    mapper(f"put({at + 5 * PAGE}, b'own')")
    session.take()
    assert read(mapper, at) == b"aaa" and read(mapper, at + 5 * PAGE, 4) == b"owna"
    mapper(f"os.pwrite({fd}, b'b' * {16 * PAGE}, 0)")
    session.take()
    for page in range(8 if os.geteuid() else 16):  # the last ones the target has never looked at
        expected = b"owna" if page == 5 else b"bbbb"
        assert mapper(f"get({at + page * PAGE}, 4)") == repr(expected)
        assert read(mapper, at + page * PAGE, 4) == expected, page
    mapper(f"put({at + 5 * PAGE}, b'two'), libc.madvise({at + 6 * PAGE}, 4096, 4)")
    row = session.take()
    assert read(mapper, at + 5 * PAGE, 4) == b"twoa" and read(mapper, at + 6 * PAGE) == b"bbb"
    assert row["pages"] < 300


def test_file_that_was_cut_short(mapper: Mapper, session: Session, tmp_path: Path) -> None:
    """Pages past the end of a file have no contents; the session goes on."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 8 * PAGE)
    at = int(mapper(f"new({8 * PAGE}, 3, 1, os.open({str(path)!r}, os.O_RDWR))"))
    mapper(f"[put({at} + i * {PAGE}, b'abc') for i in range(8)]")
    session.take()
    assert read(mapper, at + 6 * PAGE) == b"abc"
    os.truncate(path, 2 * PAGE)
    session.take()
    assert read(mapper, at) == b"abc"
    assert read(mapper, at + 6 * PAGE) in (b"", bytes(3))
    session.take()


def test_no_permission_to_read(mapper: Mapper, session: Session) -> None:
    at = mapper.new(16 * PAGE)
    mapper(f"put({at}, b'abc')")
    mapper(f"libc.mprotect(ctypes.c_void_p({at}), {16 * PAGE}, 0)")
    session.take()
    assert read(mapper, at) == b"abc"


def test_huge_pages(mapper: Mapper, session: Session) -> None:
    at = mapper.new(8 << 20)
    at = (at + (2 << 20) - 1) & ~((2 << 20) - 1)
    mapper(f"libc.madvise({at}, {4 << 20}, 14)")
    mapper(f"put({at}, b'a' * {4 << 20})")
    session.take()
    mapper(f"put({at + 100 * PAGE}, b'new')")
    row = session.take()
    assert read(mapper, at + 100 * PAGE, 4) == b"newa"
    assert row["pages"] < 1024
    mapper(f"libc.madvise({at}, {2 << 20}, 4)")
    session.take()
    assert read(mapper, at + 100 * PAGE) in (b"", bytes(3))
    assert read(mapper, at + (2 << 20)) == b"aaa"


@pytest.fixture
def huge_pool(root: None) -> Iterator[None]:
    """Eight pages of 2 MiB in the host's pool."""
    if not Path(HUGE_PAGES).exists():
        missing("pages of 2 MiB (hugetlb)")
    with alone_on(HUGE_PAGES) as pool:
        wanted = int(pool.read_text()) + 8
        pool.write_text(str(wanted))
        if int(pool.read_text()) < wanted:
            pytest.skip("no room for huge pages")
        yield


@pytest.mark.parametrize("then", ["nothing", "read", "write"])
def test_hugetlb(huge_pool: None, mapper: Mapper, session: Session, then: str) -> None:
    at = mapper.new(4 << 20, 3, 0x40022)
    mapper(f"put({at}, b'abc'), put({at + (2 << 20)}, b'def')")
    session.take()
    assert read(mapper, at) == b"abc" and read(mapper, at + (2 << 20)) == b"def"
    assert mapper(f"libc.madvise({at}, {2 << 20}, 4)") == "0"
    expected = bytes(3)
    if then == "read":
        assert mapper(f"get({at}, 3)") == repr(expected)
    elif then == "write":
        expected = b"new"
        mapper(f"put({at}, b'new')")
    session.take()
    assert (read(mapper, at) or bytes(3)) == expected
    mapper(f"put({at}, b'abc')")  # what was stored of it once, and is void
    session.take()
    assert read(mapper, at) == b"abc" and read(mapper, at + (2 << 20)) == b"def"


def hole(mapper: Mapper, size: int) -> int:
    """Where `size` bytes can be mapped, far from other memory."""
    at = mapper.new(size + (2 << 20), 0)
    mapper(f"libc.munmap(ctypes.c_void_p({at}), ctypes.c_size_t({size + (2 << 20)}))")
    return at + (1 << 20)


def map_piece(mapper: Mapper, at: int, size: int, text: str) -> None:
    assert int(mapper(f"libc.mmap({at}, {size}, 3, 0x100022, -1, 0)")) == at
    mapper(f"[put({at} + page, b'{text}') for page in range(0, {size}, {PAGE})]")


@pytest.mark.parametrize("how", ["mmap", "brk"])
def test_heap_that_grows_does_not_take_a_mapping_for_each_epoch(
    mapper: Mapper, session: Session, how: str
) -> None:
    """The kernel has a limit of mappings, and merges no piece that was written before it was registered."""
    size, epochs = 16 * PAGE, 30
    at = hole(mapper, epochs * size)
    places: list[int] = []
    session.take()
    mapper("setattr(libc.sbrk, 'restype', ctypes.c_void_p)")
    before = Path(f"/proc/{mapper.pid}/maps").read_text().count("\n")
    for i in range(epochs):
        if how == "mmap":
            places.append(at + i * size)
            map_piece(mapper, places[i], size, f"{i:03}")
        else:
            places.append(int(mapper(f"libc.sbrk(ctypes.c_long({size}))")))
            mapper(f"[put({places[i]} + page, b'{i:03}') for page in range(0, {size}, {PAGE})]")
        session.take()
    gained = Path(f"/proc/{mapper.pid}/maps").read_text().count("\n") - before
    assert gained <= epochs * size // (512 << 10) + 4
    for i, place in enumerate(places):
        assert read(mapper, place + size - PAGE) == b"%03d" % i


@pytest.mark.parametrize("registered", ["before", "after"])
def test_pieces_that_the_kernel_merges_are_one_mapping_for_mremap(
    mapper: Mapper, session: Session, registered: str
) -> None:
    """mremap(2) over two mappings says EFAULT."""
    size = 64 * PAGE
    at = hole(mapper, 4 * size)
    mapper("setattr(libc.mremap, 'restype', ctypes.c_void_p)")
    if registered == "after":
        session.take()
    map_piece(mapper, at, size, "one")
    session.take()
    map_piece(mapper, at + size, size, "two")
    session.take()
    old, new = f"ctypes.c_void_p({at}), ctypes.c_size_t({2 * size})", f"ctypes.c_size_t({64 * size})"
    to = int(mapper(f"libc.mremap({old}, {new}, 1)"))
    assert to != 2**64 - 1
    mapper(f"put({to + 5 * PAGE}, b'new')")
    mapper(f"put({to + 60 * size}, b'far')")
    session.take()
    assert read(mapper, to) == b"one" and read(mapper, to + size) == b"two"
    assert read(mapper, to + 5 * PAGE) == b"new" and read(mapper, to + 60 * size) == b"far"
    mapper(f"put({to + 5 * PAGE}, b'1st')")
    session.take()
    assert read(mapper, to + 5 * PAGE) == b"1st" and (to == at or read(mapper, at) == b"")
