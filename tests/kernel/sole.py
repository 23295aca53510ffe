"""A process with one piece of shared memory, and visitors to it that leave again."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoint.chain_writer import ChainWriter
from checkpoint.image import EpochFile
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from tests.helpers import Spawn, wait_for
from tests.kernel.mapper import Mapper, open_session
from tests.oracle import Memory
from uffdtrack import PAGE

PAGES = 512
SIZE = PAGES * PAGE
PREPARE = [
    "globals().update(time=__import__('time'), threading=__import__('threading'))",
    *(f"setattr(libc.{name}, 'restype', ctypes.c_void_p)" for name in ("mremap", "shmat")),
    *(
        f"setattr(libc.{name}, 'argtypes', [ctypes.c_void_p, *[ctypes.c_size_t] * {sizes}])"
        for name, sizes in [
            ("mremap", 4),
            ("munmap", 1),
            ("shmdt", 0),
            ("remap_file_pages", 4),
            ("mprotect", 2),
        ]
    ),
]

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmdt.argtypes = [ctypes.c_void_p]


class Sole:
    """A process that has shared memory of one kind, "anonymous" or "segment", and a session on it.

    Attributes:
        at, segment: the address; the id of the System V segment, or -1.
        link: its /proc/PID/map_files.
    """

    def __init__(self, spawn: Spawn, directory: Path, kind: str) -> None:
        self.mapper = Mapper(spawn, directory)
        for line in PREPARE:
            self.mapper(line)
        self.segment = -1
        if kind == "segment":
            self.segment = int(self.mapper(f"libc.shmget(0, {SIZE}, 0o1600)"))
            self.at = int(self.mapper(f"libc.shmat({self.segment}, None, 0)"))
            self.mapper(f"libc.shmctl({self.segment}, 0, None)")  # gone with its last mapping
        else:
            self.at = self.mapper.new(SIZE, 3, 0x21)
        self.mapper(f"[put({self.at} + n * {PAGE}, b'%d first' % n) for n in range({PAGES})].clear()")
        self.link = f"/proc/{self.mapper.pid}/map_files/{self.at:x}-{self.at + SIZE:x}"
        self._memory, self._epochs, self._compared = Memory(0), 0, 0

    @contextmanager
    def session(self, engine: str, follow_shared: bool = True) -> Iterator[Session]:
        for session in open_session(self.mapper, engine, follow_shared):
            self._compared = session.take().compared
            yield session

    def take(self, session: Session) -> int:
        """Take an epoch; returns how many mappings fewer than in the base were compared."""
        return self._compared - session.take().compared

    def follow(self, session: Session) -> None:
        wait_for(lambda: self.take(session) == 1, "its shared memory is followed")

    def forget(self) -> None:
        """The next session begins with a base of its own, in an empty directory."""
        self._memory, self._epochs = Memory(0), 0

    def write(self, page: int, text: str) -> None:
        self.mapper(f"put({self.at + page * PAGE}, {text.encode()!r})")

    def check(self) -> None:
        """The last epoch has what its memory holds; nothing has been written since."""
        files = sorted(self.mapper.directory.glob("epoch-*.core"))
        for path in files[self._epochs :]:
            self._memory.apply(EpochFile(path))
        self._epochs = len(files)
        with open(f"/proc/{self.mapper.pid}/mem", "rb", buffering=0) as mem:
            mem.seek(self.at)
            assert self._memory.read(self.at, SIZE) == mem.read(SIZE)


FORK = "os.waitpid(os.fork() or ({}, os._exit(0)), 0)"


def own(expression: str) -> Callable[[Sole], None]:
    """What the process does itself, with `at` and `size`."""

    def do(sole: Sole) -> None:
        text = expression.format(
            at=sole.at, size=SIZE, page=PAGE, segment=sole.segment, pages=PAGES, link=sole.link
        )
        assert sole.mapper(text) != "", "it has died"

    return do


@contextmanager
def opened(sole: Sole) -> Iterator[mmap.mmap]:
    """We come by /proc/PID/map_files."""
    fd = os.open(sole.link, os.O_RDWR)
    try:
        with mmap.mmap(fd, SIZE) as memory:
            yield memory
    finally:
        os.close(fd)


def hold(pid: int, directory: str, engine: str) -> None:
    """For a process of its own: a session that follows the shared memory, until a line comes in."""
    with (
        ChainWriter(Path(directory), b"", False) as chain,
        ProcessTarget(pid, engine, follow_shared=True) as target,
    ):
        session = Session(target, chain)
        compared = session.take().compared
        wait_for(lambda: session.take().compared < compared, "its shared memory is followed")
        print("followed", flush=True)
        sys.stdin.readline()


def attach_and_write(segment: int, page: int, text: bytes) -> None:
    """We attach a System V segment."""
    at = libc.shmat(segment, None, 0)
    assert at != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    ctypes.memmove(at + page * PAGE, text, len(text))
    libc.shmdt(at)
