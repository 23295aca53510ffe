"""The A/B's rows as tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from checkpoint import report


def _spread(rows: Sequence[dict[str, Any]], keys: Iterable[str], digits: int = 0) -> str:
    values = sorted(sum(row[key] for key in keys) for row in rows)
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} ({values[0]:.{digits}f}-{values[-1]:.{digits}f})"


def tables(rows: list[dict[str, Any]]) -> None:
    """Costs by series, in microseconds: median (least-most)."""
    names = list(dict.fromkeys(row["engine"] for row in rows))
    for series, key in (("dirty", "dirty"), ("ram", "ram")):
        own = [row for row in rows if row["series"] == series]
        fixed = "ram" if key == "dirty" else "dirty"
        if not own:
            continue
        what = f"RAM {own[0]['ram'] >> 20} MiB" if fixed == "ram" else f"{own[0]['dirty']} dirty pages"
        at = sorted({row[key] for row in own})
        report.emit(f"\nharvest + rearm, us, by {'dirty pages' if key == 'dirty' else 'RAM, MiB'}; {what}")
        report.emit_table(
            ("engine", *(str(n if key == "dirty" else n >> 20) for n in at)),
            (
                [name, *(_spread([r for r in own if r["engine"] == name and r[key] == n],
                                 ("harvest_us", "rearm_us")) for n in at)]
                for name in names
            ),
            left=1,
        )  # fmt: skip
    own = [row for row in rows if row["series"] == "contents"]
    if own:
        at = sorted({row["dirty"] for row in own})
        report.emit(f"\nharvest, rearm and copy, us, by dirty pages; RAM {own[0]['ram'] >> 20} MiB")
        report.emit_table(
            ("engine", *map(str, at)),
            (
                [name, *(_spread([r for r in own if r["engine"] == name and r["dirty"] == n],
                                 ("exchange_us",)) for n in at)]
                for name in names
            ),
            left=1,
        )  # fmt: skip
    own = [row for row in rows if row["series"] == "ram"]
    most = max((row["ram"] for row in own), default=0)
    report.emit(f"\nus; RAM {most >> 20} MiB, {own[0]['dirty'] if own else 0} dirty pages")
    report.emit_table(
        ("engine", "harvest", "rearm", "stop", "arm", "first write", "again", "overshoot", "progress"),
        (
            [
                name,
                *(_spread([r for r in own if r["engine"] == name and r["ram"] == most], [key], digits)
                  for key, digits in (("harvest_us", 1), ("rearm_us", 1), ("stop_us", 0), ("arm_us", 0),
                                      ("write_us", 2), ("again_us", 3))),
                *(_spread([r for r in rows if r["engine"] == name and r["series"] == series], [key], digits)
                  for series, key, digits in (("pause", "overshoot", 0), ("progress", "progress", 2))),
            ]
            for name in names
        ),
        left=1,
    )  # fmt: skip
