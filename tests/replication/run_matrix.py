"""python -m tests.replication.run_matrix FIRST LAST: each failure at each step, once for each of these seeds.

It prints a table of docs/fault-tolerance.md, with the number of injections in each cell. As root, since a
disk that is full is a small one of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from tests.replication.inject import AtBroker, Cell, Direct
from tests.replication.zygote import Zygote

Injection = tuple[int, Cell]
"""A seed, and where."""


class Log:
    """What was injected, a line each; several processes add to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def add(self, injection: Injection, error: str, seconds: float) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([*injection, error, round(seconds, 1)]) + "\n")

    def read(self) -> dict[Injection, str]:
        """Each with what was wrong, or ""."""
        found: dict[Injection, str] = {}
        for line in self.path.read_text().splitlines():
            seed, (step, failure), error, *_ = json.loads(line)
            found[seed, (step, failure)] = error
        return found


def work(matrix: Direct | AtBroker, todo: list[Injection], log: Log, seconds: float) -> None:
    """Do injections, one after the other; begin none after so many seconds."""
    until = time.monotonic() + seconds
    with Zygote() as zygote:
        for kind in sorted({matrix.kind(*one) for one in todo}):
            with matrix.injecting(zygote, kind) as inject:
                for one in todo:
                    if matrix.kind(*one) != kind or time.monotonic() > until:
                        continue
                    error, began = "", time.monotonic()
                    try:
                        inject(*one)
                    except AssertionError as wrong:
                        error = str(wrong)
                        print(error, flush=True)
                    log.add(one, error, time.monotonic() - began)


def share(every: list[Injection], matrix: Direct | AtBroker, worker: int, workers: int) -> list[Injection]:
    """What one of several processes does: of one kind, if there are as many processes as kinds."""
    kinds = sorted({matrix.kind(*one) for one in every})
    if workers < len(kinds):
        return every[worker::workers]
    kind = worker % len(kinds)
    of_kind = [one for one in every if matrix.kind(*one) == kinds[kind]]
    return of_kind[worker // len(kinds) :: len(range(kind, workers, len(kinds)))]


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--broker", action="store_true", help="with a cluster of NATS")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time")
    parser.add_argument("--log", type=Path, help="note what was done there, and go on behind what is there")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin none after so long")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    matrix: Direct | AtBroker = AtBroker() if given.broker else Direct()
    with ExitStack() as stack:
        if not given.log:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="uffdtrack-test-"))
            given.log = Path(place) / "log"
        log = Log(given.log)
        if given.worker is None:
            command = [sys.executable, "-m", "tests.replication.run_matrix", *sys.argv[1:]]
            command += ["--log", str(log.path), "--worker"]
            for process in [subprocess.Popen([*command, str(n)]) for n in range(given.jobs)]:
                process.wait()
        else:
            done = log.read()
            every = [
                (seed, cell)
                for seed in range(given.first, given.last + 1)
                for cell in random.Random(seed).sample(matrix.cells, len(matrix.cells))
            ]
            mine = share(every, matrix, given.worker, given.jobs)
            work(matrix, [one for one in mine if one not in done], log, given.seconds)
            return
        done = log.read()
    counts = Counter(cell for _, cell in done)
    print(matrix.table(counts))
    failed = sum(bool(error) for error in done.values())
    print(f"\n{counts.total()} injections, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
