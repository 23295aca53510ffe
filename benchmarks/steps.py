"""What each step of an epoch takes of a redis's speed.

    python -m benchmarks.steps -o DIR

redis-server and its client, as in durable.py, and ten epochs a second. Each row does one thing more than the
row before: it looks for what was written and sets traps again; copies it; stops the process for that, as a
session does; keeps the epochs in memory; writes them to a chain. Other rows have a program beside redis that
only computes, for a share of the time, ten times a second. Every run is a line of steps.jsonl. It asserts
nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from redis import Redis

from benchmarks.durable import SETTLE, Row, Session, processor_seconds, redis, sets, table
from checkpoint.targets.process import ProcessTarget
from uffdtrack import AddressSpace, Tracee

EVERY = 0.1


def again_and_again(work: Callable[[], object]) -> None:
    due = time.perf_counter()
    while True:
        due = max(due + EVERY, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))
        work()


def look(pid: int, copies: bool) -> None:
    with AddressSpace.attach(pid, "ring") as space, Tracee(pid) as tracee:
        space.harvest(tracee, everything=True)

        def once() -> None:
            found, _ = space.harvest(tracee, everything=False)
            if copies:
                space.copy(found)

        again_and_again(once)


def stop(pid: int) -> None:
    with ProcessTarget(pid, "ring") as target:
        target.harvest(everything=True)

        def once() -> None:
            target.window()
            target.hand_over().release()

        again_and_again(once)


def compute(share: float) -> None:
    def once() -> None:
        end = time.thread_time() + share * EVERY
        while time.thread_time() < end:
            pass

    again_and_again(once)


WORK: dict[str, Callable[[int], None]] = {
    "a program that computes for 0.1 of the time": lambda pid: compute(0.1),
    "a program that computes for 0.2 of the time": lambda pid: compute(0.2),
    "a program that computes for 0.4 of the time": lambda pid: compute(0.4),
    "faults, harvests and traps": lambda pid: look(pid, copies=False),
    "and copies": lambda pid: look(pid, copies=True),
    "and stops": stop,
}
SESSIONS = {
    "and the memory of a session (--keep 20)": ["--keep", "20"],
    "or a chain (--durable 50ms)": ["--durable", "50ms"],
}


def beside(client: Redis, where: Path, run: str, seconds: float) -> Row:
    pid = int(client.info("server")["process_id"])
    with sets(client, where) as measure:
        with subprocess.Popen([sys.executable, "-m", "benchmarks.steps", "--work", run, str(pid)]) as worker:
            try:
                measure(SETTLE)
                used, began = processor_seconds([worker.pid]), time.perf_counter()
                speed = measure(seconds)
                used = processor_seconds([worker.pid]) - used
                took = time.perf_counter() - began
                if worker.poll() is not None:
                    raise SystemExit(f"{run}: it has ended")
            finally:
                worker.terminate()
        return {"sets_per_s": speed, "cores": used / took}


def by_session(client: Redis, where: Path, options: list[str], seconds: float) -> Row:
    pid = int(client.info("server")["process_id"])
    with sets(client, where) as measure:
        session = Session(pid, where.parent / "chain", EVERY, "--engine", "ring", *options)
        try:
            measure(SETTLE)
            used, began = session.processor_seconds(), time.perf_counter()
            speed = measure(seconds)
            used = session.processor_seconds() - used
            took = time.perf_counter() - began
        finally:
            session.close()
    return {"sets_per_s": speed, "cores": used / took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("out/bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        WORK[options.work[0]](int(options.work[1]))
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.output) as text:
        directory = Path(text).absolute()
        with redis(directory) as client:
            where = directory / "redis"
            for _ in range(options.rounds):
                with sets(client, where) as measure:
                    measure(SETTLE)
                    untracked = measure(options.seconds)
                for run in (*WORK, *SESSIONS):
                    row = (
                        beside(client, where, run, options.seconds)
                        if run in WORK
                        else by_session(client, where, SESSIONS[run], options.seconds)
                    )
                    rows.append({"run": run, **row, "of_untracked": row["sets_per_s"] / untracked})
                    print(json.dumps(rows[-1]), flush=True)
    (options.output / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (options.output / "steps.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
