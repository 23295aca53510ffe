"""What was asked of uffdtrack, what this machine gives, and its peers: one table of all series of a run.

    python -m benchmarks.headline -o DIR [--docs docs]

DIR has the lines that the other benchmarks have written there (`make bench`); a series that is missing has no
line in the table. Writes headline.json, headline.md and headline.png, and measures nothing itself. With
--docs the table takes the place of the one in performance.md there, and the other files are copied beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.plots import pyplot
from uffdtrack.errors import UnsupportedError

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One figure.

    Attributes:
        part: of the project, by which the table is ordered.
        asked: the figure that was asked for; `more`: more of it is better.
        values: one for each round or window.
        peers: medians of others, by their names.
    """

    part: str
    what: str
    unit: str
    asked: float
    more: bool
    values: list[float]
    peers: dict[str, float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def reached(self) -> float:
        """1 or more: as asked, or better."""
        least = 1e-9
        return self.median / self.asked if self.more else self.asked / max(self.median, least)


def read(directory: Path, name: str) -> list[Row]:
    with suppress(FileNotFoundError):
        return [json.loads(text) for text in (directory / name).read_text().splitlines()]
    return []


def lines_of(
    rows: list[Row], part: str, what: str, unit: str, asked: float, value: Callable[[Row], float],
    more: bool = False, peers: dict[str, list[float]] | None = None,
) -> Iterator[Line]:  # fmt: skip
    """A line, if there are rows for it."""
    known = {name: statistics.median(values) for name, values in (peers or {}).items() if values}
    if rows:
        yield Line(part, what, unit, asked, more, [value(row) for row in rows], known)


def durable(rows: list[Row]) -> Iterator[Line]:
    def of(run: str) -> list[Row]:
        return [row for row in rows if row["run"] == run]

    others = {"BGSAVE": of("BGSAVE, again and again"), "gcore": of("gcore, again and again")}
    rates = {name: [row["epochs_per_s"] for row in some] for name, some in others.items()}
    speeds = {name: [row["of_untracked"] for row in some] for name, some in others.items()}
    for rate, speed in ((10, 0.9), (150, 0.5)):
        mine = of(f"redis, {rate} a second")
        what = f"redis, asked for {rate} a second"
        yield from lines_of(
            mine, "rate", what, "epochs/s", rate, lambda row: row["epochs_per_s"], more=True, peers=rates
        )
        yield from lines_of(
            mine, "rate", f"{what}: of its speed", "", speed, lambda row: row["of_untracked"], more=True,
            peers=speeds,
        )  # fmt: skip


def in_memory(rows: list[Row]) -> Iterator[Line]:
    for run in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == run]
        yield from lines_of(mine, "rate", run, "epochs/s", 1500, lambda row: row["epochs_per_s"], more=True)


def pauses(rows: list[Row]) -> Iterator[Line]:
    whole = {
        tool: [row["pause_us"] / 1e3 for row in rows if row.get("tool") == tool] for tool in ("gcore", "criu")
    }
    for pages, asked in ((64, 0.25), (300, 0.5), (1450, 1.5), (100_000, 5.0)):
        for engine in ("ring", "scan"):
            mine = [
                row
                for row in rows
                if row["series"] == "pages" and row["engine"] == engine and row["pages"] == pages
            ]
            yield from lines_of(
                mine, "pause", f"{pages} pages of 1 GiB, {engine}", "ms", asked,
                lambda row: row["pause_us"] / 1e3, peers=whole,
            )  # fmt: skip

    yield from shared([row for row in rows if row["series"] == "shared"])


def shared(rows: list[Row]) -> Iterator[Line]:
    """Pauses with shared memory that only the process maps, beside the median with as much private memory."""
    pauses: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        pauses.setdefault((row["engine"], row["pages"], row["memory"]), []).append(row["pause_us"] / 1e3)
    for (engine, pages, memory), found in sorted(pauses.items()):
        private = pauses.get((engine, pages, "small"))
        if memory == "shared" and private:
            asked = 1.3 * statistics.median(private)
            what = f"{pages} pages of 256 MiB of shared memory, {engine}"
            yield Line("shared", what, "ms", asked, False, found, {"private": statistics.median(private)})


def guests(rows: list[Row]) -> Iterator[Line]:
    for hot, anew, asked in ((64, 0, 2500), (270, 30, 1500), (3000, 0, 150)):
        by = {
            engine: [r for r in rows if (r["engine"], r["hot"], r["anew"]) == (engine, hot, anew)]
            for engine in ("ring", "kvm-ring")
        }
        peers = {"kvm-ring": [row["cycles_s"] for row in by["kvm-ring"]]}
        what = f"guest of 8 GiB at half its speed, {hot} pages hot, {anew} drawn anew"
        yield from lines_of(
            by["ring"], "guest", what, "cycles/s", asked, lambda row: row["cycles_s"], more=True, peers=peers
        )


def trackers(rows: list[Row]) -> Iterator[Line]:
    """harvest + rearm beside KVM's dirty ring, of the largest RAM that both were measured with."""
    mine = [row for row in rows if row["series"] == "dirty" and row["engine"] in ("ring", "kvm-ring")]
    ram = max((row["ram"] for row in mine), default=0)
    cost: dict[tuple[str, int], list[float]] = {}
    for row in mine:
        if row["ram"] == ram:
            total = row["harvest_us"] + row["rearm_us"]
            cost.setdefault((row["engine"], row["dirty"]), []).append(total)
    for dirty in sorted({dirty for _, dirty in cost}):
        peer = cost.get(("kvm-ring", dirty))
        if peer and ("ring", dirty) in cost:
            asked = statistics.median(peer)
            what = f"harvest + rearm of {dirty} pages of {ram >> 30} GiB"
            yield Line("guest", what, "us", asked, False, cost["ring", dirty], {"kvm-ring": asked})


def bases(rows: list[Row]) -> Iterator[Line]:
    mine = [row for row in rows if row["run"] == "uffdtrack"]
    plain = [row["bytes_per_s"] / 1e9 for row in rows if row["run"] != "uffdtrack"]
    if mine and plain:
        half = statistics.median(plain) / 2
        yield from lines_of(
            mine, "base", "4 GiB under load, copied", "GB/s", half, lambda row: row["bytes_per_s"] / 1e9,
            more=True, peers={"a plain copy": plain},
        )  # fmt: skip
        later = [us / 1e3 for row in mine for us in row["later_us"]]
        yield from lines_of(
            mine, "base", "4 GiB under load, stood for it at a time", "ms", max(later),
            lambda row: row["longest_us"] / 1e3, peers={"a later epoch": later},
        )  # fmt: skip


def rollbacks(rows: list[Row]) -> Iterator[Line]:
    """Of 1 GiB; each row has the pauses of all rounds."""
    by = {row["by"]: row["pause_ms"] for row in rows if (row["series"], row["dirty"]) == ("session", 300)}
    alone = by.pop("itself", None)
    for engine, found in by.items():
        peers = {"without a session": statistics.median(alone)} if alone else {}
        yield Line("rollback", f"300 pages of 1 GiB, by a session, {engine}", "ms", 2, False, found, peers)
    if alone:
        yield Line("rollback", "300 pages of 1 GiB, without a session", "ms", 20, False, alone, {})


def sizes(rows: list[Row]) -> Iterator[Line]:
    """Bytes of a page that was written, beside pages that are stored whole."""
    for run in dict.fromkeys(row["run"] for row in rows):
        found = {
            stored: [row["bytes_per_page"] for row in rows if (row["run"], row["stored"]) == (run, stored)]
            for stored in ("deltas", "whole")
        }
        if found["deltas"] and found["whole"]:
            whole = statistics.median(found["whole"])
            yield Line("bytes", f"{run}: a page", "bytes", whole, False, found["deltas"], {"whole": whole})


SERIES: dict[str, Callable[[list[Row]], Iterator[Line]]] = {
    "durable.jsonl": durable,
    "in_memory.jsonl": in_memory,
    "windows.jsonl": pauses,
    "rate.jsonl": guests,
    "ab.jsonl": trackers,
    "rollback.jsonl": rollbacks,
    "base.jsonl": bases,
    "bytes.jsonl": sizes,
}


def number(value: float) -> str:
    return format(value, f".{max(0, 2 - len(str(int(abs(value)))) + 1)}f")


def table(lines: list[Line]) -> Iterator[str]:
    yield "| part | | asked | median (least-most) | reached | peers |"
    yield "|---" * 6 + "|"
    for line in lines:
        unit = f" {line.unit}" if line.unit else ""
        spread = f"{number(line.median)} ({number(min(line.values))}-{number(max(line.values))})"
        peers = ", ".join(f"{name} {number(value)}" for name, value in line.peers.items())
        sign = "" if line.more else "at most "
        yield (
            f"| {line.part} | {line.what} | {sign}{number(line.asked)}{unit} | {spread} | "
            f"{'yes' if line.reached >= 1 else f'{line.reached:.2f}'} | {peers} |"
        )


def draw(lines: list[Line], path: Path) -> None:
    """How much of what was asked is reached, line by line."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.28 * len(lines)), layout="constrained")
    names = [f"{line.what} ({line.part})" for line in lines]
    colours = ["#2ca02c" if line.reached >= 1 else "#d62728" for line in lines]
    axes.barh(range(len(lines)), [line.reached for line in lines], color=colours, height=0.7)
    axes.axvline(1, color="black", lw=1)
    axes.set_yticks(range(len(lines)), names, fontsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.6)  # the first line on top, and no room beyond the bars
    axes.set_xscale("log")
    axes.set_xticks(
        [n for n in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if n <= 2 * max(one.reached for one in lines)]
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set(xlabel="reached, of what was asked (the line: as asked; to the right: better)")
    axes.grid(True, axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def publish(directory: Path, docs: Path) -> None:
    """Put the table, the figures and the plot into the documentation."""
    page = docs / "performance.md"
    before, begin, rest = page.read_text().partition("<!-- headline -->\n")
    _, end, after = rest.partition("<!-- /headline -->\n")
    if not end:
        raise SystemExit(
            f"{page} does not say where the table belongs: <!-- headline --> and <!-- /headline -->"
        )
    page.write_text(before + begin + (directory / "headline.md").read_text() + end + after)
    shutil.copy(directory / "headline.json", docs)
    with suppress(FileNotFoundError):
        shutil.copy(directory / "headline.png", docs / "img")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    directory = options.output
    lines = [line for name, of in SERIES.items() for line in of(read(directory, name))]
    if not lines:
        raise SystemExit(f"{directory} has no series: make bench writes them")
    (directory / "headline.json").write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")
    text = "\n".join(table(lines))
    (directory / "headline.md").write_text(text + "\n")
    print(text)
    with suppress(UnsupportedError):
        draw(lines, directory / "headline.png")
    if options.docs:
        publish(directory, options.docs)


if __name__ == "__main__":
    main()
