"""How long a rollback stands a process: against its mappings, its size, its writes since, and who does it.

    python -m benchmarks.rollback -o DIR

Every measurement is a line of rollback.jsonl with all of its parameters. It asserts nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.rollback.in_session import SessionRollback
from checkpoint.rollback.order import rollback
from checkpoint.rollback.request import Request, fingerprint, fingerprint_of_all
from checkpoint.rollback.tree import rollback_tree
from checkpoint.rollback.tree_in_session import TreeSessionRollback
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from checkpoint.tree import Tree, TreeWriter
from checkpoint.tree_session import TreeSession
from uffdtrack import MAX_STOP

HERE = Path(__file__).parent
Mapper = subprocess.Popen[str]
SERIES = {
    "mappings": [(n, 16, 0) for n in (100, 2000, 20000)],
    "size": [(100, mib, 0) for mib in (64, 256, 1024)],
    "dirty": [(100, 256, pages) for pages in (0, 300, 3000, 30000)],
    "session": [(100, 1024, pages) for pages in (0, 300, 3000)],
    "tree": [(100, 300, pages) for pages in (0, 300, 3000)],
}
"""For each series: mappings, MiB and pages written since the epoch; of a tree, in each process."""
PROCESSES = 3
"""Of a tree."""
BY = dict.fromkeys(("session", "tree"), ("itself", "ring", "scan", "sync"))
"""Who does it: the verb by itself, or a session with one of these engines."""


@contextmanager
def mapper(program: Path, *sizes: int) -> Iterator[tuple[Mapper, Path]]:
    """The program with its memory in use, and an empty directory."""
    with (
        subprocess.Popen(
            [program, *map(str, sizes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
        tempfile.TemporaryDirectory() as directory,
    ):
        assert process.stdout and process.stdout.readline()
        try:
            yield process, Path(directory) / "c"
        finally:
            process.kill()


def pauses(process: Mapper, dirty: int, rounds: int, once: Callable[[], float]) -> list[float]:
    """What `once` gives in us, in ms, each time after the program has written so many pages."""
    assert process.stdin and process.stdout
    found = []
    for _ in range(rounds):
        process.stdin.write(f"{dirty}\n")
        process.stdin.flush()
        process.stdout.readline()
        found.append(once() / 1e3)
    return found


def measure(program: Path, mappings: int, mib: int, dirty: int, rounds: int, by: str) -> list[float]:
    """The pauses of some rollbacks of one process, in ms."""
    with mapper(program, mappings, mib) as (process, place), ExitStack() as stack:
        chain = stack.enter_context(ChainWriter(place, b"", force=False))
        target = stack.enter_context(ProcessTarget(process.pid, "scan" if by == "itself" else by))
        session = Session(target, chain)
        session.take()
        if by == "itself":
            stack.close()
        by_session = SessionRollback(session, target, place)

        def once() -> float:
            view = Chain(place).view(0)
            if by == "itself":
                return rollback(process.pid, view).pause_us
            request = Request(process.pid, 0, view.epoch.digest, fingerprint(view), False, MAX_STOP)
            outcome = by_session(request, lambda: None)
            session.take()
            return outcome.pause_us

        return pauses(process, dirty, rounds, once)


def measure_tree(program: Path, mappings: int, mib: int, dirty: int, rounds: int, by: str) -> list[float]:
    """The pauses of some rollbacks of a tree, in ms."""
    with mapper(program, mappings, mib, PROCESSES) as (process, place), ExitStack() as stack:
        writer = stack.enter_context(TreeWriter(place, b"", force=False))
        engine = "scan" if by == "itself" else by
        session = stack.enter_context(TreeSession(process.pid, writer, engine, None))
        session.take()
        if by == "itself":
            stack.close()
        by_session = TreeSessionRollback(session, place)

        def once() -> float:
            entry = Tree(place).open(0)
            views = entry.views()
            if by == "itself":
                return rollback_tree(process.pid, entry, views).pause_us
            request = Request(process.pid, 0, entry.digest, fingerprint_of_all(views), False, MAX_STOP)
            outcome = by_session(request, lambda: None)
            session.take()
            return outcome.pause_us

        return pauses(process, dirty, rounds, once)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("-o", dest="directory", type=Path, default=Path("out/bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--series", choices=SERIES, action="append", help="Only this one; may be repeated.")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    program = options.directory / "mapper"
    subprocess.run(["cc", "-O2", "-o", program, HERE / "mapper.c"], check=True)
    print("| series | mappings | MiB | pages written since | by | stands, ms |\n|---|---|---|---|---|---|")
    with (options.directory / "rollback.jsonl").open("w") as out:
        for series, points in SERIES.items():
            if options.series and series not in options.series:
                continue
            for (mappings, mib, dirty), by in itertools.product(points, BY.get(series, ("itself",))):
                take = measure_tree if series == "tree" else measure
                found = take(program, mappings, mib, dirty, options.rounds, by)
                row: dict[str, Any] = {
                    "series": series, "mappings": mappings, "mib": mib, "dirty": dirty, "by": by,
                    "pause_ms": found,
                }  # fmt: skip
                out.write(json.dumps(row) + "\n")
                spread = f"{statistics.median(found):.1f} ({min(found):.1f}-{max(found):.1f})"
                print(f"| {series} | {mappings} | {mib} | {dirty} | {by} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
