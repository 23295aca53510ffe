"""ring and sync on an attached process: where they look, what makes ring look everywhere, the limit."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from checkpoint.session import Session
from tests.helpers import broken
from tests.kernel.mapper import Mapper, open_session, read
from uffdtrack import PAGE

BIG = 256 * PAGE
"""More than is compared in place of followed."""

PREPARE = """
[setattr(libc, "argtypes", None),
 exec("libc.mremap.restype = ctypes.c_void_p"),
 exec("libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int] "
      "+ [ctypes.c_void_p]"),
 exec("def pvm(at, text):\\n"
      "    local = (ctypes.c_size_t * 2)(ctypes.addressof(ctypes.create_string_buffer(text)), len(text))\\n"
      "    buffer = ctypes.create_string_buffer(text)\\n"
      "    local[0] = ctypes.addressof(buffer)\\n"
      "    remote = (ctypes.c_size_t * 2)(at, len(text))\\n"
      "    return libc.process_vm_writev(os.getpid(), local, 1, remote, 1, 0)", globals()),
 1][-1]
""".replace("\n", "")


@pytest.fixture
def session(following: str, mapper: Mapper) -> Iterator[Session]:
    """A session that has taken its base and one epoch."""
    assert mapper(PREPARE) == "1"
    for session in open_session(mapper, following):
        session.take()
        session.take()
        yield session


def quiet(session: Session) -> None:
    """Take epochs until none of the interpreter's own doings makes the engine look everywhere."""
    for _ in range(20):
        if not session.take().scanned:
            return
    raise AssertionError("it always looks everywhere")


def test_looks_only_where_there_were_faults(mapper: Mapper, session: Session) -> None:
    at = mapper.new(1024 * PAGE)
    mapper(f"[put({at} + i * {PAGE}, b'old') for i in range(1024)]")
    quiet(session)
    mapper(f"put({at + 7 * PAGE}, b'new'), get({at + 9 * PAGE}, 3)")
    row = session.take()
    assert not row.scanned and row.engine == session.target.engine and row.pages < 300
    assert read(mapper, at + 7 * PAGE) == b"new" and read(mapper, at + 9 * PAGE) == b"old"


def test_new_pages_of_a_mapping_that_is_known(mapper: Mapper, session: Session) -> None:
    at = mapper.new(64 << 20)
    quiet(session)
    for i in (0, 5000, 5001, 16000):
        mapper(f"put({at + i * PAGE}, b'new')")
        assert not session.take().scanned
        assert read(mapper, at + i * PAGE) == b"new"


def test_huge_page_comes_with_one_fault(mapper: Mapper, session: Session) -> None:
    at = mapper.new(8 << 20)
    at = (at + (2 << 20) - 1) & ~((2 << 20) - 1)
    mapper(f"libc.madvise({at}, {4 << 20}, 14)")
    quiet(session)
    mapper(f"put({at}, b'a' * {4 << 20})")
    session.take()
    assert all(read(mapper, at + i * PAGE) == b"aaa" for i in (0, 1, 511, 512, 1023))
    mapper(f"put({at + 700 * PAGE}, b'new')")
    assert session.take().pages < 600
    assert read(mapper, at + 700 * PAGE) == b"new" and read(mapper, at + 701 * PAGE) == b"aaa"


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(
    ("advice", "huge"), [(4, False), (4, True), (8, False)], ids=["DONTNEED", "huge DONTNEED", "FREE"]
)
def test_memory_that_is_given_back(
    mapper: Mapper, session: Session, advice: int, huge: bool, again: bool
) -> None:
    at = (mapper.new(16 << 20) + (2 << 20) - 1) & ~((2 << 20) - 1)
    if huge:
        mapper(f"libc.madvise({at}, {8 << 20}, 14)")
    mapper(f"put({at}, b'a' * {8 << 20})")
    quiet(session)
    assert mapper(f"libc.madvise({at + PAGE}, {4 << 20}, {advice})") == "0"
    if again:
        mapper(f"put({at + 5 * PAGE}, b'new')")
    assert not session.take().scanned
    for i in range(0, 1026, 5):
        expected = b"new" if again and i == 5 else b"aaa" if i == 0 or i > 1024 else bytes(3)
        found = read(mapper, at + i * PAGE) or bytes(3)
        assert found == expected or (advice == 8 and found == b"aaa"), i
    mapper(f"put({at + 6 * PAGE}, b'two')")
    session.take()
    assert read(mapper, at + 6 * PAGE) == b"two"


@pytest.mark.parametrize("flags", [1, 5], ids=["", "DONTUNMAP"])
def test_mapping_that_moves(mapper: Mapper, session: Session, flags: int) -> None:
    at = mapper.new(65 * PAGE)
    # What is behind it keeps it from growing in place.
    assert mapper(f"libc.mprotect(ctypes.c_void_p({at + 64 * PAGE}), ctypes.c_size_t({PAGE}), 0)") == "0"
    mapper(f"[put({at} + i * {PAGE}, b'old') for i in range(64)]")
    quiet(session)
    size = 64 * PAGE if flags == 5 else 65 * PAGE
    to = int(mapper(f"libc.mremap({at}, {64 * PAGE}, {size}, {flags}, 0)"))
    assert to != at
    session.take()
    assert read(mapper, to + 9 * PAGE) == b"old"
    assert (read(mapper, at + 9 * PAGE) or bytes(3)) == bytes(3)
    mapper(f"put({to + 9 * PAGE}, b'new')")
    session.take()
    assert read(mapper, to + 9 * PAGE) == b"new" and read(mapper, to + 10 * PAGE) == b"old"


def test_mapping_that_shrinks_and_grows_in_place(mapper: Mapper, session: Session) -> None:
    at = mapper.new(64 * PAGE)
    mapper(f"[put({at} + i * {PAGE}, b'old') for i in range(64)]")
    quiet(session)
    shrunk = mapper(f"libc.mremap({at}, {64 * PAGE}, {8 * PAGE}, 0, 0)")
    grown = mapper(f"libc.mremap({at}, {8 * PAGE}, {64 * PAGE}, 0, 0)")
    assert shrunk == grown == str(at)
    session.take()
    assert read(mapper, at + 7 * PAGE) == b"old"
    assert (read(mapper, at + 20 * PAGE) or bytes(3)) == bytes(3)


def test_write_without_a_sample_is_noticed(mapper: Mapper, session: Session) -> None:
    """GUP: the audit of ring sees that there were more faults than samples; sync sees all faults."""
    at = mapper.new(BIG)
    mapper(f"[put({at} + i * {PAGE}, b'old') for i in range(64)]")
    quiet(session)
    assert mapper(f"pvm({at + 7 * PAGE}, b'new')") == "3"
    assert session.take().scanned == (session.target.engine == "ring")
    assert read(mapper, at + 7 * PAGE) == b"new"
    if session.target.engine != "ring":
        return
    quiet(session)
    assert mapper(f"pvm({at + 8 * PAGE}, b'new')") == "3"
    with broken("audit"):
        assert not session.take().scanned
    assert read(mapper, at + 8 * PAGE) == b"old"  # the negative control


def test_threads_and_children(mapper: Mapper, session: Session) -> None:
    """A thread that is new is followed; a vfork child writes in its parent's memory."""
    at = mapper.new(64 * PAGE)
    mapper(f"[put({at} + i * {PAGE}, b'old') for i in range(64)]")
    mapper(
        "exec('import threading, queue, subprocess; work, done = queue.Queue(), queue.Queue()', globals())"
    )
    mapper("exec('def serve():\\n    while True: put(*work.get()); done.put(1)', globals())")
    quiet(session)
    mapper("threading.Thread(target=serve, daemon=True).start()")
    assert mapper(f"work.put(({at + 7 * PAGE}, b'new')), done.get()") == "(None, 1)"
    assert session.take().scanned == (session.target.engine == "ring")
    assert read(mapper, at + 7 * PAGE) == b"new"
    quiet(session)
    assert mapper(f"work.put(({at + 8 * PAGE}, b'new')), done.get()") == "(None, 1)"
    assert not session.take().scanned
    assert read(mapper, at + 8 * PAGE) == b"new"
    assert mapper("subprocess.run(['true'], close_fds=False).returncode") == "0"
    assert session.take().scanned == (session.target.engine == "ring")


def test_writers_outside_of_the_process(root: None, mapper: Mapper, process_engine: str) -> None:
    """Another process writes by process_vm_writev(2): ring does not see it (docs/engines.md)."""
    at = mapper.new(BIG)
    mapper(f"put({at}, b'old')")
    libc = ctypes.CDLL(None, use_errno=True)
    text = ctypes.create_string_buffer(b"new")
    local = (ctypes.c_size_t * 2)(ctypes.addressof(text), 3)
    remote = (ctypes.c_size_t * 2)(at, 3)
    for session in open_session(mapper, process_engine):
        session.take()
        quiet(session) if process_engine != "scan" else session.take()
        assert libc.process_vm_writev(mapper.pid, local, 1, remote, 1, 0) == 3
        seen = session.take().scanned or process_engine == "sync"
        assert read(mapper, at) == (b"new" if seen else b"old")
        assert seen or process_engine == "ring"


def test_guard_pages(mapper: Mapper, session: Session) -> None:
    """MADV_GUARD_INSTALL empties pages and tells nobody: the old contents stay until they are touched."""
    at = mapper.new(BIG)
    mapper(f"put({at}, b'a' * {64 * PAGE})")
    quiet(session)
    if mapper(f"libc.madvise({at + 4 * PAGE}, {4 * PAGE}, 102)") != "0":
        pytest.skip("no MADV_GUARD_INSTALL (Linux 6.13)")
    assert mapper(f"libc.madvise({at + 4 * PAGE}, {4 * PAGE}, 103)") == "0"
    assert not session.take().scanned
    assert read(mapper, at + 5 * PAGE) == b"aaa"
    assert mapper(f"get({at + 5 * PAGE}, 3)") == repr(bytes(3))
    session.take()
    assert read(mapper, at + 5 * PAGE) == bytes(3)
