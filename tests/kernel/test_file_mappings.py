"""Mappings of files, deleted ones and memfds: which pages are the file's own, and which are not."""

from __future__ import annotations

import os
import select
from pathlib import Path

import numpy as np
import pytest

from checkpoint.chain import Chain
from checkpoint.session import Session
from tests.helpers import broken
from tests.kernel.mapper import Mapper, read
from uffdtrack import PAGE
from uffdtrack.runs import no_runs, to_runs


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


@pytest.mark.parametrize(("first", "protection"), [(0, 0), (12, 1)])
def test_a_private_file_mapping_stays_one_where_pieces_of_it_are_protected_and_not(
    mapper: Mapper, session: Session, tmp_path: Path, first: int, protection: int
) -> None:
    """mremap(2) over two pieces would say EFAULT, from Linux 6.17 on after it has moved the first."""
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    at = int(mapper(f"new(65536, 3, 2, os.open({str(path)!r}, os.O_RDONLY))"))
    piece = at + first * PAGE
    aside = int(mapper("new(65536, 0, 34, -1)"))
    mapper(f"put({at + 8 * PAGE}, b'a'), put({piece}, b'b')")
    mapper(f"libc.mprotect(ctypes.c_void_p({piece}), {4 * PAGE}, {protection})")
    session.take()
    mapper(f"libc.mprotect(ctypes.c_void_p({piece}), {4 * PAGE}, 3)")
    session.take()
    assert mapper(f"move({at}, 65536, {aside}), move({aside}, 65536, {at})") == "(True, True)"
    for text, protected in ((b"c", 1), (b"d", 2), (b"e", 0)):
        mapper(f"libc.mprotect(ctypes.c_void_p({piece}), {4 * PAGE}, {protection})")
        for _ in range(protected):
            session.take()
        mapper(f"libc.mprotect(ctypes.c_void_p({piece}), {4 * PAGE}, 3), put({piece}, {text!r})")
        assert mapper(f"move({at}, 65536, {aside}), move({aside}, 65536, {at})") == "(True, True)"
        session.take()
        assert read(mapper, piece, 1) == text and read(mapper, at + 8 * PAGE, 1) == b"a"


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
    assert row.pages < 300


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


def test_a_mapping_that_changes_while_it_is_armed(mapper: Mapper, session: Session, tmp_path: Path) -> None:
    """Traps are set, and then the look at its pages fails: nobody has taken them until the next harvest."""
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    of_file = int(mapper(f"new(65536, 3, 2, os.open({str(path)!r}, os.O_RDONLY))"))
    mapper(f"put({of_file}, b'own'), libc.mprotect(ctypes.c_void_p({of_file}), 65536, 1)")
    anonymous = int(mapper("new(1 << 22, 3, 0x22, -1)"))
    mapper(f"put({anonymous}, b'new')")
    with broken("refuse"):
        session.take()
    assert (read(mapper, of_file), read(mapper, anonymous)) == (b"own", b"new")
    mapper(f"put({anonymous}, b'two')")
    session.take()
    assert (read(mapper, of_file), read(mapper, anonymous)) == (b"own", b"two")


def test_what_is_pending_beside_what_is_not(mapper: Mapper, session: Session, tmp_path: Path) -> None:
    """It is copied again, and nothing between it; what was given back is the mapping's own again."""
    path = tmp_path / "f"
    path.write_bytes(b"f" * (64 * PAGE))
    of_file = int(mapper(f"new({64 * PAGE}, 3, 2, os.open({str(path)!r}, os.O_RDONLY))"))
    for at, step, given_back in ((of_file, 2, (b"", b"fff")), (mapper.new(8 << 20), 1, (b"", bytes(3)))):
        mapper(f"[put({at} + page * {PAGE}, b'own') for page in range(0, 64, {step})]")
        session.take()
        for page in (8, 9):
            mapper(f"libc.madvise({at + page * PAGE}, {PAGE}, 4)")
        session.take()
        pages = np.array([at // PAGE + page for page in range(0, 64, 4)], np.uint64)
        session.target.pending.add(to_runs(pages), no_runs())
        session.take()
        file = Chain(mapper.directory).open(None)
        stored = {int(page) - at // PAGE for page in file.pages} & set(range(0, 64, step))
        assert stored - {8} == set(range(0, 64, 4)) - {8}
        assert read(mapper, at + 8 * PAGE) in given_back and read(mapper, at + 12 * PAGE) == b"own"
