"""How many cycles a second a guest can bear: pause, harvest, rearm, copy, resume, as fast as they come.

    python -m benchmarks.rate -o DIR

Two vCPU processes write a RAM of 8 GiB. Between two cycles the guest runs just as long as it takes to get
on at half of its untracked speed; the rest of the time is the tracker's. So the number of cycles a second is
what is compared. Engines and loads take turns in each round. It asserts nothing.

`ring` copies contents by exchange(into=...), `ring, steps` and the others by prepare(), fetch(), rearm() and
numpy.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plots import pyplot
from benchmarks.rate_guests import Guest, Load, Machine, Processes
from uffdtrack.errors import UnsupportedError

LOADS = [Load(0, 64), Load(64, 0), Load(270, 30), Load(0, 300), Load(0, 3000), Load(3000, 0)]
TARGETS = {64: 2500, 300: 1500, 3000: 150}
ENGINES = ("ring", "ring, steps", "scan", "kvm-ring")
PARTS = ("pause_us", "harvest_us", "rearm_us", "copy_us", "resume_us")
HALF = 0.5
PR_SET_TIMERSLACK = 29


def take_precedence() -> bool:
    """There are as many vCPUs as processors: who waits for one of them to give way waits for milliseconds."""
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        return True
    return False


def untracked(guest: Guest, seconds: float) -> float:
    """Steps a second."""
    time.sleep(0.05)
    began, before = time.perf_counter(), guest.steps()
    while time.perf_counter() < began + seconds:
        guest.next_cycle()
        time.sleep(0.001)
    return (guest.steps() - before) / (time.perf_counter() - began)


def cycle(guest: Guest, ram: Any, buffer: Any, steps: bool) -> tuple[list[float], int]:
    """One cycle: microseconds of its parts, and how many pages it has.

    Args:
        steps: call by call; else harvest, rearm and copy are one call, whose time counts as the copy's.
    """
    tracker, at = guest.tracker, [time.perf_counter()]
    tracker.pause()
    at.append(time.perf_counter())
    if steps:
        tracker.prepare()
        pages = tracker.fetch()
        at.append(time.perf_counter())
        tracker.rearm(pages)
        at.append(time.perf_counter())
        ram.read_into(pages.gfn[: len(buffer)], buffer)
    else:
        at += [at[-1]] * 2
        pages = tracker.exchange(buffer)
    at.append(time.perf_counter())
    guest.next_cycle()
    tracker.resume()
    at.append(time.perf_counter())
    return [(b - a) * 1e6 for a, b in pairwise(at)], len(pages)


def cycles(guest: Guest, ram: Any, buffer: Any, steps: bool, speed: float, seconds: float) -> dict[str, Any]:
    """Cycles in a row; the first half is to find how long the guest has to run."""
    run, took, counts = 0.0005, [], []
    began = last = time.perf_counter()
    before = start = guest.steps()
    counted = began
    while (now := time.perf_counter()) < began + seconds:
        if now < began + seconds / 2:
            counted, start, took, counts = now, guest.steps(), [], []
        parts, n = cycle(guest, ram, buffer, steps)
        took.append(parts)
        counts.append(n)
        time.sleep(run)
        now, done = time.perf_counter(), guest.steps()
        run *= 1.03 if done - before < HALF * speed * (now - last) else 0.97
        run = min(max(run, 5e-6), 0.05)
        last, before = now, done
    wall = time.perf_counter() - counted
    middle = [statistics.median(values) for values in zip(*took, strict=True)]
    return {
        "cycles_s": round(len(took) / wall, 1),
        "progress": round((guest.steps() - start) / wall / speed, 3),
        "pages": statistics.median(counts),
        "stop_us": round(statistics.median(sum(parts) for parts in took), 1),
        **{name: round(us, 1) for name, us in zip(PARTS, middle, strict=True)},
    }


def measure(
    directory: Path, size: str, rounds: int, seconds: float, engines: list[str], loads: list[Load]
) -> Iterator[dict[str, Any]]:
    processes = Processes(directory, size)
    machine = Machine(size, processes.pool) if any(name.startswith("kvm") for name in engines) else None
    buffer = np.ones((8192, 4096), np.uint8)
    if not take_precedence():
        print("no real-time priority (CAP_SYS_NICE): cycles wait for the vCPUs' time slices")
    for round_ in range(rounds):
        for load in loads:
            speeds: dict[Any, float] = {}
            for engine in engines:
                home: Any = machine if engine.startswith("kvm") else processes
                if home not in speeds:
                    with home.running(None, load) as guest:
                        speeds[home] = untracked(guest, seconds / 4)
                name = engine.removesuffix(", steps")
                with home.running(name, load) as guest:
                    row = cycles(guest, home.ram, buffer, engine != "ring", speeds[home], seconds)
                about = {"engine": engine, "hot": load.hot, "anew": load.anew, "ram": home.ram.size}
                yield {**about, "round": round_, "untracked_s": round(speeds[home]), **row}
    processes.close()
    if machine:
        machine.close()


def spread(values: list[float], digits: int = 0) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    by = defaultdict(list)
    for row in rows:
        by[row["hot"], row["anew"], row["engine"]].append(row)
    yield "| pages: hot + anew | engine | cycles/s | target | progress | pages | stop, us |"
    yield " pause | harvest | rearm | copy | resume |\n" + "|---" * 12 + "|\n"
    for (hot, anew, engine), own in by.items():
        cells = [spread([row["cycles_s"] for row in own]), str(TARGETS[hot + anew])]
        cells += [spread([row["progress"] for row in own], 2), spread([row["pages"] for row in own])]
        cells += [spread([row[key] for row in own]) for key in ("stop_us", *PARTS)]
        yield f"| {hot} + {anew} | {engine} | {' | '.join(cells)} |\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    names = list(dict.fromkeys(row["engine"] for row in rows))
    for i, engine in enumerate(names):
        middle = [
            statistics.median(
                [
                    r["cycles_s"]
                    for r in rows
                    if (r["hot"], r["anew"], r["engine"]) == (load.hot, load.anew, engine)
                ]
            )
            for load in LOADS
        ]
        axes.bar(
            [k + i * 0.8 / len(names) for k in range(len(LOADS))], middle, 0.8 / len(names), label=engine
        )
    for k, load in enumerate(LOADS):
        axes.hlines(TARGETS[load.hot + load.anew], k - 0.1, k + 0.7, color="black", lw=1)
    axes.set_xticks([k + 0.3 for k in range(len(LOADS))], [f"{load.hot} + {load.anew}" for load in LOADS])
    axes.set(yscale="log", xlabel="pages a cycle: hot + drawn anew", ylabel="cycles a second")
    axes.set_title("Cycles a second, the guest at half of its untracked speed (lines: targets)", fontsize=10)
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--ram", default="8GiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each engine and load in a round")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--loads", type=int, nargs="+", default=range(len(LOADS)), help="by number")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)
    rows = []
    with (options.output / "rate.jsonl").open("w") as out:
        for row in measure(
            options.output,
            options.ram,
            options.rounds,
            options.seconds,
            options.engines,
            [LOADS[i] for i in options.loads],
        ):
            rows.append(row)
            out.write(json.dumps(row) + "\n")
    text = "".join(table(rows))
    (options.output / "rate.md").write_text(text)
    print(text)
    with suppress(UnsupportedError):
        draw(rows, options.output / "rate.png")


if __name__ == "__main__":
    main()
