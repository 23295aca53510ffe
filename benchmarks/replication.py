"""What replication costs a guest, and how fast its standby takes over.

    python -m benchmarks.replication -o DIR

Active and standby are two processes on this host, over a Unix socket and over TLS on loopback; the standby's
chain is on a tmpfs. A guest changes a structure over 100, 300, 1000 or 3000 pages: its speed, of that without
replication and of that with nothing but harvests, and epochs a second. A guest that answers packets: how much
later its answers come, how long none comes after a kill -9 (of 1 GiB), and in a switchover. Bytes on the wire
with deltas and without. Every run is a line of replication.jsonl. It asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.replicated import LINKS, Asker, Pair, kill, running, switch_over, three

Row = dict[str, Any]
RATES = {100: 500, 300: 250, 1000: 100, 3000: 40}
"""Epochs a second that are asked for, by pages."""
EVERY = ("0.001", "0.002", "0.005", "0.01", "inf")
"""Of the answers that are held; inf: an epoch at each output."""
DEADLINE = 1.0
"""Of the standby, in seconds: its default."""
ANSWERS = 200


def speeds(place: Path, seconds: float) -> Iterator[Row]:
    for pages, rate in RATES.items():
        at = ("--pages", pages, "--every", 1 / rate)
        alone: dict[str, float] = {}
        for name, options in (("alone", ()), ("tracked", ("--track",))):
            with running("check", *at, *options) as guest:
                time.sleep(0.5)
                alone[name] = guest.over(seconds)["speed"]
        tracked = alone["tracked"] / alone["alone"]
        for link in LINKS:
            pair = Pair(place, link)
            with pair.standby(), pair.guest("check", *at) as guest:
                found = guest.over(seconds)
            row = {"series": "rate", "link": link, "pages": pages, "asked": rate, "tracked": tracked}
            yield {**row, "progress": found.pop("speed") / alone["alone"], **found}


def delays(place: Path, seconds: float) -> Iterator[Row]:
    asker = Asker()
    with running("echo", "--net", asker.active):
        asker.await_answer()
        alone = statistics.median(asker.delays(ANSWERS))
    for link in LINKS:
        for every in EVERY:
            pair = Pair(place, link)
            with pair.standby(), pair.guest("echo", "--net", asker.active, "--every", every):
                found = asker.delays(ANSWERS)
            ms = sorted(max(delay - alone, 0.0) * 1e3 for delay in found)
            yield {
                "series": "delay", "link": link, "every": every, "alone_ms": alone * 1e3,
                "p50_ms": ms[len(ms) // 2], "p99_ms": ms[len(ms) * 99 // 100],
            }  # fmt: skip
    asker.close()


def failovers(place: Path, seconds: float) -> Iterator[Row]:
    for link in LINKS:
        pair, asker = Pair(place, link), Asker()
        fence = ["--fence", f"lock:{place}/lock"] if link == "tls" else []
        with pair.standby("--net", asker.standby, *fence):
            with pair.guest("echo", "--ram", 1024, "--fill", "--net", asker.active, *fence) as guest:
                asker.await_answer()
                killed = kill(guest)
                asker.await_first()
                took = time.perf_counter() - killed
        asker.close()
        yield {"series": "failover", "link": link, "ms": took * 1e3}


def switchovers(place: Path, seconds: float) -> Iterator[Row]:
    for link in LINKS:
        pair, asker = Pair(place, link), Asker()
        stood: list[float] = []

        def over(stood: list[float] = stood) -> None:
            stood.append(switch_over())

        with pair.standby("--net", asker.standby), pair.guest("echo", "--net", asker.active):
            asker.await_answer()
            silent = asker.silence(over)
        asker.close()
        yield {"series": "switchover", "link": link, "stood_ms": stood[0] * 1e3, "silent_ms": silent * 1e3}


def sizes(place: Path, seconds: float) -> Iterator[Row]:
    for deltas in (True, False):
        pair = Pair(place, "unix")
        with pair.standby(deltas=deltas), pair.guest("check", "--pages", 1000, "--every", 0.05) as guest:
            found = guest.over(seconds)
        name = "deltas" if deltas else "whole"
        yield {"series": "bytes", "stored": name, "bytes_per_page": found["bytes_per_epoch"] / 1000}


SERIES: dict[str, Callable[[Path, float], Iterator[Row]]] = {
    "rate": speeds, "delay": delays, "failover": failovers, "switchover": switchovers, "bytes": sizes,
}  # fmt: skip
COLUMNS = {
    "rate": {"epochs_per_s": ".0f", "progress": ".2f", "tracked": ".2f"},
    "delay": {"p50_ms": ".2f", "p99_ms": ".2f"},
    "failover": {"ms": ".0f"},
    "switchover": {"stood_ms": ".1f", "silent_ms": ".1f"},
    "bytes": {"bytes_per_page": ".0f"},
}
NAMES = ("link", "pages", "every", "stored")


def asked(row: Row, column: str) -> str:
    """What was asked of a figure; "" for nothing."""
    match row["series"], column:
        case "rate", "epochs_per_s" if row["pages"] in (100, 3000):
            return f"{row['asked']}"
        case "rate", "progress" if row["pages"] == 3000:
            return "0.80"
        case "delay", "p50_ms":
            return "at most 2"
        case "failover", "ms":
            return f"at most {50 + (DEADLINE * 1e3 if row['link'] == 'tls' else 0):.0f}"
        case "switchover", "stood_ms":
            return "at most 5"
    return ""


def table(rows: list[Row]) -> str:
    """Medians of the rounds, the least and the most in brackets; a line for each figure."""
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for name in COLUMNS:
        for row in rows:
            what = ", ".join(f"{key} {row[key]}" for key in NAMES if key in row)
            for column in COLUMNS[name] if row["series"] == name else ():
                found.setdefault((name, what, column, asked(row, column)), []).append(row[column])
    lines = ["| series | | figure | asked | median (least-most) |", "|---|---|---|---|---|"]
    for (name, what, column, wanted), values in found.items():
        lines.append(f"| {name} | {what} | {column} | {wanted} | {three(values, COLUMNS[name][column])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("out/bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--series", choices=SERIES, nargs="*", default=list(SERIES))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        for number in range(options.rounds):
            for name in options.series:
                for row in SERIES[name](Path(place), options.seconds):
                    rows.append({"round": number, **row})
                    print(json.dumps(rows[-1]), flush=True)
    (options.output / "replication.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (options.output / "replication.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
