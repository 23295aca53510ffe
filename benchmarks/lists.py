"""The engines side by side: first write, harvest, rearm, arm, exchange, forced pause.

    make bench

Every measurement is a line of lists.jsonl with all of its parameters, in us. What is compared is interleaved,
in one run. It asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.lists_core import Bench, Pages
from benchmarks.lists_report import DENSITY, draw, tables
from uffdtrack import ENGINES, GuestRam, UffdTracker, open_tracker, probe

ROUNDS = 9
DIRTY = [1, 10, 100, 300, 1000, 3000, 10000, 30000, 100000]
SIZES = [64, 256, 1024, 2048, 4096, 8192]


def scattered(rng: random.Random, ram: GuestRam, n: int) -> Pages:
    return np.array(rng.sample(range(ram.size // 4096), n), np.uint64)


def dense(rng: random.Random, n: int, density: int) -> Pages:
    """`density` pages in each 2 MiB, as many neighbouring 2 MiB as that takes."""
    return np.array(
        [block * 512 + i for block in range(n // density) for i in rng.sample(range(512), density)], np.uint64
    )


def touched(size: int, huge: bool = False) -> GuestRam:
    ram = GuestRam(size << 20, shared=False, huge=huge)
    ram.array[::4096] = 1
    return ram


def first_write(bench: Bench, pages: int = 2000, mib: int = 256) -> None:
    """Every way to learn of a write, each on a RAM of its own, round by round."""
    rng = random.Random(1)
    with ExitStack() as stack:
        own = {name: stack.enter_context(touched(mib)) for name in ("untracked", "bare", "poll", "segv")}
        bare = bench.c.bench_uffd(own["bare"].address, own["bare"].size, 1)
        poll = bench.c.bench_uffd(own["poll"].address, own["poll"].size, 0)
        assert bare >= 0 and poll >= 0, "userfaultfd"
        assert bench.c.bench_poll(poll) == 0
        trackers: dict[str, UffdTracker] = {}
        for engine in ENGINES:
            ram = stack.enter_context(touched(mib))
            trackers[engine] = stack.enter_context(open_tracker(ram, engine))
        ways: dict[str, Callable[[Pages], float]] = {}

        def protected(uffd: int, ram: GuestRam) -> Callable[[Pages], float]:
            def run(listed: Pages) -> float:
                bench.c.bench_protect(uffd, ram.address, listed.ctypes.data, len(listed))
                return bench.write(ram, listed)

            return run

        def by_engine(tracker: UffdTracker) -> Callable[[Pages], float]:
            def run(listed: Pages) -> float:
                with tracker.vcpu(0):
                    us = bench.write(tracker.ram, listed)
                    tracker.exchange()
                return us

            return run

        def by_segv(listed: Pages) -> float:
            assert bench.c.bench_segv(own["segv"].address, own["segv"].size) == 0
            return bench.write(own["segv"], listed)

        ways["untracked"] = lambda listed: bench.write(own["untracked"], listed)
        ways["bare WP_ASYNC"] = protected(bare, own["bare"])
        ways.update({engine: by_engine(tracker) for engine, tracker in trackers.items()})
        ways["mprotect + SIGSEGV"] = by_segv
        ways["polling handler"] = protected(poll, own["poll"])
        for round_ in range(ROUNDS + 1):
            listed = scattered(rng, own["bare"], pages)
            for way, run in ways.items():
                us = run(listed) / pages
                if round_:
                    bench.row("first write", us, way=way, pages=pages, ram_mib=mib)


def first_write_by_vcpus(bench: Bench, pages: int = 2000, mib: int = 256) -> None:
    """The same by native threads at once, each with pages of its own."""
    rng = random.Random(2)
    for round_ in range(ROUNDS + 1):
        for vcpus in (1, 2, 4):
            for engine in ENGINES:
                with touched(mib) as ram, open_tracker(ram, engine, vcpus=vcpus) as tracker:
                    listers = [bench.c.bench_lister(ram.address) for _ in range(vcpus)]
                    for i, lister in enumerate(listers):
                        tracker.bind(i, bench.c.bench_lister_tid(lister))
                    listed = np.split(scattered(rng, ram, pages * vcpus), vcpus)
                    for lister, own in zip(listers, listed, strict=True):
                        bench.c.bench_lister_go(lister, own.ctypes.data, pages)
                    us = [bench.c.bench_lister_wait(lister) / 1e3 / pages for lister in listers]
                    tracker.close()
                    for lister in listers:
                        bench.c.bench_lister_end(lister)
                    if round_:
                        about = {"engine": engine, "vcpus": vcpus, "pages": pages, "ram_mib": mib}
                        bench.row("first write, vCPUs", statistics.mean(us), **about)


def harvest(bench: Bench, sizes: list[int]) -> None:
    """Harvest, rearm and exchange in C, and what Python adds; sizes one by one, the rest interleaved."""
    for mib in sizes:
        for huge in (False, True):
            if huge and mib not in (1024, 8192):
                continue
            rng = random.Random(mib)
            memory = "huge" if huge else "4 KiB"
            with touched(mib, huge) as ram:
                counts = [n for n in DIRTY if n <= ram.size // 8192] if mib in (64, 1024, 8192) else [3000]
                for engine in ("scan", "ring", "inline"):
                    with open_tracker(ram, engine) as tracker:
                        tracker.exchange()
                        rounds(bench, rng, tracker, mib, memory, counts)
                uffd = bench.c.bench_uffd(ram.address, ram.size, 1)
                us = bench.c.bench_protect_all(uffd, ram.address, ram.size) / 1e3
                bench.row("arm", us, ram_mib=mib, memory=memory)
                os.close(uffd)


def rounds(
    bench: Bench,
    rng: random.Random,
    tracker: UffdTracker,
    mib: int,
    memory: str,
    counts: list[int],
) -> None:
    with tracker.vcpu(0):
        for round_ in range(ROUNDS + 1):
            for n in counts:
                listed = scattered(rng, tracker.ram, n)
                engine = tracker.traits.name
                about = {"engine": engine, "dirty": n, "ram_mib": mib, "memory": memory}
                bench.write(tracker.ram, listed)
                us = bench.call("ut_prepare", tracker)
                again = bench.rearm(tracker)
                if round_:
                    bench.row("harvest", us, **about)
                    bench.row("rearm", again, pattern="scattered", density=0, **about)
                if n > 3000:
                    continue
                bench.write(tracker.ram, listed)
                in_c = bench.call("ut_exchange", tracker)
                if round_:
                    bench.row("exchange", in_c, **about)


def python_side(bench: Bench, mib: int = 1024) -> None:
    """What exchange() costs in Python on top of the core: nothing is dirty, so that the rest is small."""
    with touched(mib) as ram, open_tracker(ram, "inline") as tracker:
        for _ in range(ROUNDS * 20):
            in_c = bench.call("ut_exchange", tracker)
            started = time.perf_counter_ns()
            tracker.exchange()
            us = (time.perf_counter_ns() - started) / 1e3 - in_c
            bench.row("exchange, python", us, ram_mib=mib, dirty=0, engine="inline", caches="warm")
        ballast = np.zeros(64 << 20, np.uint8)
        for _ in range(ROUNDS * 4):
            ballast += 1
            in_c = bench.call("ut_exchange", tracker)
            ballast += 1
            started = time.perf_counter_ns()
            tracker.exchange()
            us = (time.perf_counter_ns() - started) / 1e3 - in_c
            bench.row("exchange, python", us, ram_mib=mib, dirty=0, engine="inline", caches="cold")


def rearm(bench: Bench, mib: int = 1024, pages: int = 3000) -> None:
    """Rearm as planned by cost, against one ioctl a page, by how many dirty pages share 2 MiB."""
    rng = random.Random(3)
    with ExitStack() as stack:
        trackers = {
            name: stack.enter_context(open_tracker(stack.enter_context(touched(mib)), name))
            for name in ("ring", "inline")
        }
        ram = stack.enter_context(touched(mib))
        uffd = bench.c.bench_uffd(ram.address, ram.size, 1)
        bench.c.bench_protect_all(uffd, ram.address, ram.size)
        for round_ in range(ROUNDS + 1):
            for density in DENSITY:
                listed = dense(rng, min(pages, density * (mib // 2)), density)
                about = {"density": density, "pattern": "dense", "dirty": len(listed), "ram_mib": mib}
                for name, tracker in trackers.items():
                    with tracker.vcpu(0):
                        bench.write(tracker.ram, listed)
                        bench.call("ut_prepare", tracker)
                        us = bench.rearm(tracker)
                    if round_:
                        bench.row("rearm", us, engine=name, memory="4 KiB", **about)
                bench.write(ram, listed)
                us = bench.c.bench_protect(uffd, ram.address, listed.ctypes.data, len(listed)) / 1e3
                if round_:
                    bench.row("rearm", us, engine="one ioctl a page", memory="4 KiB", **about)


def forced_pause(bench: Bench, mib: int = 256) -> None:
    """Native vCPU threads write at random until the threshold stops them."""
    for round_ in range(ROUNDS):
        for vcpus in (1, 2, 4):
            for engine in ("ring", "sync", "inline"):
                for limit in (300, 3000):
                    with touched(mib) as ram:
                        tracker = open_tracker(ram, engine, vcpus=vcpus, max_dirty_pages=limit)
                        with tracker:
                            stop_one(bench, tracker, vcpus, limit, engine, mib, round_)


def stop_one(
    bench: Bench, tracker: UffdTracker, vcpus: int, limit: int, engine: str, mib: int, seed: int
) -> None:
    ram = tracker.ram
    writers = [bench.c.bench_writer(ram.address, ram.size // 4096, seed * 8 + i + 1) for i in range(vcpus)]
    for i, writer in enumerate(writers):
        tracker.bind(i, bench.c.bench_writer_tid(writer))
    for writer in writers:
        bench.c.bench_writer_go(writer)
    for _ in range(3):
        assert tracker.wait_full(10)
        stopped = bench.c.bench_now()
        last = max(bench.c.bench_writer_last(writer) for writer in writers)
        with tracker.paused():
            pages = len(tracker.exchange())
        about = {"engine": engine, "vcpus": vcpus, "dirty": limit, "ram_mib": mib}
        bench.row("pause latency", (stopped - last) / 1e3, overshoot=pages - limit, **about)
    tracker.close()
    for writer in writers:
        bench.c.bench_writer_end(writer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="RAM in MiB")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.output)
    probe()  # it forks, and a fork makes every private page fault once more
    first_write(bench)
    first_write_by_vcpus(bench)
    rearm(bench)
    forced_pause(bench)
    python_side(bench)
    harvest(bench, options.sizes)
    bench.out.close()
    text = "".join(tables(bench.rows))
    (options.output / "lists.md").write_text(text)
    print(text)
    draw(bench.rows, options.output)


if __name__ == "__main__":
    main()
