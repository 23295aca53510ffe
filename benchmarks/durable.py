"""How many epochs a second become safe, and what a redis under load keeps of its speed meanwhile.

    python -m benchmarks.durable -o DIR

redis-server has 200,000 keys of 512 bytes, and its benchmark client sets them as fast as it can. In each
round it runs untracked, with epochs at 10 and at 150 a second, with BGSAVE in a loop, and with gcore in a
loop. Beside it stands what the disk takes of a plain program that writes as much at a time, and waits for it
(fdatasync). Every run is a line of durable.jsonl. It asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from redis import Redis

UFFDTRACK = Path(sys.executable).with_name("uffdtrack")
KEYS, SIZE = 200_000, 512
SETTLE = 1.0
"""Seconds that each run goes on before it is measured."""
Row = dict[str, Any]
Again = Callable[[Redis, Path], None]


@contextmanager
def redis(directory: Path) -> Iterator[Redis]:
    """A server of our own, with its keys, on a socket in the directory."""
    where = directory / "redis"
    server = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", where, "--save", "", "--dir", directory],
        stdout=subprocess.DEVNULL,
    )
    client = Redis(unix_socket_path=str(where))
    try:
        while True:
            with suppress(Exception):
                client.ping()
                break
            if server.poll() is not None:
                raise SystemExit("redis-server does not start")
        subprocess.run([*load(where), "-n", str(3 * KEYS), "-P", "16"], check=True, stdout=subprocess.DEVNULL)
        yield client
    finally:
        client.close()
        server.kill()
        server.wait()


def load(where: Path) -> list[str | Path]:
    return ["redis-benchmark", "-s", where, "-t", "set", "-r", str(KEYS), "-d", str(SIZE), "-q"]


def commands(client: Redis) -> int:
    return int(client.info("stats")["total_commands_processed"])


@contextmanager
def sets(client: Redis, where: Path) -> Iterator[Callable[[float], float]]:
    """The client sets keys; gives a function that measures how many a second, for some seconds."""
    with subprocess.Popen([*load(where), "-n", "1000000000"], stdout=subprocess.DEVNULL) as benchmark:

        def measure(seconds: float) -> float:
            began, before = time.perf_counter(), commands(client)
            time.sleep(seconds)
            return (commands(client) - before) / (time.perf_counter() - began)

        try:
            yield measure
        finally:
            benchmark.kill()


def processor_seconds(pids: Iterable[int]) -> float:
    """What these processes have taken."""
    total = 0.0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class Session:
    """A session of the command line's, whose rows are read as they come."""

    def __init__(
        self, pid: int, directory: Path, every: float, *more: str, keep: int = 0, command: Any = (UFFDTRACK,)
    ) -> None:
        self.directory = directory
        self.keep = keep
        self.rows: list[Row] = []
        self.process = subprocess.Popen(
            [*command, "checkpoint", str(pid), "-o", directory, "--every", f"{every * 1e6:.0f}us", "--json",
             *more],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout
        self.rows.append(json.loads(self.process.stdout.readline()))
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            row = json.loads(line)
            if row["schema"] in ("uffdtrack/epoch/1", "uffdtrack/tree-epoch/1"):
                self.rows.append(row)
                if self.keep:  # the last so many epochs
                    (self.directory / f"epoch-{row['epoch'] - self.keep:08d}.core").unlink(missing_ok=True)

    def processor_seconds(self) -> float:
        """Of the worker and of the process that waits for it."""
        line = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout
        return processor_seconds([self.process.pid, *map(int, line.split())])

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait()
        self._reader.join()
        shutil.rmtree(self.directory, ignore_errors=True)


def of_rows(rows: list[Row], seconds: float) -> Row:
    """What a run of a session comes to."""
    keys = "pages", "pause_us", "write_us", "waited_us"
    middle = {key: round(statistics.median(row[key] for row in rows), 1) for key in keys}
    middle["write_us_max"] = max(row["write_us"] for row in rows)
    written = sum(row["bytes"] for row in rows) / seconds
    return {"epochs_per_s": len(rows) / seconds, "bytes_per_s": written, **middle}


def tracked(client: Redis, where: Path, directory: Path, rate: float, seconds: float) -> Row:
    pid = int(client.info("server")["process_id"])
    with sets(client, where) as measure:
        session = Session(pid, directory / "chain", 1 / rate, "--engine", "ring", "--durable", "50ms")
        try:
            measure(SETTLE)
            first, used = len(session.rows), session.processor_seconds()
            began = time.perf_counter()
            speed = measure(seconds)
            took = time.perf_counter() - began
            rows = session.rows[first:]
            used = session.processor_seconds() - used
        finally:
            session.close()
    return {"sets_per_s": speed, "cores": used / took, **of_rows(rows, took)}


def beside(client: Redis, where: Path, seconds: float, again: Callable[[Redis, Path], None]) -> Row:
    """The client's speed while something is done again and again."""
    over = threading.Event()
    times: list[float] = []

    def work() -> None:
        while not over.is_set():
            began = time.perf_counter()
            again(client, where.parent)
            times.append((time.perf_counter() - began) * 1e6)

    with sets(client, where) as measure:
        worker = threading.Thread(target=work)
        worker.start()
        try:
            measure(SETTLE)
            before = len(times)
            speed = measure(seconds)
            count = len(times) - before
        finally:
            over.set()
            worker.join()
    return {"sets_per_s": speed, "epochs_per_s": count / seconds, "write_us": statistics.median(times)}


def bgsave(client: Redis, _: Path) -> None:
    client.bgsave()
    while client.info("persistence")["rdb_bgsave_in_progress"]:
        time.sleep(0.002)


def gcore(client: Redis, directory: Path) -> None:
    pid = client.info("server")["process_id"]
    subprocess.run(["gcore", "-o", directory / "core", str(pid)], check=True, capture_output=True)
    (directory / f"core.{pid}").unlink()


def disk(directory: Path, size: int, seconds: float) -> Row:
    """A plain program: it writes so many bytes to a file, one after the other, and waits for each."""
    data, total = os.urandom(size), 0
    fd = os.open(directory / "plain", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    began = time.perf_counter()
    while time.perf_counter() < began + seconds:
        total += os.pwrite(fd, data, total)
        os.fdatasync(fd)
    took = time.perf_counter() - began
    os.close(fd)
    (directory / "plain").unlink()
    return {"bytes_per_s": total / took, "epochs_per_s": total / size / took, "pages": size // 4096}


def table(rows: list[Row]) -> str:
    """Medians of the rounds, the least and the most in brackets."""
    kept = {run: [row for row in rows if row["run"] == run] for run in dict.fromkeys(r["run"] for r in rows)}
    columns = {
        "epochs/s": ("epochs_per_s", 1.0, ".1f"), "of its speed": ("of_untracked", 1.0, ".2f"),
        "pages": ("pages", 1.0, ".0f"), "pause, ms": ("pause_us", 1e-3, ".2f"),
        "safe after, ms": ("write_us", 1e-3, ".1f"), "MB/s": ("bytes_per_s", 1e-6, ".0f"),
        "processors": ("cores", 1.0, ".2f"),
    }  # fmt: skip
    lines = ["| run | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for run, several in kept.items():
        cells = []
        for key, factor, form in columns.values():
            found = [row[key] * factor for row in several if key in row]
            three = [format(f(found), form) for f in (statistics.median, min, max)] if found else []
            cells.append("{} ({}-{})".format(*three) if found else "")
        lines.append(f"| {run} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--output", type=Path, default=Path("out/bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []

    def note(run: str, row: Row) -> None:
        rows.append({"run": run, **row})
        print(json.dumps(rows[-1]), flush=True)

    with tempfile.TemporaryDirectory(dir=options.output) as text:
        directory = Path(text).absolute()
        with redis(directory) as client:
            where, seconds = directory / "redis", options.seconds
            for _ in range(options.rounds):
                with sets(client, where) as measure:
                    measure(SETTLE)
                    speed = measure(seconds / 2)
                note("redis, untracked", {"sets_per_s": speed, "of_untracked": 1.0})
                for run, measured in {
                    "redis, 10 a second": lambda: tracked(client, where, directory, 10, seconds),
                    "redis, 150 a second": lambda: tracked(client, where, directory, 150, seconds),
                    "BGSAVE, again and again": lambda: beside(client, where, seconds / 2, bgsave),
                    "gcore, again and again": lambda: beside(client, where, seconds / 2, gcore),
                }.items():
                    row = measured()
                    note(run, {**row, "of_untracked": row["sets_per_s"] / speed})
                    if "pages" in row:
                        size = int(row["pages"]) * 4096 or 4096
                        note(f"a plain write of as much as {run}", disk(directory, size, seconds / 2))
    (options.output / "durable.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (options.output / "durable.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
