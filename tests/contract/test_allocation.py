"""Between activate and deactivate nothing is allocated or freed, in the C core or by numpy."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from kvmglue import KVM_ENGINES
from tests.helpers import Build

pytestmark = pytest.mark.usefixtures("kernel")

PROGRAM = """
import ctypes, gc, sys
import numpy as np
from uffdtrack import GuestRam, open_tracker

count = ctypes.CDLL(sys.argv[2])
for line in open("/proc/self/maps"):
    where, permissions, *_, name = line.split()
    if "x" in permissions and ("/_core.abi3" in name or "/_multiarray_umath" in name):
        start, end = (int(part, 16) for part in where.split("-"))
        count.count_range(ctypes.c_ulong(start), ctypes.c_ulong(end))

def cycles(tracker, ram, n):
    for i in range(n):
        ram.array[4096 * i] = 1
        ram.array[4096 * 500] = 1
        pages = tracker.exchange()
        ram.array[4096 * i] = 2
        tracker.prepare()
        while len(part := tracker.fetch(1)):
            tracker.rearm(part)
        if tracker.traits.forced_pause != "none":
            tracker.wait_full(0)
        tracker.pause()
        tracker.resume()

limit = None if sys.argv[1] == "scan" else 100
with GuestRam("16MiB") as ram, open_tracker(ram, sys.argv[1], vcpus=2, max_dirty_pages=limit) as tracker:
    with tracker.vcpu(0):
        cycles(tracker, ram, 50)
        gc.disable()
        before = count.count_so_far()
        cycles(tracker, ram, 500)
        print(count.count_so_far() - before)
        array = np.empty(1 << 20, np.uint8)
        del array
        print(count.count_so_far() - before)
"""


KVM_PROGRAM = """
from kvmglue import Order, Vm, open_tracker, post, rings_for

engine = sys.argv[1]
with (
    GuestRam("16MiB") as ram,
    Vm(ram, 2, ring_entries=rings_for(engine, 2), list_rows=500) as vm,
    open_tracker(vm, engine, max_dirty_pages=rings_for(engine, 2) * 2 or None) as tracker,
):
    vm.resume()
    for i in range(2):
        post(vm, i, Order("storm", rows=range(i, 1000, 2)))
    cycles(tracker, ram, 50)
"""
SPLIT = PROGRAM.index("limit = None")
END = PROGRAM.index("        gc.disable()")


def test_nothing_is_allocated_in_a_cycle(engine: str, build: Build) -> None:
    library = build("count", "-shared", "-fPIC", "-fno-builtin")
    program = PROGRAM
    if engine in KVM_ENGINES:
        rest = textwrap.indent(textwrap.dedent(PROGRAM[END:]), "    ")
        # Each cycle has 1,000 pages, that many calls of a kind.
        program = PROGRAM[:SPLIT] + KVM_PROGRAM + rest.replace("ram, 500)", "ram, 100)")
    done = subprocess.run(
        [sys.executable, "-c", program, engine, str(library)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    in_cycles, control = map(int, done.stdout.split())
    assert in_cycles == 0
    assert control >= 2, "the counter counts"
