"""How many epochs a second a session takes that writes to no disk.

    python -m benchmarks.in_memory -o DIR

A process of 1 GiB writes 64 pages, scattered, 1,500 times a second, and as many epochs are asked for (ring):
a chain on a tmpfs, of which the last three files are left; then its last 100 epochs in the memory of the
session (--keep). It is measured when it has caught up with what was written during the base. Every run
is a line of in_memory.jsonl. It asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.durable import Row, Session, of_rows, table

HERE = Path(__file__).parent
RATE, PAGES = 1500, 64
CATCH_UP = 30.0
"""The most seconds that it may take to catch up."""
SERIES = {
    "64 pages of 1 GiB, on a tmpfs": ([], 3),
    "64 pages of 1 GiB, --keep 100": (["--keep", "100"], 0),
}
"""Options of the session, and how many files of its chain are left; 0: all."""


def run(directory: Path, options: list[str], keep: int, seconds: float) -> Row:
    program = directory / "steady"
    subprocess.run(["cc", "-O2", "-o", program, HERE / "steady.c", "-lpthread"], check=True)
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as memory,
        subprocess.Popen([program, "1024", str(PAGES), str(RATE)], stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout and process.stdout.readline()
        try:
            chain = Path(memory) / "chain"
            session = Session(process.pid, chain, 1 / RATE, "--engine", "ring", *options, keep=keep)
            try:
                deadline = time.monotonic() + CATCH_UP
                while time.monotonic() < deadline and max(r["pages"] for r in session.rows[-20:]) > 1000:
                    time.sleep(0.1)
                first, used, began = len(session.rows), session.processor_seconds(), time.perf_counter()
                time.sleep(seconds)
                took = time.perf_counter() - began
                rows = session.rows[first:]
                used = session.processor_seconds() - used
            finally:
                session.close()
        finally:
            process.kill()
    return {"cores": used / took, **(of_rows(rows, took) if rows else {"epochs_per_s": 0.0})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("out/bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(options.rounds):
            for name, (more, keep) in SERIES.items():
                rows.append({"run": name, **run(Path(directory), more, keep, options.seconds)})
                print(json.dumps(rows[-1]), flush=True)
    (options.output / "in_memory.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (options.output / "in_memory.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
