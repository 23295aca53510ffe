"""gdb and strace look into a program that is being checkpointed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import wait_for
from tests.real.programs import Redis
from tests.real.test_programs import Run, Session, Tool

pytestmark = pytest.mark.slow


def by_gdb(tool: Tool, pid: int) -> bool:
    # It calls no function: on processors with a larger XSAVE area than it knows, it cannot.
    command = [tool("gdb"), "-nx", "-batch", "-p", str(pid), "-ex", "print $pc", "-ex", "thread apply all bt"]
    done = subprocess.run(command, capture_output=True, text=True)
    # One of its attaches may meet an epoch's.
    return "$1 = " in done.stdout and "Operation not permitted" not in done.stderr


def by_strace(tool: Tool, pid: int) -> bool:
    done = subprocess.run(
        ["timeout", "1", tool("strace"), "-f", "-p", str(pid)], capture_output=True, text=True
    )
    return "detached" in done.stderr and "epoll_wait" in done.stderr


@pytest.mark.parametrize("visit", [by_gdb, by_strace], ids=["gdb", "strace"])
def test_debuggers_themselves(
    visit: Callable[[Tool, int], bool],
    process_engine: str,
    root: None,
    tool: Tool,
    tmp_path: Path,
    uffdtrack: Run,
) -> None:
    directory = tmp_path / "redis"
    directory.mkdir()
    redis = Redis(directory, tool)
    try:
        chain = tmp_path / "c"
        taking = Session(redis, chain, process_engine, "--every", "20ms", "--duration", "10s")
        for epochs in (3, 8):
            wait_for(lambda n=epochs: len(list(chain.glob("epoch-*"))) > n, "there are epochs", 10)
            redis.bump()
            wait_for(lambda: visit(tool, redis.pid), "a visit", 10)
        redis.bump()
        rows = [json.loads(row) for row in taking.end()]
        assert sum(row["skipped"] for row in rows) > 0
        reasons = {row["skip_reason"] for row in rows if row["skipped"]}
        # A visitor that has just gone has no name any more.
        known = (visit.__name__.removeprefix("by_"), "another process")
        assert all(reason.startswith(known) for reason in reasons), reasons
        uffdtrack("verify", chain)
        before = redis.value()
        uffdtrack("rollback", redis.pid, chain)
        assert redis.value() <= before
        redis.bump()
    finally:
        redis.close()
