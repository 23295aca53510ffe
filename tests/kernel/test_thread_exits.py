"""What the kernel writes in the name of a thread that ends is written: it waits for no userfaultfd then."""

from __future__ import annotations

import pytest

from tests.helpers import Build, Spawn
from uffdtrack import AddressSpace, Pending, Tracee

WRITTEN = {
    "join": ("the word of set_tid_address(2)", 0),
    "robust": ("robust mutexes in the list of the thread", 5),
    "robust-pi": ("the same, with priority inheritance", 5),
    "pending": ("a robust mutex that is not in the list yet", 1),
}
"""What is written at the end of a thread (kernel/fork.c, exit_mm_release), and how many mutexes say so."""


@pytest.mark.parametrize("name", WRITTEN)
def test_what_the_kernel_writes_for_a_thread_that_ends(
    process_engine: str, spawn: Spawn, build: Build, name: str
) -> None:
    """A thread that has slept since the last stop, so that all its pages are under traps."""
    process = spawn(build("exits"), name)
    assert process.stdin and process.stdout
    assert process.stdout.readline() == b"ready\n"
    space = AddressSpace.attach(process.pid, process_engine)
    try:
        with Tracee(process.pid) as tracee:
            space.harvest(tracee, everything=True)
            for _ in range(3):
                space.window(tracee, Pending())
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline().decode() == f"ended {WRITTEN[name][1]}\n"
            space.window(tracee, Pending())
    finally:
        space.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(30) == 0
