"""Plots of the series of `uffdtrack bench`. matplotlib is imported when one is drawn."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from uffdtrack.errors import UnsupportedError

Row = dict[str, Any]
COLOURS = {
    "kvm-bitmap": "#7f7f7f", "kvm-clear": "#bcbd22", "kvm-ring": "#d62728", "scan": "#1f77b4",
    "sync": "#9467bd", "ring": "#2ca02c", "inline": "#ff7f0e",
}  # fmt: skip


def pyplot() -> Any:
    """matplotlib, drawing to files.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UnsupportedError(
            "matplotlib is not installed (pip install '.[plot]' in the project's directory)"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _lines(axes: Any, rows: Iterable[Row], x: str, y: Iterable[str]) -> None:
    """A line for each engine: median of the sum of columns, with the range shaded."""
    by: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by[row["engine"]][row[x]].append(sum(row[key] for key in y))
    for engine, points in by.items():
        at = sorted(points)
        middle = [statistics.median(points[i]) for i in at]
        style = "--" if engine in ("ring", "inline") else "-"
        axes.plot(at, middle, style, marker="o", ms=4, label=engine, color=COLOURS.get(engine))
        axes.fill_between(
            at, [min(points[i]) for i in at], [max(points[i]) for i in at], alpha=0.12,
            color=COLOURS.get(engine),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(True, which="major", alpha=0.3)


def draw_ab(rows: Sequence[Row], directory: Path) -> list[Path]:
    """Cost of a checkpoint against dirty pages and against RAM; first writes; the forced pause."""
    plt = pyplot()
    dirty = [row for row in rows if row["series"] == "dirty"]
    ram = [row for row in rows if row["series"] == "ram"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    cost = ("harvest_us", "rearm_us")
    if dirty:
        _lines(left, dirty, "dirty", cost)
        left.set_title(f"RAM {dirty[0]['ram'] >> 20} MiB")
    if ram:
        _lines(right, [{**row, "mib": row["ram"] >> 20} for row in ram], "mib", cost)
        right.set_title(f"{ram[0]['dirty']} dirty pages")
    left.set(xlabel="dirty pages", ylabel="harvest + rearm, us")
    right.set(xlabel="RAM, MiB")
    right.set_xticks(sorted({row["ram"] >> 20 for row in ram}), minor=False)
    right.get_xaxis().set_major_formatter("{x:.0f}")
    right.minorticks_off()
    handles, names = right.get_legend_handles_labels()
    note = "dashed: a guest\nwithout KVM"
    figure.legend(handles, names, loc="outside right upper", fontsize=8, title=note, title_fontsize=8)
    figure.suptitle("Cost of a checkpoint to the tracker (median, shaded: least to most)")
    out = [directory / "ab-cost.png", directory / "ab-guest.png"]
    figure.savefig(out[0], dpi=110)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    _bars(left, ram, "write_us", "first write to a page in a cycle, us")
    left.set_yscale("log")
    _bars(right, [r for r in rows if r["series"] == "pause"], "overshoot", "pages beyond the threshold")
    right.axhline(0, color="black", lw=0.8)
    figure.savefig(out[1], dpi=110)
    plt.close("all")
    return out


def _bars(axes: Any, rows: Iterable[Row], key: str, title: str) -> None:
    by: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        by[row["engine"]].append(row[key])
    names = list(by)
    middle = [statistics.median(by[name]) for name in names]
    spread = [
        [m - min(by[n]) for n, m in zip(names, middle, strict=True)],
        [max(by[n]) - m for n, m in zip(names, middle, strict=True)],
    ]
    colours = [COLOURS.get(name, "#17becf") for name in names]
    axes.bar(range(len(names)), middle, yerr=spread, color=colours, capsize=3)
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.set_title(title, fontsize=10)
    axes.grid(True, axis="y", alpha=0.3)


def draw_migration(runs: dict[str, Sequence[Row]], ram: int, path: Path) -> Path:
    """What is left when each round of a pre-copy is over, for several runs; before the first, `ram` bytes."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for i, (name, rows) in enumerate(runs.items()):
        left = [ram, *(row["left"] for row in rows)]
        mib = [n / (1 << 20) for n in left]
        axes.plot(
            range(len(left)), mib, "-" if i % 2 else "--", marker="osx^"[i % 4], ms=6, label=name, alpha=0.8
        )
    axes.set(xlabel="rounds that are over", ylabel="left to send, MiB", ylim=(0, None))
    axes.grid(True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close("all")
    return path


def draw_pause(rows: Sequence[Row], path: Path) -> Path:
    """The pause against pages and against threads: median, shaded up to the 99th percentile."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for ax, series, x in ((axes[0], "pages", "pages"), (axes[1], "threads", "threads")):
        by: dict[tuple[str, bool], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row["series"] == series:
                by[row["engine"], row.get("busy", False)][row[x]].append(row["pause_us"] / 1e3)
        for (engine, busy), points in sorted(by.items()):
            at, colour = sorted(points), COLOURS[engine]
            label = f"{engine}, busy Python thread" if busy else engine
            middle = [statistics.median(points[n]) for n in at]
            high = [sorted(points[n])[len(points[n]) * 99 // 100] for n in at]
            ax.plot(at, middle, "--" if busy else "-", marker="o", ms=4, color=colour, label=label)
            ax.fill_between(at, middle, high, color=colour, alpha=0.1)
        ax.set(xscale="log", yscale="log", xlabel=x, ylabel="the process stands still, ms")
        ax.grid(True, which="major", alpha=0.3)
        if by:
            ax.legend(fontsize=8)
    axes[0].set_title("1 GiB, 3 threads")
    axes[1].set_title("64 pages, threads that sleep")
    figure.savefig(path, dpi=110)
    plt.close("all")
    return path
