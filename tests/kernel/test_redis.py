"""A real server under a real load."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.helpers import Run, Spawn, on_a_free_port, wait_for


@pytest.fixture
def server(
    kernel: None, spawn: Spawn, tool: Callable[[str], str], tmp_path: Path
) -> tuple[subprocess.Popen[bytes], int]:
    def started(port: int) -> subprocess.Popen[bytes]:
        return spawn(
            tool("redis-server"), "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", tmp_path,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def answers(port: int) -> bool:
        try:
            with redis.Redis(port=port) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    return on_a_free_port(started, answers)


def test_load_checkpoints_and_rollback(
    server: tuple[subprocess.Popen[bytes], int], tool: Callable[[str], str], tmp_path: Path, uffdtrack: Run
) -> None:
    process, port = server
    load = subprocess.Popen(
        [tool("redis-benchmark"), "-p", str(port), "-t", "set,get,incr,lpush", "-n", "20000", "-r", "20000",
         "-c", "20", "-d", "64", "--csv"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    session = subprocess.Popen(
        [sys.executable, "-m", "checkpoint", "checkpoint", str(process.pid), "-o", str(tmp_path / "c"),
         "--every", "30ms", "--json"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert session.stdout
    assert session.stdout.readline()
    out, err = load.communicate(timeout=300)
    # redis-benchmark ends with 1 and says so at the first error reply or lost connection.
    assert load.returncode == 0, err
    assert "rror" not in out + err
    assert len(out.splitlines()) == 5

    # One more epoch, without a client: what the sockets are then, they are at the rollback too.
    with redis.Redis(port=port) as client:
        keys = client.dbsize()
        value = client.get("key:000000000001")
        client.set("marker", "old")
    wait_for(lambda: no_clients(port), "the clients are gone")
    quiet = time.time_ns()
    rows = (json.loads(line) for line in session.stdout)
    next(row for row in rows if row["time_ns"] > quiet)
    epoch = next(rows)["epoch"]  # begun after the one that ended after the quiet
    session.terminate()
    session.communicate(timeout=60)
    assert session.returncode == 0
    uffdtrack("verify", tmp_path / "c")

    with redis.Redis(port=port) as client:
        client.flushall()
        client.set("marker", "new")
        assert client.dbsize() == 1
    wait_for(lambda: no_clients(port), "the clients are gone")
    uffdtrack("rollback", process.pid, f"{tmp_path}/c@{epoch}")
    with redis.Redis(port=port) as client:
        assert client.ping()
        assert client.get("marker") == b"old"
        assert client.dbsize() == keys + 1
        assert client.get("key:000000000001") == value
        client.set("marker", "newer")
        assert client.get("marker") == b"newer"


def no_clients(port: int) -> bool:
    """Nobody but the asker is connected."""
    with redis.Redis(port=port) as client:
        return len(client.client_list()) == 1
