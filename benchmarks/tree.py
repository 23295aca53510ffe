"""How long a postgres with 128 MiB of shared buffers stands, a tree, with and without --follow-shared.

    python -m benchmarks.tree -o DIR

pgbench has two clients, which stay connected, ten epochs are taken a second; the ways take turns, with a time
of no session between. Every epoch is a line of tree.jsonl. It asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bytes import Measure, postgres
from benchmarks.durable import Session

Row = dict[str, Any]
EVERY = 0.1
SETTLE = 3.0
PARTS = ["pages", "compared", "pause_us", "stop_us", "harvest_us", "rearm_us", "copy_us"]
WAYS: dict[str, list[str]] = {"compared": [], "followed": ["--follow-shared"]}


def measure(under: Measure, directory: Path, engine: str, way: str, seconds: float) -> list[Row]:
    """Rows of one session."""
    pid, done, more = under
    before = done()
    time.sleep(seconds)
    untracked = (done() - before) / seconds
    session = Session(pid, directory / "chain", EVERY, *more, "--engine", engine, *WAYS[way])
    try:
        time.sleep(SETTLE)
        first, before, began = len(session.rows), done(), time.perf_counter()
        time.sleep(seconds)
        speed = (done() - before) / (time.perf_counter() - began) / untracked
        rows = session.rows[first:]
    finally:
        session.close()
    return [
        {
            "engine": engine, "way": way, "speed": round(speed, 3),
            **{key: row[key] for key in PARTS},
        }
        for row in rows
    ]  # fmt: skip


def table(rows: list[Row]) -> str:
    """Medians of all epochs, the least and the most in brackets."""
    keys = {"pause_us": ("pause, ms", 1e-3, ".2f"), "harvest_us": ("harvest, ms", 1e-3, ".2f"),
            "pages": ("pages", 1, ".0f"), "compared": ("compared mappings", 1, ".0f"),
            "speed": ("of its untracked speed", 1, ".2f")}  # fmt: skip
    lines = ["| engine | shared memory is | " + " | ".join(name for name, _, _ in keys.values()) + " |"]
    lines.append("|---" * (len(keys) + 2) + "|")
    for engine, way in dict.fromkeys((row["engine"], row["way"]) for row in rows):
        cells = []
        for key, (_, factor, form) in keys.items():
            found = [row[key] * factor for row in rows if (row["engine"], row["way"]) == (engine, way)]
            parts = (format(f(found), form) for f in (statistics.median, min, max))
            cells.append("{} ({}-{})".format(*parts))
        lines.append(f"| {engine} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--output", type=Path, default=Path("out/bench"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.output) as text, postgres(Path(text), "128MB", 10) as under:
        for n in range(options.rounds):
            for engine in ("ring", "scan"):
                for way in WAYS:
                    found = measure(under, Path(text).absolute(), engine, way, options.seconds)
                    rows += [{"round": n, **row} for row in found]
    (options.output / "tree.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(table(rows))


if __name__ == "__main__":
    main()
