"""What an epoch takes on disk, and of the processors, with deltas and without.

    python -m benchmarks.bytes -o DIR

Programs under load, ten epochs a second: redis with 200,000 keys of 512 bytes, set by its benchmark client
(which has one value for all keys) and by a client that draws each value anew; sqlite with a table in memory,
rows updated at random; CPython with a heap of small objects; postgres, a tree, under pgbench; and a program
that writes pages of random bytes. Then one that is asked for 150 a second. Each is measured with deltas, and
with no room for copies, so that all is stored whole, in turn. Every run is a line of bytes.jsonl. It asserts
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.durable import UFFDTRACK, Session, commands, load, redis

Row = dict[str, Any]
Measure = tuple[int, Callable[[], int], list[str]]
"""A process under load, how much work it has done so far, and more options of the session."""
WHOLE = [
    sys.executable, "-c",
    "from checkpoint import last_copies; last_copies._room.size = 0; "
    "from checkpoint.cli.main import main; main()",
]  # fmt: skip
SETTLE = 1.0
RANDOM_VALUES = """
import os, random, sys
from redis import Redis
client = Redis(unix_socket_path=sys.argv[1])
while True:
    several = client.pipeline(transaction=False)
    for _ in range(16):
        several.set(f"key:{random.randrange(200_000):012d}", os.urandom(512))
    several.execute()
"""
SQLITE = """
import os, random, sqlite3, sys
base = sqlite3.connect(":memory:", isolation_level=None)
base.execute("create table t (id integer primary key, n integer, text blob)")
base.executemany("insert into t values (?, 0, ?)", ((i, os.urandom(200)) for i in range(200_000)))
while True:
    for _ in range(1000):
        row = random.randrange(200_000)
        base.execute("update t set n = n + 1, text = ? where id = ?", (os.urandom(200), row))
    os.write(1, b".")
"""
CPYTHON = """
import os, random
class Thing:
    __slots__ = ("a", "b")
    def __init__(self, n):
        self.a, self.b = n * 1001, [n]
things = [Thing(n) for n in range(300_000)]
while True:
    for _ in range(10_000):
        thing = things[random.randrange(len(things))]
        thing.a += 1000
        thing.b = [thing.a]
    os.write(1, b".")
"""
INCOMPRESSIBLE = """
import mmap, os, random
memory = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.write(os.urandom(len(memory)))
while True:
    for _ in range(100):
        at = random.randrange(len(memory) // 4096) * 4096
        memory[at : at + 4096] = os.urandom(4096)
    os.write(1, b".")
"""
SETTINGS = {"listen_addresses": "", "max_connections": "20", "fsync": "off"}


@contextmanager
def program(source: str) -> Iterator[Measure]:
    """A Python program that says when it has done a piece of its work."""
    done = [0]
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as process:
        assert process.stdout

        def count() -> None:
            assert process.stdout
            while data := os.read(process.stdout.fileno(), 4096):
                done[0] += len(data)

        reader = threading.Thread(target=count)
        reader.start()
        try:
            while not done[0]:
                time.sleep(0.01)
            yield process.pid, lambda: done[0], []
        finally:
            process.kill()
            reader.join()


@contextmanager
def redis_under(directory: Path, random_values: bool) -> Iterator[Measure]:
    with redis(directory) as client:
        where = directory / "redis"
        client_of = (
            [sys.executable, "-c", RANDOM_VALUES, where]
            if random_values
            else [*load(where), "-n", "1000000000"]
        )
        with subprocess.Popen(client_of, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as benchmark:
            try:
                pid = int(client.info("server")["process_id"])
                yield pid, lambda: commands(client), ["--engine", "ring"]
            finally:
                benchmark.kill()


@contextmanager
def postgres(directory: Path, buffers: str = "32MB", scale: int = 2) -> Iterator[Measure]:
    """Args: buffers: its shared memory; scale: so many times 100,000 accounts, 15 MB."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    user = pwd.getpwnam("postgres")
    own: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}
    with tempfile.TemporaryDirectory() as text:
        os.chown(text, user.pw_uid, user.pw_gid)
        os.chmod(text, 0o755)
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **own}
        data = f"{text}/data"
        initdb = [programs / "initdb", "-D", data, "--auth", "trust", "-N", "--locale", "C"]
        subprocess.run(initdb, check=True, **quiet)
        settings = [f"--{name}={value}" for name, value in {**SETTINGS, "shared_buffers": buffers}.items()]
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, *settings, f"--unix_socket_directories={text}"],
            stdin=subprocess.DEVNULL, **quiet,
        )  # fmt: skip
        try:
            while subprocess.run([programs / "pg_isready", "-h", text], **quiet).returncode:
                time.sleep(0.05)
            bench = [programs / "pgbench", "-h", text, "-U", "postgres", "postgres"]
            subprocess.run([*bench, "-i", "-s", str(scale)], check=True, **quiet)
            load_of = subprocess.Popen([*bench, "-c", "2", "-T", "10000"], **quiet)

            def done() -> int:
                ask = "select sum(xact_commit) from pg_stat_database"
                asked = [programs / "psql", "-h", text, "-U", "postgres", "-Atc", ask, "postgres"]
                return int(subprocess.run(asked, check=True, capture_output=True, text=True, **own).stdout)

            try:
                yield server.pid, done, ["--children"]
            finally:
                load_of.kill()
                load_of.wait()
        finally:
            server.terminate()
            server.wait()


def tracked(under: Measure, directory: Path, rate: float, seconds: float, command: list[Any]) -> Row:
    pid, done, more = under
    session = Session(pid, directory / "chain", 1 / rate, *more, command=command)
    try:
        time.sleep(SETTLE)
        first, used, before = len(session.rows), session.processor_seconds(), done()
        began = time.perf_counter()
        time.sleep(seconds)
        took = time.perf_counter() - began
        rows, work = session.rows[first:], done() - before
        used = session.processor_seconds() - used
    finally:
        session.close()
    pages, size = (sum(row[key] for row in rows) for key in ("pages", "bytes"))
    return {
        "epochs_per_s": len(rows) / took, "pages": pages / len(rows), "bytes_per_page": size / max(pages, 1),
        "bytes_per_s": size / took, "cpu_ms": used / len(rows) * 1e3,
        "write_ms": statistics.median(row["write_us"] for row in rows) / 1e3, "work_per_s": work / took,
    }  # fmt: skip


def table(rows: list[Row]) -> str:
    """Medians of the rounds, the least and the most in brackets."""
    columns = {
        "epochs/s": ("epochs_per_s", 1.0, ".1f"), "pages": ("pages", 1.0, ".0f"),
        "bytes a page": ("bytes_per_page", 1.0, ".0f"), "MB/s": ("bytes_per_s", 1e-6, ".1f"),
        "processor, ms an epoch": ("cpu_ms", 1.0, ".1f"), "safe after, ms": ("write_ms", 1.0, ".1f"),
        "its work, of whole": ("of_whole", 1.0, ".2f"),
    }  # fmt: skip
    lines = ["| run | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for run in dict.fromkeys((row["run"], row["stored"]) for row in rows):
        cells = []
        for key, factor, form in columns.values():
            found = [row[key] * factor for row in rows if (row["run"], row["stored"]) == run]
            cells.append(
                "{} ({}-{})".format(*(format(f(found), form) for f in (statistics.median, min, max)))
            )
        lines.append(f"| {run[0]}, {run[1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--output", type=Path, default=Path("out/bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", default="", help="a part of the names of the runs")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.output) as text:
        directory = Path(text).absolute()
        runs: dict[str, tuple[float, Callable[[], Any]]] = {
            "redis": (10, lambda: redis_under(directory, False)),
            "redis, random values": (10, lambda: redis_under(directory, True)),
            "sqlite": (10, lambda: program(SQLITE)),
            "CPython": (10, lambda: program(CPYTHON)),
            "postgres": (10, lambda: postgres(directory)),
            "random bytes": (10, lambda: program(INCOMPRESSIBLE)),
            "redis, 150 a second": (150, lambda: redis_under(directory, False)),
        }
        for run, (rate, start) in runs.items():
            if options.only not in run:
                continue
            with start() as under:
                for _ in range(options.rounds):
                    pair = {
                        stored: tracked(under, directory, rate, options.seconds, command)
                        for stored, command in (("whole", WHOLE), ("deltas", [UFFDTRACK]))
                    }
                    for stored, row in pair.items():
                        row["of_whole"] = row["work_per_s"] / pair["whole"]["work_per_s"]
                        rows.append({"run": run, "stored": stored, **row})
                        print(json.dumps(rows[-1]), flush=True)
    (options.output / "bytes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (options.output / "bytes.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
