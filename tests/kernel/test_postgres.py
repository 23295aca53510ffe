"""Postgres as a tree: a server, its workers, one process for each client, and the memory that they share."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.helpers import Run, Spawn, wait_for

# What would write to files, or close them, by itself: those do not go back.
SETTINGS = {
    "listen_addresses": "", "shared_buffers": "16MB", "max_connections": "20", "fsync": "off",
    "autovacuum": "off", "wal_level": "minimal", "max_wal_senders": "0", "checkpoint_timeout": "1d",
    "bgwriter_lru_maxpages": "0",
}  # fmt: skip
SUMS = """select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
    and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)
    and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)"""


class Server:
    """A cluster of its own, of user postgres, on a socket in its directory."""

    def __init__(self, spawn: Spawn, directory: Path) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        if not found:
            missing("postgres (Debian: postgresql)")
        self.programs = found[-1].parent
        self.directory = directory
        self.spawn = spawn
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            missing("the user postgres (Debian: postgresql)")
        os.chown(directory, user.pw_uid, user.pw_gid)
        self.options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": directory}
        self.run("initdb", "-D", "data", "--auth", "trust", "-N", "-k", "--locale", "C")
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        settings.append(f"--unix_socket_directories={directory}")
        log = (directory / "log").open("wb")
        self.process = spawn(
            self.programs / "postgres", "-D", "data", *settings, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, **self.options,
        )  # fmt: skip
        log.close()
        self.pid = self.process.pid
        wait_for(lambda: not self.run("pg_isready", "-h", directory, check=False).returncode, "it answers")

    def run(self, program: str, *argv: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.programs / program), *[str(a) for a in argv]], capture_output=True, text=True,
            check=check, timeout=120, **self.options,
        )  # type: ignore[call-overload, no-any-return] # fmt: skip

    def start(self, program: str, *argv: object) -> subprocess.Popen[bytes]:
        return self.spawn(
            self.programs / program, "-h", self.directory, "-U", "postgres", *argv, **self.options
        )

    def end(self) -> None:
        """As an administrator does, in order; then every page's own sum is checked."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 0, (self.directory / "log").read_text()
        self.run("pg_checksums", "--check", "-D", "data")


class Client:
    """One psql, and so one process of the server's."""

    def __init__(self, server: Server) -> None:
        self.process = server.start("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "postgres")
        self.pid = int(self.ask("select pg_backend_pid();"))

    def tell(self, sql: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(sql.encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, sql: str) -> str:
        self.tell(sql)
        return self.read()

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode().strip()


@pytest.fixture
def server(kernel: None, root: None, spawn: Spawn) -> Iterator[Server]:
    directory = Path(tempfile.mkdtemp(prefix="ut-pg-"))
    started = None
    try:
        started = Server(spawn, directory)
        yield started
    finally:
        if started and started.process.poll() is None:
            # A test has failed; it is not to write to a directory that is gone.
            started.process.send_signal(signal.SIGQUIT)
            with suppress(subprocess.TimeoutExpired):
                started.process.wait(60)
        shutil.rmtree(directory, ignore_errors=True)


def test_rollback_while_a_client_waits(server: Server, uffdtrack: Run, tmp_path: Path) -> None:
    """Locks and variables go back, in the memory that all share and in each one's own; who waits is served.

    Nothing is written to files between the epoch and the rollback: those do not go back.
    """
    holder, waiter = Client(server), Client(server)
    assert holder.ask("set my.name = 'then'; select pg_advisory_lock(7), 'locked';") == "|locked"
    waiter.tell("select pg_advisory_lock(7), 'served';")
    waiting = f"select wait_event from pg_stat_activity where pid = {waiter.pid};"
    wait_for(lambda: holder.ask(waiting) == "advisory", "the other client waits")
    locks = "select count(*) from pg_locks where locktype = 'advisory';"
    assert holder.ask(locks) == "2"

    done = uffdtrack("checkpoint", "--children", server.pid, "-o", tmp_path / "t", "--count", 2,
                     "--every", "100ms", "--json")  # fmt: skip
    row = json.loads(done.stdout.splitlines()[-1])
    assert {server.pid, holder.pid, waiter.pid} <= {p["pid"] for p in row["processes"]}
    assert not row["left_out"]
    uffdtrack("verify", tmp_path / "t")

    assert holder.ask("set my.name = 'now'; select pg_advisory_lock(8), 'locked';") == "|locked"
    assert holder.ask(locks) == "3"
    uffdtrack("rollback", server.pid, f"{tmp_path}/t@1", "--max-stop", "60s")
    assert holder.ask("show my.name;") == "then"
    assert holder.ask(locks) == "2"
    assert holder.ask("select pg_advisory_unlock(7);") == "t"
    assert waiter.read() == "|served"

    # It does its work as before.
    assert (
        holder.ask("create table t as select generate_series(1, 1000) as i; select sum(i) from t;")
        == "500500"
    )
    assert waiter.ask("select sum(i) from t;") == "500500"
    assert Client(server).ask("select sum(i) from t;") == "500500"
    server.end()


@pytest.mark.slow
def test_ten_epochs_a_second_under_pgbench(server: Server, uffdtrack: Run, tmp_path: Path) -> None:
    pgbench = ("-h", server.directory, "-U", "postgres")
    server.run("pgbench", *pgbench, "-i", "-s", "2", "-q", "postgres")
    load = server.start("pgbench", "-c", "4", "-T", "10", "postgres")
    with (tmp_path / "rows").open("w") as rows_file:  # a pipe that nobody reads is full after ten rows
        session = subprocess.Popen(
            [sys.executable, "-m", "checkpoint", "checkpoint", "--children", str(server.pid),
             "-o", str(tmp_path / "t"), "--every", "100ms", "--json"],
            stdout=rows_file,
        )  # fmt: skip
    out = load.communicate(timeout=120)[0].decode()
    assert load.returncode == 0
    assert "number of failed transactions: 0 " in out
    session.send_signal(signal.SIGINT)
    assert session.wait(60) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert len(rows) >= 5
    assert max(len(row["processes"]) for row in rows) >= 8
    done = uffdtrack("verify", tmp_path / "t", "--json")
    assert json.loads(done.stdout)["epochs"] == len(rows)

    client = Client(server)
    assert client.ask(SUMS + ";") == "t"
    client.ask("checkpoint; set my.name = 'then'; select 1;")
    uffdtrack("checkpoint", "--children", server.pid, "-o", tmp_path / "u", "--count", 1)
    client.ask("set my.name = 'now'; select count(*) from pgbench_accounts;")
    uffdtrack("rollback", server.pid, f"{tmp_path}/u@0", "--max-stop", "60s")
    assert client.ask("show my.name;") == "then"
    assert client.ask(SUMS + ";") == "t"
    server.run("pgbench", *pgbench, "-c", "4", "-t", "100", "-n", "postgres")
    assert client.ask(SUMS + ";") == "t"
    server.run("pg_amcheck", *pgbench, "--install-missing", "postgres")
    server.end()
