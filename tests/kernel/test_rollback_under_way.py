"""Calls under way when a rollback sets traps: they have pinned pages, and write them with no fault."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.helpers import Build, Spawn, broken, wait_for
from tests.kernel.rolled import WITHOUT_RSEQ, Target, after_comparison, wrong
from uffdtrack import PAGE

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


def first_byte(pid: int, address: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(1)


def test_what_a_ring_has_pinned_is_compared_in_the_stop(
    by: str, kernel: None, stack: ExitStack, spawn: Spawn, build: Build, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The kernel writes it after the comparison, and no trap tells."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = spawn(build("pinned"), fifo, env=WITHOUT_RSEQ)
    assert process.stdout
    address = int(process.stdout.readline(), 16)
    target = Target(stack, process.pid, tmp_path / "c", by)

    def write() -> None:
        fd = os.open(fifo, os.O_WRONLY)
        os.write(fd, b"X" * PAGE)
        os.close(fd)
        wait_for(lambda: first_byte(process.pid, address) == b"X", "the ring has read")

    after_comparison(monkeypatch, write)
    outcome = target.back_to(anyway=True)
    assert not wrong(outcome) and outcome.pages
    assert first_byte(process.pid, address) == b"a"


@pytest.mark.slow
@pytest.mark.parametrize("by", ["itself", "ring", "scan"])
def test_calls_under_way_and_not_awaited(by: str, reading: int, stack: ExitStack, tmp_path: Path) -> None:
    """Negative control: it needs a call that outlasts the comparison. sync compares all in the stop."""
    target = Target(stack, reading, tmp_path / "c", by)
    with broken("barrier"):
        assert any(wrong(target.back_to()) for _ in range(TRIES))
