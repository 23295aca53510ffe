"""Calls under way when a rollback sets traps: they have pinned pages, and write them with no fault."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.helpers import Build, Spawn, broken
from tests.kernel.rolled import WITHOUT_RSEQ, Target, wrong

TRIES = 30
"""Rollbacks in which the negative control has to show."""

READER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
memory = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
page = memoryview(memory)[2 << 20 :][:4]
for n in range(1 << 20):
    os.preadv(fd, [page], n)
    if not n: print(flush=True)
"""


@pytest.fixture
def reading(root: None, checked: None, spawn: Spawn, build: Build, tmp_path: Path) -> Iterator[int]:
    """A process that reads into one page, past the page cache: now this, 80 ms later that."""
    mount = tmp_path / "m"
    mount.mkdir()
    server = spawn(build("fusefs"), mount, 80)
    assert server.stdout
    if server.stdout.readline() != b"mounted\n":
        missing("FUSE")
    reader = spawn(sys.executable, "-S", "-c", READER, mount / "file", env=WITHOUT_RSEQ)
    try:
        assert reader.stdout and reader.stdout.readline()
        yield reader.pid
    finally:
        reader.kill()
        server.send_signal(signal.SIGTERM)
        subprocess.run(["umount", "-l", mount], check=False)


def test_calls_under_way_when_the_traps_are_set(
    by: str, reading: int, stack: ExitStack, tmp_path: Path
) -> None:
    """They end before anything is compared."""
    target = Target(stack, reading, tmp_path / "c", by)
    for _ in range(4):
        assert not wrong(target.back_to())


@pytest.mark.slow
def test_calls_under_way_and_not_awaited(by: str, reading: int, stack: ExitStack, tmp_path: Path) -> None:
    """Negative control: it needs a call that outlasts the comparison."""
    target = Target(stack, reading, tmp_path / "c", by)
    with broken("barrier"):
        assert any(wrong(target.back_to()) for _ in range(TRIES))
