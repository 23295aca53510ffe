"""Kinds of mappings one by one: what of them an epoch holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint.session import Session
from tests.conftest import missing
from tests.helpers import HUGE_PAGES, alone_on
from tests.kernel.mapper import Mapper, read
from uffdtrack import PAGE, status_field


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
    assert row.pages < 2000


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
    assert row.pages < 1024
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
