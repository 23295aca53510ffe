"""A process that maps what it is told to, and what an image has of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from tests.helpers import Spawn
from uffdtrack import PAGE

MAPPER = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mremap.restype = ctypes.c_void_p
def new(size, prot=3, flags=0x22, fd=-1):
    at = libc.mmap(None, size, prot, flags, fd, 0)
    assert at != 2**64 - 1, os.strerror(ctypes.get_errno())
    return at
def move(at, size, to):
    # Nothing else may come to where it was.
    old, new = (ctypes.c_void_p(place) for place in (at, to))
    moved = libc.mremap(old, ctypes.c_size_t(size), ctypes.c_size_t(size), 3, new)
    assert moved == to, os.strerror(ctypes.get_errno())
    return libc.mmap(at, size, 0, 0x32, -1, 0) == at
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


def open_session(mapper: Mapper, engine: str, follow_shared: bool = False) -> Iterator[Session]:
    with (
        ChainWriter(mapper.directory, b"", False) as chain,
        ProcessTarget(mapper.pid, engine, follow_shared=follow_shared) as target,
    ):
        yield Session(target, chain)


def read(mapper: Mapper, address: int, size: int = 3, epoch: int | None = None) -> bytes:
    """Memory of an epoch as the image has it; b"" where it has none."""
    view = Chain(mapper.directory).view(epoch)
    page = address // PAGE
    if page not in view.pages:
        return b""
    start = address % PAGE
    return view.read(view.pages[view.pages == page])[0].tobytes()[start : start + size]
