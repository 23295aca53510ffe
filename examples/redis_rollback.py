"""Checkpoint a redis server under load, destroy its data, roll it back.

Each command that is run is printed; run them by hand in the same way.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

UFFDTRACK = Path(sys.executable).with_name("uffdtrack")


FEW = 5
"""Lines of a long output that are shown, from its beginning and from its end."""


def run(*argv: object) -> str:
    """Run a command, show it and what it says."""
    words = [str(a) for a in argv]
    print("\n$ " + shlex.join([Path(words[0]).name, *words[1:]]), flush=True)
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    if len(lines) > 2 * FEW + 1:
        lines[FEW:-FEW] = [f"... {len(lines) - 2 * FEW} more lines"]
    print("\n".join(lines), flush=True)
    if done.returncode:
        sys.exit(f"{words[0]} ended with {done.returncode}")
    return done.stdout


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as s:
        s.sendall(b"PING\r\n")
        return s.recv(16).startswith(b"+PONG")
    return False


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[tuple[int, int]]:
    """A server of our own on loopback, which writes nothing to disk: its pid and port."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while not answers(port):
            if time.monotonic() > deadline or server.poll() is not None:
                sys.exit("redis-server does not start")
        yield server.pid, port
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="uffdtrack-demo-") as name, redis(Path(name)) as (pid, port):
        chain = Path(name) / "chain"
        cli = ("redis-cli", "-p", port)
        print(f"redis-server is process {pid} on port {port}")
        load = ["redis-benchmark", "-p", str(port), "-t", "set", "-r", "50000", "-d", "100", "-c", "20"]
        subprocess.run([*load, "-n", "200000", "-q"], stdout=subprocess.DEVNULL, check=True)

        print("\nIt gets a load of SETs; meanwhile it is checkpointed ten times a second:")
        print(f"$ {shlex.join([*load, '-n', '250000'])} &")
        session = subprocess.Popen(
            [UFFDTRACK, "checkpoint", str(pid), "-o", chain, "--every", "100ms", "--json"],
            stdout=subprocess.PIPE,
            text=True,
        )
        print(f"$ uffdtrack checkpoint {pid} -o {chain} --every 100ms", flush=True)
        assert session.stdout
        session.stdout.readline()
        done = subprocess.run([*load, "-n", "250000", "--csv"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"redis-benchmark failed: {done.stderr}")
        print(f"redis-benchmark: no request failed, {done.stdout.splitlines()[-1].split(',')[1]} a second")
        quiet = time.time_ns()
        rows = (json.loads(line) for line in session.stdout)
        next(row for row in rows if row["time_ns"] > quiet)
        last = next(rows)["epoch"]
        session.terminate()
        session.communicate()

        run(UFFDTRACK, "ls", chain)
        run(UFFDTRACK, "verify", chain)
        before = run(*cli, "dbsize")
        print("\nNow its data is destroyed:")
        run(*cli, "flushall")
        run(*cli, "dbsize")
        print("\nAnd brought back, in the same live process:")
        run(UFFDTRACK, "rollback", pid, f"{chain}@{last}")
        after = run(*cli, "dbsize")
        if before != after or not int(after.split()[-1]):
            sys.exit("the data is not back")
        print(f"\nThe {after.split()[-1]} keys are there again.")


if __name__ == "__main__":
    main()
