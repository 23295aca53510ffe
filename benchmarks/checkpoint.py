"""Pause, its parts and bytes of an epoch, against dirty pages and process size, beside gcore (and CRIU).

    make bench

Every measurement is a line of series.jsonl with all of its parameters. The sizes, the numbers of dirty
pages and the tools are interleaved in one run. It asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from checkpoint.chain_writer import ChainWriter
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget

HERE = Path(__file__).parent
DIRTY = [0, 10, 100, 300, 1000, 3000, 10000, 30000, 100000]
SIZES = [64, 256, 1024, 4096]
MEMORY = {"small": "", "huge": ", huge pages", "shared": ", shared"}


def variants(sizes: list[int]) -> list[tuple[str, str, int]]:
    """Memory, engine and MiB of each process: all sizes by scan, the others beside some of them."""
    small = [("small", "scan", mib) for mib in sizes]
    beside = {
        ("huge", "scan", sorted(sizes)[-2:][0]),
        ("shared", "scan", min(sizes)),
        ("small", "ring", min(sizes)),
        ("small", "ring", max(sizes)),
        ("small", "sync", sorted(sizes)[:2][-1]),
    }
    return small + sorted(beside)


class Toucher:
    """A running toucher.c under a session."""

    def __init__(
        self, stack: ExitStack, program: Path, memory: str, engine: str, mib: int, directory: Path
    ) -> None:
        self.mib, self.memory, self.engine = mib, memory, engine
        self.process = stack.enter_context(
            subprocess.Popen(
                [program, str(mib), memory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        stack.callback(self.process.kill)
        assert self.process.stdout
        self.pid = int(self.process.stdout.readline())
        chain = stack.enter_context(ChainWriter(directory / f"{memory}-{engine}-{mib}", b"", force=False))
        self.directory = chain.directory
        self.target = stack.enter_context(ProcessTarget(self.pid, engine))
        self.session = Session(self.target, chain)

    def touch(self, pages: int, seed: int) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{pages} {seed}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def take(self) -> dict[str, Any]:
        """One epoch; its file is not kept, since the disk is not what is measured."""
        started = time.perf_counter()
        row = self.session.take()
        total_us = round((time.perf_counter() - started) * 1e6, 1)
        (self.directory / f"epoch-{row.epoch:08d}.core").unlink()
        about = {"tool": "uffdtrack", "size_mib": self.mib, "memory": self.memory}
        return {**about, **row.to_json(), "total_us": total_us}


def gcore(toucher: Toucher, directory: Path) -> dict[str, Any]:
    """A core of the same process by gdb, which stops it for all of the time."""
    started = time.perf_counter()
    subprocess.run(["gcore", "-o", directory / "gcore", str(toucher.pid)], check=True, capture_output=True)
    seconds = time.perf_counter() - started
    core = directory / f"gcore.{toucher.pid}"
    size = core.stat().st_size
    core.unlink()
    return {"tool": "gcore", "size_mib": toucher.mib, "memory": toucher.memory, "engine": toucher.engine,
            "bytes": size, "pause_us": round(seconds * 1e6, 1)}  # fmt: skip


def criu(toucher: Toucher, directory: Path) -> dict[str, Any] | None:
    """A dump by CRIU, where there is one that works."""
    images = directory / "criu"
    images.mkdir(exist_ok=True)
    started = time.perf_counter()
    done = subprocess.run(
        ["criu", "dump", "-t", str(toucher.pid), "-D", images, "--leave-running", "--shell-job"],
        capture_output=True,
    )
    seconds = time.perf_counter() - started
    size = sum(p.stat().st_size for p in images.iterdir())
    shutil.rmtree(images)
    if done.returncode:
        return None
    return {"tool": "criu", "size_mib": toucher.mib, "memory": toucher.memory, "engine": toucher.engine,
            "bytes": size, "pause_us": round(seconds * 1e6, 1)}  # fmt: skip


@contextmanager
def touchers(sizes: list[int], directory: Path) -> Iterator[list[Toucher]]:
    program = directory / "toucher"
    subprocess.run(["cc", "-O2", "-o", program, HERE / "toucher.c"], check=True)
    with ExitStack() as stack:
        yield [
            Toucher(stack, program, memory, engine, mib, directory) for memory, engine, mib in variants(sizes)
        ]


def measure(sizes: list[int], rounds: int, directory: Path) -> Iterator[dict[str, Any]]:
    rng = random.Random(1)
    with touchers(sizes, directory) as all_:
        for t in all_:
            yield {**t.take(), "dirty": -1}
        for n in range(rounds):
            work = [(t, d) for t in all_ for d in DIRTY if d <= t.mib << 8]
            rng.shuffle(work)
            for t, dirty in work:
                t.touch(dirty, rng.randrange(1 << 30))
                yield {**t.take(), "dirty": dirty, "round": n}
        for t in all_:
            # A debugger and CRIU want the traps off: they are measured on the same process, after.
            t.target.close()
            if t.engine != "scan":
                continue
            for n in range(3 if t.mib <= 1024 else 1):
                yield {**gcore(t, directory), "round": n}
                if shutil.which("criu") and (row := criu(t, directory)):
                    yield {**row, "round": n}


def groups(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each kind of process, by its name."""
    found: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
    engines = ["scan", "ring", "sync"]
    for r in rows:
        key = (list(MEMORY).index(r["memory"]), engines.index(r["engine"]), r["size_mib"])
        found.setdefault(key, []).append(r)
    return {
        f"{mib} MiB{list(MEMORY.values())[memory]}{'' if not engine else f', {engines[engine]}'}": mine
        for (memory, engine, mib), mine in sorted(found.items())
    }


def summarise(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Medians, with the least and the most in brackets."""

    def span(values: list[float]) -> str:
        if not values:
            return "-"
        middle = statistics.median(values)
        return f"{middle / 1000:.2f} ({min(values) / 1000:.2f}-{max(values) / 1000:.2f})"

    yield "| process | dirty pages | pause, ms | stop | harvest | copy | bytes |"
    yield "|---|---|---|---|---|---|---|"
    for label, mine in groups(rows).items():
        ours = [r for r in mine if r["tool"] == "uffdtrack"]
        for dirty in sorted({r["dirty"] for r in ours}):
            these = [r for r in ours if r["dirty"] == dirty]
            parts = " | ".join(
                span([r[k] for r in these]) for k in ("pause_us", "stop_us", "harvest_us", "copy_us")
            )
            name = "base" if dirty < 0 else str(dirty)
            size = statistics.median(r["bytes"] for r in these)
            yield f"| {label} | {name} | {parts} | {size / 2**20:.1f} MiB |"
        for tool in ("gcore", "criu"):
            others = [r for r in mine if r["tool"] == tool]
            if others:
                size = statistics.median(r["bytes"] for r in others)
                yield (
                    f"| {label} | all, by {tool} | {span([r['pause_us'] for r in others])} "
                    f"| | | | {size / 2**20:.1f} MiB |"
                )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for i, (label, mine) in enumerate(groups(rows).items()):
        ours = [r for r in mine if r["tool"] == "uffdtrack" and r["dirty"] > 0]
        xs = sorted({r["dirty"] for r in ours})
        values = [[r["pause_us"] / 1000 for r in ours if r["dirty"] == x] for x in xs]
        middles = [statistics.median(v) for v in values]
        axes.plot(xs, middles, marker="o", markersize=4, color=f"C{i}", label=f"uffdtrack, {label}")
        axes.fill_between(xs, list(map(min, values)), list(map(max, values)), color=f"C{i}", alpha=0.12)
        cores = [r["pause_us"] / 1000 for r in mine if r["tool"] == "gcore"]
        if cores and mine[0]["memory"] == "small":
            axes.axhline(statistics.median(cores), color=f"C{i}", linestyle=":", linewidth=1.2)
            axes.annotate(f"gcore, {label}", (DIRTY[1], statistics.median(cores)), fontsize=8, va="bottom")
    axes.set(xscale="log", yscale="log", xlabel="pages written since the last epoch, scattered",
             ylabel="the process stands still, ms", title="Pause of a checkpoint")  # fmt: skip
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="in MiB, powers of two")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="uffdtrack-bench-", dir=options.output) as scratch,
        (options.output / "series.jsonl").open("w") as series,
    ):
        for row in measure(options.sizes, options.rounds, Path(scratch)):
            row["kernel"] = platform.release()
            rows.append(row)
            series.write(json.dumps(row) + "\n")
    table = "\n".join(summarise(rows))
    (options.output / "table.md").write_text(table + "\n")
    plot(rows, options.output / "pause.png")
    print(table)


if __name__ == "__main__":
    main()
