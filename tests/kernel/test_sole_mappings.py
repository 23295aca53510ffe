"""Shared memory that only the process maps is followed by traps, unless somebody else may have written it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import usable
from tests.helpers import Spawn, broken, state_of, traps
from tests.kernel.sole import FORK, PAGES, SIZE, Sole, attach_and_write, opened, own
from uffdtrack import PAGE

pytestmark = pytest.mark.slow
"""Memory is followed only where the host makes no process for a moment: not beside other tests, reliably."""


@pytest.fixture
def sole_of(root: None, spawn: Spawn, tmp_path: Path) -> Callable[[str], Sole]:
    return lambda kind: Sole(spawn, tmp_path / "c", kind)


@pytest.fixture(params=["anonymous", "segment"])
def sole(request: pytest.FixtureRequest, sole_of: Callable[[str], Sole]) -> Sole:
    return sole_of(request.param)


def by_map_files(sole: Sole) -> None:
    with opened(sole) as memory:
        memory[7 * PAGE : 7 * PAGE + 3] = b"new"


def by_pwrite(sole: Sole) -> None:
    fd = os.open(sole.link, os.O_RDWR)
    os.pwrite(fd, b"new", 7 * PAGE)
    os.close(fd)


def by_its_memory(sole: Sole) -> None:
    """As a debugger writes: with the page tables of the process."""
    with open(f"/proc/{sole.mapper.pid}/mem", "r+b", buffering=0) as mem:
        mem.seek(sole.at + 7 * PAGE)
        mem.write(b"new")


def by_truncate(sole: Sole) -> None:
    os.truncate(sole.link, 2 * PAGE)
    os.truncate(sole.link, SIZE)


TRICKS: dict[str, Callable[[Sole], None]] = {
    "write": own("put({at} + 7 * {page}, b'new')"),
    "fork": own(FORK.format("put({at} + 7 * {page}, b'new')")),
    "grandchild": own(FORK.format("os.fork() or (put({at} + 7 * {page}, b'new'), os._exit(0)), os.wait()")),
    "thread that forks": own(
        "[(t.start(), t.join()) for t in [threading.Thread(target=lambda: "
        + FORK.format("put({at} + 7 * {page}, b'new')")
        + ")]]"
    ),
    "mapped twice": own(
        "[(put(b + 7 * {page}, b'new'), libc.munmap(b, {size}))"
        " for b in [libc.mremap({at}, 0, {size}, 1, 0)]]"
    ),
    "moved and back": own(
        "[(put(b + 7 * {page}, b'new'), libc.mremap(b, {size}, {size}, 3, {at})) for b in "
        "[libc.mremap({at}, {size}, {size}, 3, {at} + 64 * {size})]]"
    ),
    "given back, and read": own("(libc.madvise({at}, 16 * {page}, 9), get({at}, 16 * {page}).count(0))"),
    "unmapped pages": own("(put({at} + 7 * {page}, b'new'), libc.madvise({at}, {size}, 4))"),
    "all written, unmapped": own(
        "([put({at} + n * {page}, b'new') for n in range({pages})].clear(), libc.madvise({at}, {size}, 4))"
    ),
    "other order of pages": own(
        "(libc.remap_file_pages({at}, {page}, 0, 9, 0), put({at}, b'new'),"
        " libc.remap_file_pages({at}, {page}, 0, 0, 0))"
    ),
    "protected in parts": own("(libc.mprotect({at}, {page}, 1), put({at} + 7 * {page}, b'new'))"),
    "opened by itself": own(
        "[(os.pwrite(f, b'new', 7 * {page}), os.close(f)) for f in [os.open('{link}', os.O_RDWR)]]"
    ),
    "map_files": by_map_files,
    "pwrite": by_pwrite,
    "debugger": by_its_memory,
    "truncated": by_truncate,
    "attached": lambda sole: attach_and_write(sole.segment, 7, b"new"),
}
UNSEEN = ["fork", "map_files", "given back, and read", "attached"]
"""What traps alone do not tell of."""


def cases() -> Iterator[tuple[str, str, str]]:
    for trick in TRICKS:
        for kind in ["anonymous", "segment"]:
            for engine in ["ring", "scan", "sync"]:
                if kind == "segment" or trick != "attached":
                    yield kind, engine, trick


@pytest.mark.parametrize(("kind", "engine", "trick"), list(cases()))
def test_whoever_writes_it(
    sole_of: Callable[[str], Sole], kernel: None, kind: str, engine: str, trick: str
) -> None:
    sole, process_engine = sole_of(kind), usable(engine)
    with sole.session(process_engine) as session:
        if process_engine == "sync":
            assert [sole.take(session) for _ in range(3)] == [0, 0, 0]
        else:
            sole.follow(session)
        for again in range(2):
            sole.check()
            TRICKS[trick](sole)
            sole.take(session)
            sole.check()
            sole.write(9, f"own {again}")
            sole.write(PAGES - 1, f"own {again}")
            sole.take(session)
            sole.check()


@pytest.mark.parametrize("engine", ["ring", "scan"])
@pytest.mark.parametrize(
    ("kind", "trick"),
    [("anonymous", trick) for trick in UNSEEN[:-1]] + [("segment", trick) for trick in UNSEEN],
)
def test_negative_control(
    sole_of: Callable[[str], Sole], kernel: None, engine: str, kind: str, trick: str
) -> None:
    sole = sole_of(kind)
    with sole.session(engine) as session:
        sole.follow(session)
        with broken("sharers"):
            TRICKS[trick](sole)
            sole.take(session)
        with pytest.raises(AssertionError):
            sole.check()


@pytest.mark.parametrize("who", ["child", "visitor"])
def test_somebody_who_stays(sole: Sole, kernel: None, who: str) -> None:
    """It is compared until they have gone, and followed then."""
    sole.mapper("globals().update(pipe=os.pipe(), done=os.pipe())")
    child = (
        "os.fork() or [(os.read(pipe[0], 1) != b'q' or os._exit(0), "
        f"put({sole.at} + 3 * {PAGE}, b'%f' % time.time()), os.write(done[1], b'.')) for _ in iter(int, 1)]"
    )
    for base_first in (False, True):
        with sole.session("scan") as session:
            if base_first:
                sole.follow(session)
            if who == "child":
                sole.mapper(f"globals().update(child={child})")
            else:
                fd = os.open(sole.link, os.O_RDWR)
            for n in range(4):
                if who == "child":
                    sole.mapper("(os.write(pipe[1], b'w'), os.read(done[0], 1))")
                else:
                    os.pwrite(fd, b"visit %d" % n, 3 * PAGE)
                assert sole.take(session) == 0
                sole.check()
            if who == "child":
                sole.mapper("(os.write(pipe[1], b'q'), os.waitpid(child, 0))")
            else:
                os.close(fd)
            sole.follow(session)
            sole.write(5, "after")
            sole.take(session)
            sole.check()
            for path in sole.mapper.directory.glob("*"):
                path.unlink()
            sole.forget()


@pytest.mark.parametrize("engine", ["ring", "scan"])
def test_the_process_does_not_depend_on_us(
    sole: Sole, kernel: None, spawn: Spawn, tmp_path: Path, engine: str
) -> None:
    """It writes and forks while we are frozen, and nothing of ours is left after we are killed."""
    before = state_of(sole.mapper.pid)
    program = (
        f"from tests.kernel.sole import hold; hold({sole.mapper.pid}, {str(tmp_path / 'h')!r}, {engine!r})"
    )
    us = spawn(sys.executable, "-c", program, cwd=Path(__file__).parents[2])
    assert us.stdout and us.stdout.readline() == b"followed\n"
    assert traps(sole.mapper.pid)
    us.send_signal(signal.SIGSTOP)
    for n in range(3):
        own(FORK.format(f"put({{at}} + {n} * {{page}}, b'child')"))(sole)
        sole.write(n + 3, "own")
    us.kill()
    us.wait()
    for trick in ("mapped twice", "moved and back", "given back, and read", "fork"):
        TRICKS[trick](sole)
    assert not traps(sole.mapper.pid)
    assert state_of(sole.mapper.pid) == before
