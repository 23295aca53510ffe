"""What a base costs: how fast it is copied, and how long the process stands for it and for later epochs.

    python -m benchmarks.base -o DIR

A process of three threads writes 30,000 scattered pages of 4 GiB a second. In each round a plain program
reads as much memory of a process that rests, writes it to a file past the page cache and waits for the disk;
then a session takes a base of the one that writes, and ten epochs more. A line of base.jsonl for each. It
asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.durable import UFFDTRACK
from uffdtrack import parse_maps

HERE = Path(__file__).parent
PAGES, RATE = 300, 100
"""Written at a time, and so many times a second."""
EPOCHS = 10
CHUNK = 32 << 20
Row = dict[str, Any]


@contextmanager
def steady(program: Path, mib: int, rate: float) -> Iterator[int]:
    with subprocess.Popen([program, str(mib), str(PAGES), str(rate)], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def plain(pid: int, mib: int, path: Path) -> Row:
    """Copy the process's largest mapping to a file, and wait for the disk."""
    region = max(parse_maps(Path(f"/proc/{pid}/maps").read_text()), key=lambda r: r.size)
    buffer = mmap.mmap(-1, CHUNK)
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
    began = time.perf_counter()
    for at in range(0, region.size, CHUNK):
        n = os.preadv(memory, [memoryview(buffer)[: region.size - at]], region.start + at)
        os.pwrite(file, memoryview(buffer)[:n], at)
    os.fdatasync(file)
    took = time.perf_counter() - began
    for fd in (memory, file):
        os.close(fd)
    path.unlink()
    return {"run": "a plain copy", "mib": mib, "seconds": took, "bytes_per_s": region.size / took}


def session(pid: int, mib: int, chain: Path) -> Row:
    """A base and some epochs of the command line's; the base's time is until its row, start included."""
    began = time.perf_counter()
    command = [UFFDTRACK, "checkpoint", str(pid), "-o", chain, "--engine", "ring", "--every", "200ms",
               "--count", str(1 + EPOCHS), "--json"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        base = json.loads(process.stdout.readline())
        seconds = time.perf_counter() - began
        rows = [json.loads(line) for line in process.stdout]
    return {
        "run": "uffdtrack", "mib": mib, "seconds": seconds, "bytes_per_s": base["bytes"] / seconds,
        "pause_us": base["pause_us"], "longest_us": base["longest_us"],
        "later_us": [row["pause_us"] for row in rows if row["schema"] == "uffdtrack/epoch/1"],
    }  # fmt: skip


def measure(mib: int, rounds: int, directory: Path) -> Iterator[Row]:
    program = directory / "steady"
    subprocess.run(["cc", "-O2", "-o", program, HERE / "steady.c", "-lpthread"], check=True)
    for n in range(rounds):
        with steady(program, mib, 0.001) as pid:
            yield {**plain(pid, mib, directory / "plain"), "round": n}
        with steady(program, mib, RATE) as pid, tempfile.TemporaryDirectory(dir=directory) as chain:
            yield {**session(pid, mib, Path(chain) / "c"), "round": n}


def spread(values: list[float], digits: int) -> str:
    three = statistics.median(values), min(values), max(values)
    return "{} ({}-{})".format(*(format(value, f".{digits}f") for value in three))


def table(rows: list[Row]) -> Iterator[str]:
    yield "| run | GB/s | stood for the base, ms | at a time | for a later epoch, ms |"
    yield "|---" * 5 + "|"
    for run in ("a plain copy", "uffdtrack"):
        mine = [row for row in rows if row["run"] == run]
        cells = [spread([row["bytes_per_s"] / 1e9 for row in mine], 2)]
        stood, longest = (
            [row[key] / 1e3 for row in mine if key in row] for key in ("pause_us", "longest_us")
        )
        later = [us / 1e3 for row in mine for us in row.get("later_us", [])]
        cells += [spread(values, 2) if values else "" for values in (stood, longest, later)]
        yield f"| {run} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=4096)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="uffdtrack-bench-", dir=options.output) as scratch,
        (options.output / "base.jsonl").open("w") as out,
    ):
        for row in measure(options.mib, options.rounds, Path(scratch)):
            rows.append(row)
            out.write(json.dumps(row) + "\n")
    text = "\n".join(table(rows))
    (options.output / "base.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
