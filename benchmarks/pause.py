"""How long a process of 1 GiB with three threads stands, part by part, beside gcore (and CRIU).

    python -m benchmarks.pause -o DIR

One thread writes, one sleeps, one computes. Every window is a line of windows.jsonl with its parameters;
engines, numbers of pages, and a busy Python thread beside us take turns. It asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.checkpoint import criu, gcore
from benchmarks.plots import draw_pause
from checkpoint.targets.process import ProcessTarget

HERE = Path(__file__).parent
ENGINES = ["ring", "scan"]
MIB = 1024
PAGES = {64: 25, 300: 25, 1450: 25, 100000: 2}
"""How many windows of each number of written pages one turn has."""
SHARED_MIB = 256
FOLLOWED_S = 10
"""How long a subject's shared memory may take until it is followed; then it is measured as it is."""
THREADS = [1, 3, 10, 30, 100, 300, 1000]
RATES = [0, 10_000, 100_000, 1_000_000, 1_000_000_000]
"""So many pages a second are written on, while 100,000 are being taken; the last: as fast as it can."""
PARTS = ["pause_us", "stop_us", "harvest_us", "rearm_us", "copy_us", "resume_us"]
Row = dict[str, Any]


class Subject:
    """A running toucher.c that is being tracked.

    Attributes:
        about: its parameters, for the rows.
        compared: how many mappings were compared in the last window.
    """

    def __init__(
        self,
        stack: ExitStack,
        program: Path,
        engine: str,
        mib: int,
        sleeping: int,
        computing: int,
        memory: str = "small",
    ) -> None:
        command = [program, str(mib), memory, str(sleeping), str(computing)]
        self.process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(self.process.kill)
        assert self.process.stdout
        self.pid = int(self.process.stdout.readline())
        self.mib, self.memory, self.engine = mib, memory, engine
        self.about = {"engine": engine, "mib": mib, "threads": 1 + sleeping + computing}
        self.target = stack.enter_context(ProcessTarget(self.pid, engine, follow_shared=memory == "shared"))
        self.target.harvest(everything=True)  # nobody wants its base
        self.window()
        compared, until = self.compared, time.monotonic() + FOLLOWED_S
        while memory == "shared" and self.compared == compared and time.monotonic() < until:
            self.window()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """It runs here alone: what others of its kind compute would take its processors."""
        os.kill(self.pid, signal.SIGCONT)
        yield
        os.kill(self.pid, signal.SIGSTOP)

    def write(self, pages: int, seed: int, rate: int = 0) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{pages} {seed} {rate}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def window(self) -> Row:
        started = time.perf_counter()
        window = self.target.window()
        total = (time.perf_counter() - started) * 1e6
        self.target.hand_over().release()
        self.compared = window.compared
        taken = len(window.contents) // 4096
        parts = {part: round(getattr(window, part), 1) for part in PARTS}
        return {**self.about, "taken": taken, **parts, "total_us": round(total, 1)}


@contextmanager
def busy_python(busy: bool) -> Iterator[None]:
    """A thread of ours that never rests, and that wants the GIL as soon as we let it go."""
    done = not busy

    def work() -> None:
        n = 0
        while not done:
            n += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done = True
        thread.join()


def turns(subjects: list[Subject], rounds: int, rng: random.Random) -> Iterator[Row]:
    for n in range(rounds):
        work = [(s, busy, pages) for s in subjects for busy in (False, True) for pages in PAGES]
        rng.shuffle(work)
        for subject, busy, pages in work:
            with subject.alone(), busy_python(busy):
                for _ in range(PAGES[pages]):
                    subject.write(pages, rng.randrange(1 << 30))
                    yield {"series": "pages", **subject.window(), "pages": pages, "busy": busy, "round": n}


def goes_on(subjects: list[Subject], rounds: int, rng: random.Random) -> Iterator[Row]:
    for n in range(rounds):
        for subject in subjects:
            with subject.alone():
                for rate in RATES:
                    subject.write(100_000, rng.randrange(1 << 30), rate)
                    yield {"series": "rate", **subject.window(), "rate": rate, "pages": 100_000, "round": n}
                    subject.write(0, 0)
                    subject.window()


def shared(program: Path, rounds: int, rng: random.Random) -> Iterator[Row]:
    """Shared memory that only the process maps, beside as much private memory."""
    with ExitStack() as stack:
        subjects = [
            Subject(stack, program, engine, SHARED_MIB, 1, 0, memory)
            for engine in ENGINES
            for memory in ("small", "shared")
        ]
        for n in range(rounds):
            rng.shuffle(subjects)
            for subject in subjects:
                for pages in list(PAGES)[:-1]:
                    for _ in range(PAGES[pages]):
                        subject.write(pages, rng.randrange(1 << 30))
                        about = {"pages": pages, "memory": subject.memory, "round": n}
                        yield {"series": "shared", **subject.window(), **about, "compared": subject.compared}


def many_threads(program: Path, rounds: int, rng: random.Random) -> Iterator[Row]:
    with ExitStack() as stack:
        subjects = [Subject(stack, program, engine, 16, n - 1, 0) for n in THREADS for engine in ENGINES]
        for n in range(rounds):
            rng.shuffle(subjects)
            for subject in subjects:
                for _ in range(5):
                    subject.write(64, rng.randrange(1 << 30))
                    yield {"series": "threads", **subject.window(), "pages": 64, "round": n}


def others(subject: Subject, directory: Path) -> Iterator[Row]:
    """A debugger and CRIU want the traps off: they come last."""
    subject.target.close()
    with subject.alone():
        for n in range(3):
            yield {"series": "others", **gcore(subject, directory), "round": n}
            if shutil.which("criu") and (row := criu(subject, directory)):
                yield {"series": "others", **row, "round": n}


def measure(rounds: int, series: list[str], directory: Path) -> Iterator[Row]:
    program, rng = directory / "toucher", random.Random(1)
    subprocess.run(["cc", "-O2", "-pthread", "-o", program, HERE / "toucher.c"], check=True)
    if "shared" in series:
        yield from shared(program, rounds, rng)
    if "threads" in series:
        yield from many_threads(program, rounds, rng)
    with ExitStack() as stack:
        subjects = [Subject(stack, program, engine, MIB, 1, 1) for engine in ENGINES]
        for subject in subjects:
            os.kill(subject.pid, signal.SIGSTOP)
        if "pages" in series:
            yield from turns(subjects, rounds, rng)
        if "rate" in series:
            yield from goes_on(subjects, max(rounds // 2, 1), rng)
        if "others" in series:
            yield from others(subjects[0], directory)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


def line(rows: list[Row]) -> str:
    """Median and 99th percentile of the pause, medians of its parts."""
    pauses = [row["pause_us"] for row in rows]
    middle = {part: statistics.median(row[part] for row in rows) for part in PARTS}
    harvest = middle["harvest_us"] + middle["rearm_us"]
    parts = [middle["stop_us"], harvest, middle["copy_us"], middle["resume_us"]]
    return (
        f"{middle['pause_us'] / 1e3:.2f} ({min(pauses) / 1e3:.2f}-{max(pauses) / 1e3:.2f}) "
        f"| {percentile(pauses, 0.99) / 1e3:.2f} | {' | '.join(f'{part / 1e3:.3f}' for part in parts)}"
    )


def table(rows: list[Row], series: str, keys: dict[str, str]) -> Iterator[str]:
    mine: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["series"] == series:
            mine[tuple(row[key] for key in keys)].append(row)
    if mine:
        yield f"| {' | '.join(keys.values())} | windows | pause, ms | p99 | stop | harvest | copy | resume |"
        yield "|---" * (len(keys) + 7) + "|"
        for key, these in sorted(mine.items()):
            names = [{True: "yes", False: "no"}.get(k, k) if isinstance(k, bool) else k for k in key]
            yield f"| {' | '.join(map(str, names))} | {len(these)} | {line(these)} |"
        yield ""


def summarise(rows: list[Row]) -> Iterable[str]:
    yield from table(rows, "pages", {"engine": "engine", "busy": "busy Python thread", "pages": "pages"})
    yield from table(rows, "rate", {"engine": "engine", "rate": "pages written on, a second"})
    yield from table(rows, "threads", {"engine": "engine", "threads": "threads"})
    yield from table(
        rows, "shared", {"engine": "engine", "pages": "pages", "memory": "memory", "compared": "compared"}
    )
    for tool in ("gcore", "criu"):
        values = [row["pause_us"] / 1e3 for row in rows if row.get("tool") == tool]
        if values:
            yield f"{tool}: {statistics.median(values):.0f} ms ({min(values):.0f}-{max(values):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--series", nargs="+", default=["pages", "rate", "threads", "shared", "others"])
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="uffdtrack-bench-", dir=options.output) as scratch,
        (options.output / "windows.jsonl").open("w") as windows,
    ):
        for row in measure(options.rounds, options.series, Path(scratch)):
            row["kernel"] = platform.release()
            rows.append(row)
            windows.write(json.dumps(row) + "\n")
    text = "\n".join(summarise(rows))
    (options.output / "windows.md").write_text(text + "\n")
    draw_pause(rows, options.output / "windows.png")
    print(text)


if __name__ == "__main__":
    main()
