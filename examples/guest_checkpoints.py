"""A guest of two vCPU processes, checkpointed whenever 300 of its pages are dirty.

Each cycle: wait until the threshold stops both vCPUs, take the list of what they wrote, copy those pages to
the standby, let them go on. In the end the standby is the guest's RAM, byte for byte.
"""

from __future__ import annotations

import multiprocessing
import random
import sys

from uffdtrack import GuestRam, join, open_tracker

WRITES = 5000
CONTEXT = multiprocessing.get_context("spawn")


def guest(name: str, number: int) -> None:
    """One vCPU: it writes to random pages of the RAM."""
    rng = random.Random(number)
    with join(name, number) as vcpu:
        for i in range(WRITES):
            vcpu.ram.array[rng.randrange(vcpu.ram.size)] = i % 256


def main(engine: str = "auto") -> None:
    with GuestRam("64MiB") as ram:
        ram.pages()[:, 0] = 1
        standby = ram.pages().copy()
        with open_tracker(ram, engine, vcpus=2, max_dirty_pages=300, outside_writers=False) as tracker:
            print(f"engine {tracker.traits.name}: {tracker.reason}")
            vcpus = [CONTEXT.Process(target=guest, args=(ram.name, i)) for i in range(2)]
            for process in vcpus:
                process.start()
            tracker.wait_joined()
            checkpoints = copied = 0
            while any(process.is_alive() for process in vcpus) or tracker.pending():
                tracker.wait_full(timeout=0.05)
                with tracker.paused():
                    pages = tracker.exchange()
                    rows = ram.index(pages.gfn)
                    standby[rows] = ram.pages()[rows]
                checkpoints, copied = checkpoints + 1, copied + len(pages)
                assert len(pages) <= 300
            for process in vcpus:
                process.join()
        assert (standby == ram.pages()).all(), "a page was lost"
        print(f"{checkpoints} checkpoints, {copied} pages; the standby is the guest's RAM, byte for byte")


if __name__ == "__main__":
    main(*sys.argv[1:])
