"""Reading another process's memory by process_vm_readv(2), by /proc/PID/mem, and asking the pagemap first.

python -m benchmarks.reading
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from pathlib import Path

WAYS = ("process_vm_readv", "/proc/PID/mem", "pagemap, then process_vm_readv")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "reading"
        subprocess.run(["cc", "-O2", "-o", program, Path(__file__).with_suffix(".c")], check=True)
        lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split("\n")
    figures: dict[int, dict[int, list[float]]] = {}
    for line in filter(None, lines):
        length, way, us = line.split()
        figures.setdefault(int(length), {}).setdefault(int(way), []).append(float(us))
    print(f"| pages in a run | {' | '.join(WAYS)} |")
    print("|---" * (len(WAYS) + 1) + "|")
    for length, ways in figures.items():
        cells = [f"{min(v):.2f} ({statistics.median(v):.2f})" for v in ways.values()]
        print(f"| {length} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
