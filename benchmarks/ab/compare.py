"""One guest, every tracker, side by side: what `uffdtrack bench ab` measures.

All engines work on the same RAM, one after the other in each round, with the same pages from the same seed.
For those that are not for VMs (`ring`, `inline`) vCPU processes write the pages, all else is the same.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

import kvmglue
from benchmarks.ab.guests import AB_ENGINES, DEADLINE, NATIVE_ENGINES, Guest, Point, Rows, make_guest
from kvmglue import SMALLEST_RING, VM_ENGINES, Order, Vm
from uffdtrack import PAGE, GuestRam
from uffdtrack.errors import InvalidInputError, TrackerError

SCHEMA = "uffdtrack/ab/1"
SPIN = 100_000
EMULATED = 20
"""Times slower than natively, from which on a guest's loop counts as emulated."""
WARM = 3
"""Cycles that are not counted."""
PROGRESS_S = 0.15
PROGRESS_PAGES = 30
"""That each vCPU writes again and again."""
CHECKPOINTS_S = 500


def measure(
    ram: GuestRam, engine: str, point: Point, rng: np.random.Generator, cycles: int
) -> Iterator[dict[str, Any]]:
    """Cycles of one engine: warm up, then write, harvest and rearm with the guest paused; a row for each.

    Raises:
        TrackerError: its set of dirty pages is not what the guest says that it wrote.
    """
    rows = rng.choice(len(ram.array) // PAGE, point.dirty, replace=False).astype(np.uint64)
    parts = np.array_split(rows, point.vcpus)
    with ExitStack() as stack:
        guest = make_guest(stack, ram, engine, point)
        for cycle in range(1 - WARM, cycles + 1):
            first = guest.write(parts, cycle + WARM)
            again = guest.write(parts, cycle + 100)
            started = time.perf_counter()
            guest.tracker.pause()
            stopped = time.perf_counter()
            guest.tracker.prepare()
            pages = guest.tracker.fetch()
            harvested = time.perf_counter()
            guest.tracker.rearm(pages)
            rearmed = time.perf_counter()
            guest.tracker.resume()
            warm = cycle > 1 - WARM
            check_equal(engine, set(ram.index(pages.gfn).tolist()), guest.log(), exact=warm)
            if cycle < 1:
                continue
            yield {
                "schema": SCHEMA, "series": point.series, "engine": engine, "ram": point.ram,
                "dirty": point.dirty, "vcpus": point.vcpus, "cycle": cycle,
                "write_us": round(first / len(parts[0]), 4), "again_us": round(again / len(parts[0]), 4),
                "stop_us": round((stopped - started) * 1e6, 2),
                "harvest_us": round((harvested - stopped) * 1e6, 2),
                "rearm_us": round((rearmed - harvested) * 1e6, 2),
                "arm_us": round(guest.arm_us, 1),
            }  # fmt: skip
        if point.series == "dirty":
            yield from with_contents(guest, ram, engine, parts, cycles)


def with_contents(
    guest: Guest, ram: GuestRam, engine: str, parts: Sequence[Rows], cycles: int
) -> Iterator[dict[str, Any]]:
    """The same cycles, whose contents are copied as well: what `ring` leaves writable it has to compare."""
    dirty = sum(map(len, parts))
    buffer = np.ones((dirty, PAGE), np.uint8)
    for cycle in range(1 - WARM, cycles + 1):
        guest.write(parts, cycle + 50)
        guest.tracker.pause()
        started = time.perf_counter()
        pages = guest.tracker.exchange(buffer)
        ended = time.perf_counter()
        guest.tracker.resume()
        check_equal(engine, set(ram.index(pages.gfn).tolist()), guest.log(), exact=True)
        if cycle > 0:
            yield {
                "schema": SCHEMA, "series": "contents", "engine": engine, "ram": ram.size, "dirty": dirty,
                "vcpus": len(parts), "cycle": cycle, "exchange_us": round((ended - started) * 1e6, 2),
            }  # fmt: skip


def check_equal(engine: str, found: set[int], wrote: set[int], exact: bool) -> None:
    """Raises: TrackerError: pages are missing, or, once the traps are set by a cycle, too many."""
    lost, extra = wrote - found, found - wrote
    if lost or (exact and extra):
        raise TrackerError(
            f"engine {engine}: the guest has written {len(wrote)} pages, the tracker lists {len(found)}: "
            f"{len(lost)} are missing, {len(extra)} were not written"
        )


def forced_pause(ram: GuestRam, engine: str, vcpus: int, limit: int, pauses: int) -> Iterator[dict[str, Any]]:
    """A guest that never rests against a threshold: how far each cycle went beyond it (below 0: early)."""
    point = Point("pause", len(ram.array), 4 * limit, vcpus, limit)
    rows = np.arange(min(point.dirty, len(ram.array) // PAGE), dtype=np.uint64)
    with ExitStack() as stack:
        guest = make_guest(stack, ram, engine, point)
        guest.tracker.exchange()
        guest.storm(np.array_split(rows, vcpus))
        for i in range(pauses):
            if not guest.tracker.wait_full(DEADLINE):
                raise TrackerError(f"engine {engine}: no pause within {DEADLINE:.0f} s")
            found = len(guest.tracker.exchange())
            guest.tracker.resume()
            yield {
                "schema": SCHEMA, "series": "pause", "engine": engine, "ram": point.ram, "vcpus": vcpus,
                "limit": limit, "cycle": i, "overshoot": found - limit,
            }  # fmt: skip
        guest.end_storm()
        guest.tracker.close()


def progress(ram: GuestRam, engine: str, vcpus: int, dirty: int) -> dict[str, Any]:
    """Writes of a guest that is checkpointed 500 times a second, as a part of those of one that is not."""
    rates = {}
    for name in (None, engine):
        point = Point("progress", len(ram.array), dirty, vcpus, tracked=name is not None)
        rows = np.arange(dirty, dtype=np.uint64)
        with ExitStack() as stack:
            guest = make_guest(stack, ram, engine, point)
            guest.storm(np.array_split(rows, vcpus))
            began, at = time.perf_counter(), guest.written()
            count = 0
            while (now := time.perf_counter()) < began + PROGRESS_S:
                if name and now >= began + count / CHECKPOINTS_S:
                    count += 1
                    guest.tracker.pause()
                    guest.tracker.exchange()
                    guest.tracker.resume()
            rates[name] = (guest.written() - at) / (time.perf_counter() - began)
            guest.end_storm()
            guest.tracker.close()
    return {
        "schema": SCHEMA, "series": "progress", "engine": engine, "ram": len(ram.array), "dirty": dirty,
        "vcpus": vcpus, "writes_per_s": round(rates[engine]), "untracked_per_s": round(rates[None]),
        "progress": round(rates[engine] / max(rates[None], 1), 4),
    }  # fmt: skip


def emulated() -> tuple[bool, float]:
    """Whether KVM emulates the guest's instructions here, and how many ns a turn of an empty loop takes."""
    with GuestRam("1MiB", shared=False) as ram, Vm(ram) as vm:
        vm.resume()
        took = []
        for _ in range(3):
            kvmglue.post(vm, 0, Order("spin", n=SPIN))
            kvmglue.wait(vm, 0, DEADLINE)
            took.append(vm.vcpus[0].took_us * 1e3 / SPIN)
    return min(took) > EMULATED, min(took)


@dataclass(frozen=True, slots=True)
class Setup:
    """What is compared.

    Attributes:
        engines: of `AB_ENGINES`.
        rams: bytes, for the series over RAM; the largest is where dirty pages vary.
        dirties: pages, for the series over dirty pages; `typical` is where RAM varies.
        typical: dirty pages.
        vcpus: how many.
        rounds: each engine in each.
        limit: of the forced pause, for all vCPUs.
    """

    engines: Sequence[str] = AB_ENGINES
    rams: Sequence[int] = (64 << 20, 256 << 20, 1 << 30, 4 << 30)
    dirties: Sequence[int] = (10, 100, 1000, 10_000, 30_000)
    typical: int = 300
    vcpus: int = 1
    rounds: int = 5
    limit: int = 2048

    def check(self) -> None:
        """Raises: InvalidInputError."""
        for engine in self.engines:
            if engine not in AB_ENGINES:
                raise InvalidInputError(f"no engine {engine!r}; there are {', '.join(AB_ENGINES)}")
        if self.vcpus < 1 or self.limit < SMALLEST_RING * self.vcpus or min(self.dirties) < self.vcpus:
            raise InvalidInputError(f"{self.vcpus} vCPUs: too few pages for each")
        least = min(self.rams) // PAGE
        if max(self.dirties) > max(self.rams) // PAGE or self.typical > least or self.limit * 4 > least:
            raise InvalidInputError("more dirty pages than the RAM has")

    def points(self) -> list[Point]:
        most = max(self.rams)
        return [Point("ram", ram, self.typical, self.vcpus) for ram in sorted(self.rams)] + [
            Point("dirty", most, dirty, self.vcpus) for dirty in sorted(self.dirties)
        ]


def run(setup: Setup, seed: int, emit: Callable[[dict[str, Any]], None], say: Callable[[str], None]) -> None:
    """All of a setup, round by round; `emit` gets each row, `say` what is under way.

    Raises:
        TrackerError: an engine's dirty pages are not those that were written.
    """
    setup.check()
    points = setup.points()
    for size in sorted(set(setup.rams)):
        with GuestRam(size) as ram:
            ram.array[::PAGE] = 1
            for point in [p for p in points if p.ram == size]:
                say(f"{point.series}: {size >> 20} MiB, {point.dirty} dirty pages")
                for round_ in range(setup.rounds):
                    for engine in setup.engines:
                        rng = np.random.default_rng([seed, round_])  # the same pages for each
                        for row in measure(ram, engine, point, rng, cycles=2):
                            emit({**row, "round": round_})
            if size == min(setup.rams):
                say("forced pause and guest progress")
                for engine in setup.engines:
                    traits = VM_ENGINES.get(engine)
                    if engine in NATIVE_ENGINES or (traits and traits.forced_pause != "none"):
                        for row in forced_pause(ram, engine, setup.vcpus, setup.limit, 30):
                            emit(row)
                    emit(progress(ram, engine, setup.vcpus, PROGRESS_PAGES * setup.vcpus))


def crossover(rows: Sequence[dict[str, Any]]) -> float | None:
    """Dirty pages from which on KVM's bitmap costs less to harvest and rearm than its ring; None: nowhere.

    Between two measured points it is taken from the line through the logarithms.
    """
    one, other = "kvm-ring", "kvm-bitmap"
    cost: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in rows:
        if row["series"] == "dirty":
            cost[row["engine"], row["dirty"]].append(row["harvest_us"] + row["rearm_us"])
    at = sorted({dirty for engine, dirty in cost if engine == one and (other, dirty) in cost})
    gain = [
        math.log(statistics.median(cost[one, n])) - math.log(statistics.median(cost[other, n])) for n in at
    ]
    for i, n in enumerate(at):
        if gain[i] <= 0 or any(g <= 0 for g in gain[i:]):
            continue
        if not i:
            return float(n)
        part = -gain[i - 1] / (gain[i] - gain[i - 1])
        return float(at[i - 1] * (n / at[i - 1]) ** part)
    return None
