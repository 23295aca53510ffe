"""python -m tests.replication.run_matrix FIRST LAST: each failure at each step, once for each of these seeds.

It prints the table of docs/fault-tolerance.md, with the number of injections in each cell. As root, since a
disk that is full is a small one of its own.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.replication.injection import Trial
from tests.replication.matrix import MATRIX, STEPS, Step, failures_of, plan
from tests.replication.zygote import Zygote


@contextmanager
def small_disk() -> Iterator[Path]:
    """A tmpfs with room for some hundred epochs."""
    with tempfile.TemporaryDirectory(prefix="uffdtrack-test-") as directory:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", directory], check=True)
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", "-l", directory], check=True)


def inject(zygote: Zygote, step: Step, failure: str, seed: int) -> None:
    """One injection. Raises: AssertionError: the outside has seen what it must not see, or it has stalled."""
    planned = plan(step, failure, seed)
    try:
        if failure == "disk full":
            with small_disk() as disk, Trial(zygote, planned, disk) as trial:
                trial.run()
        else:
            with Trial(zygote, planned) as trial:
                trial.run()
    except AssertionError as error:
        raise type(error)(f"seed {seed}, {step.name}, {failure}: {error}") from error


def by_chance(seed: int) -> tuple[Step, str]:
    rng = random.Random(seed)
    step = rng.choice(STEPS)
    return step, rng.choice(failures_of(step))


def table(counts: Counter[tuple[str, str]]) -> str:
    """Numbers of injections, by step and failure, as Markdown."""
    lines = [f"| | {' | '.join(MATRIX)} |", "|---" * (len(MATRIX) + 1) + "|"]
    for step in STEPS:
        cells = (str(counts[step.name, failure] or "") for failure in MATRIX)
        lines.append(f"| {step.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    first, last = map(int, sys.argv[1:])
    counts: Counter[tuple[str, str]] = Counter()
    failed = 0
    with Zygote() as zygote:
        for seed in range(first, last + 1):
            for step in STEPS:
                for failure in failures_of(step):
                    counts[step.name, failure] += 1
                    try:
                        inject(zygote, step, failure, seed)
                    except AssertionError as error:
                        failed += 1
                        print(error, flush=True)
    print(table(counts))
    print(f"\n{counts.total()} injections, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
