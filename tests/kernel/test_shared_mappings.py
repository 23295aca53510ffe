"""Shared memory: what others write of it, what comes in its place."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from checkpoint.chain import Chain
from checkpoint.image import EpochFile
from checkpoint.session import Session
from tests.helpers import Spawn
from tests.kernel.mapper import Mapper, open_session, read
from uffdtrack import PAGE


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
            assert session.take().pages < 200
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
                held = EpochFile(mapper.directory / f"epoch-{row.epoch:08d}.core").pages
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
    session.target.pending.everything = True
    mapper(f"libc.madvise({at}, {16 * PAGE}, 9)")
    session.take()
    mapper(f"put({at}, b'a' * {16 * PAGE})")
    session.take()
    assert read(mapper, at + 9 * PAGE) == b"aaa"
