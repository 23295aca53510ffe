"""The rows of benchmarks/lists.py as tables and plots."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.plots import pyplot
from uffdtrack import ENGINES

DENSITY = [1, 2, 4, 8, 16, 64, 512]
"""Dirty pages in each 2 MiB, for the rearm."""


def grouped(rows: list[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[float]]:
    out: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for row in rows:
        out[tuple(row.get(key) for key in keys)].append(row["us"])
    return out


def spread(values: list[float], scale: float = 1) -> str:
    low, middle, high = (f(values) * scale for f in (min, statistics.median, max))
    return f"{middle:.3g} ({low:.3g}-{high:.3g})"


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    by = {name: [row for row in rows if row["series"] == name] for name in {row["series"] for row in rows}}
    writes = {key[0]: values for key, values in grouped(by["first write"], "way").items()}
    bare = statistics.median(writes["bare WP_ASYNC"])
    yield "First write to a page, us: median (min-max)\n\n| way | us | of bare WP_ASYNC |\n|---|---|---|\n"
    for way, values in writes.items():
        yield f"| {way} | {spread(values)} | {statistics.median(values) / bare:.2f} |\n"
    yield "\nFirst write, us a page, by vCPUs that write at once\n\n"
    per_vcpu = grouped(by["first write, vCPUs"], "engine", "vcpus")
    counts = sorted({vcpus for _, vcpus in per_vcpu})
    yield f"| engine | {' | '.join(map(str, counts))} |\n|---{'|---' * len(counts)}|\n"
    for engine in ENGINES:
        yield f"| {engine} | {' | '.join(spread(per_vcpu[engine, n]) for n in counts)} |\n"
    yield "\nHarvest into lists, rearm, and both in one call, us\n\n"
    yield f"| engine | memory | RAM, MiB | dirty | harvest | rearm | exchange |\n{'|---' * 7}|\n"
    keys = ("engine", "memory", "ram_mib", "dirty")
    rearms = grouped([row for row in by["rearm"] if row["pattern"] == "scattered"], *keys)
    exchanges = grouped(by["exchange"], *keys)
    for key, values in sorted(grouped(by["harvest"], *keys).items()):
        cells = [spread(d[key]) if key in d else "" for d in (rearms, exchanges)]
        yield f"| {' | '.join(map(str, key))} | {spread(values)} | {' | '.join(cells)} |\n"
    yield "\nWhat Python adds to an exchange, us\n\n| caches | us |\n|---|---|\n"
    for key, values in sorted(grouped(by["exchange, python"], "caches").items()):
        yield f"| {key[0]} | {spread(values)} |\n"
    yield "\nRearm of 3000 pages, us a page, by dirty pages in each 2 MiB\n\n"
    dense_rows = [row for row in by["rearm"] if row["pattern"] == "dense"]
    per = defaultdict(list)
    for row in dense_rows:
        per[row["engine"], row["density"]].append(row["us"] / row["dirty"])
    names = ["one ioctl a page", "ring", "inline"]
    yield f"| pages in 2 MiB | {' | '.join(names)} |\n|---|---|---|---|\n"
    for density in DENSITY:
        yield f"| {density} | {' | '.join(spread(per[name, density]) for name in names)} |\n"
    yield "\nArm, ms\n\n| memory | RAM, MiB | ms |\n|---|---|---|\n"
    for key, values in sorted(grouped(by["arm"], "memory", "ram_mib").items()):
        yield f"| {key[0]} | {key[1]} | {spread(values, 1e-3)} |\n"
    yield "\nForced pause: from the last write to all vCPUs standing, us; pages beyond the threshold\n\n"
    yield "| engine | vCPUs | threshold | us | beyond, most |\n|---|---|---|---|---|\n"
    beyond: dict[tuple[Any, ...], int] = {}
    for row in by["pause latency"]:
        key = (row["engine"], row["vcpus"], row["dirty"])
        beyond[key] = max(beyond.get(key, -1 << 40), row["overshoot"])
    for key, values in sorted(grouped(by["pause latency"], "engine", "vcpus", "dirty").items()):
        yield f"| {' | '.join(map(str, key))} | {spread(values)} | {beyond[key]} |\n"


def draw(rows: list[dict[str, Any]], directory: Path) -> None:
    plt = pyplot()

    def median(series: str, key: str, **want: Any) -> tuple[list[Any], list[float]]:
        chosen = [
            r for r in rows if r["series"] == series and all(r.get(k) == value for k, value in want.items())
        ]
        points = grouped(chosen, key)
        xs = sorted(x for (x,) in points)
        return xs, [statistics.median(points[x,]) for x in xs]

    figure, axes = plt.subplots(2, 2, figsize=(11, 8))
    writes = {key[0]: statistics.median(v) for key, v in grouped(
        [r for r in rows if r["series"] == "first write"], "way").items()}  # fmt: skip
    axis = axes[0][0]
    axis.barh(list(writes), list(writes.values()))
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="us", title="First write to a page")
    for i, value in enumerate(writes.values()):
        axis.text(value, i, f" {value:.2g}", va="center")
    axis.margins(x=0.15)
    for axis, key, title, want in (
        (axes[0][1], "ram_mib", "Harvest of 3000 pages against RAM", {"dirty": 3000}),
        (axes[1][0], "dirty", "Harvest against dirty pages, 8 GiB", {"ram_mib": 8192}),
    ):
        for engine in ("scan", "ring", "inline"):
            for memory, style in (("4 KiB", "o-"), ("huge", "s--")):
                xs, ys = median("harvest", key, engine=engine, memory=memory, **want)
                if len(xs) > 1:
                    axis.plot(xs, ys, style, label=f"{engine}, {memory} pages", markersize=4)
        axis.set(xscale="log", yscale="log", xlabel="RAM, MiB" if key == "ram_mib" else "dirty pages",
                 ylabel="us", title=title)  # fmt: skip
        if axis.lines:
            axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    axis = axes[1][1]
    for engine in ("one ioctl a page", "ring", "inline"):
        chosen = [
            r for r in rows if r["series"] == "rearm" and r["pattern"] == "dense" and r["engine"] == engine
        ]
        per = defaultdict(list)
        for r in chosen:
            per[r["density"]].append(r["us"] / r["dirty"])
        axis.plot(list(per), [statistics.median(v) for v in per.values()], "o-", label=engine, markersize=4)
    axis.set(
        xscale="log", yscale="log", xlabel="dirty pages in each 2 MiB", ylabel="us a page", title="Rearm"
    )
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(directory / "lists.png", dpi=110)
