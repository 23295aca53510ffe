"""How long a rollback stands a process: against its mappings, its size, and what it has written since.

    python -m benchmarks.rollback -o DIR

Every measurement is a line of rollback.jsonl with all of its parameters. It asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.rollback.order import rollback
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget

HERE = Path(__file__).parent
SERIES = {
    "mappings": [(n, 16, 0) for n in (100, 2000, 20000)],
    "size": [(100, mib, 0) for mib in (64, 256, 1024)],
    "dirty": [(100, 256, pages) for pages in (0, 300, 3000, 30000)],
}
"""For each series: mappings, MiB and pages written since the epoch."""


def measure(program: Path, mappings: int, mib: int, dirty: int, rounds: int) -> list[float]:
    """The pauses of some rollbacks of one process, in ms."""
    with (
        subprocess.Popen(
            [program, str(mappings), str(mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
        tempfile.TemporaryDirectory() as directory,
    ):
        assert process.stdin and process.stdout and process.stdout.readline()
        try:
            with (
                ChainWriter(Path(directory) / "c", b"", force=False) as chain,
                ProcessTarget(process.pid) as target,
            ):
                Session(target, chain).take()
            pauses = []
            for _ in range(rounds):
                process.stdin.write(f"{dirty}\n")
                process.stdin.flush()
                process.stdout.readline()
                view = Chain(Path(directory) / "c").view(None)
                pauses.append(rollback(process.pid, view).pause_us / 1e3)
        finally:
            process.kill()
    return pauses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("-o", dest="directory", type=Path, default=Path("out/bench"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    program = options.directory / "mapper"
    subprocess.run(["cc", "-O2", "-o", program, HERE / "mapper.c"], check=True)
    print("| series | mappings | MiB | pages written since | stands, ms |\n|---|---|---|---|---|")
    with (options.directory / "rollback.jsonl").open("w") as out:
        for series, points in SERIES.items():
            for mappings, mib, dirty in points:
                found = measure(program, mappings, mib, dirty, options.rounds)
                row: dict[str, Any] = {
                    "series": series, "mappings": mappings, "mib": mib, "dirty": dirty, "pause_ms": found,
                }  # fmt: skip
                out.write(json.dumps(row) + "\n")
                spread = f"{statistics.median(found):.1f} ({min(found):.1f}-{max(found):.1f})"
                print(f"| {series} | {mappings} | {mib} | {dirty} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
