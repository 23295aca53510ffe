"""The verb rollback asks the session that follows the target."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from checkpoint.chain import Chain
from checkpoint.rollback.request import SOCKET, Request, ask, connect, fingerprint, is_served
from tests.helpers import Build, Run, Spawn, session_of, traps, wait_for
from tests.kernel.forks import is_dead
from tests.kernel.rolled import WITHOUT_RSEQ
from tests.kernel.rollee import Rollee, differing
from uffdtrack.errors import TargetError


class Served:
    """A session of the command line that can be asked, and its target."""

    def __init__(self, spawn: Spawn, rollee: Rollee, directory: Path) -> None:
        self.rollee = rollee
        self.directory = directory
        options = "--every", "1h", "--json"
        self.process = session_of(spawn, rollee.pid, directory, *options, start_new_session=True)
        self.row()
        wait_for(lambda: is_served(directory), "it listens")

    def row(self) -> dict[str, Any]:
        assert self.process.stdout
        row: dict[str, Any] = json.loads(self.process.stdout.readline())
        return row

    @property
    def worker(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[-1])

    def request(self) -> Request:
        view = Chain(self.directory).view(0)
        return Request(self.rollee.pid, 0, view.epoch.digest, fingerprint(view), False, 5.0)


@pytest.fixture
def served(kernel: None, spawn: Spawn, build: Build, tmp_path: Path) -> Served:
    rollee = Rollee(spawn, build)
    assert rollee.ask("s 1") == "1"
    return Served(spawn, rollee, tmp_path / "c")


def test_the_verb_finds_the_session(served: Served, uffdtrack: Run) -> None:
    place, rollee = f"{served.directory}@0", served.rollee
    assert stat.S_IMODE((served.directory / SOCKET).stat().st_mode) == 0o600
    assert rollee.ask("s 2") == "2"
    done = uffdtrack("rollback", rollee.pid, place)
    assert "is back at epoch 0" in done.stdout
    assert rollee.ask("c") == "1" and rollee.ask("s 3") == "3"
    row = json.loads(uffdtrack("rollback", rollee.pid, place, "--json").stdout)
    assert (row["schema"], row["pid"], row["epoch"]) == ("uffdtrack/rollback/1", rollee.pid, 0)
    assert rollee.ask("c") == "1" and traps(rollee.pid)
    failed = uffdtrack("rollback", os.getpid(), place, code=5)
    assert "is not the one that epoch 0 was taken of" in failed.stderr
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait() == 0
    assert not (served.directory / SOCKET).exists() and not traps(rollee.pid)
    uffdtrack("verify", served.directory)
    assert rollee.ask("s 4") == "4"
    uffdtrack("rollback", rollee.pid, place)  # by itself again
    assert rollee.ask("c") == "1"


def test_a_directory_with_a_long_path(spawn: Spawn, rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    """An address of a socket has 108 bytes."""
    directory = tmp_path / ("d" * 100) / "c"
    served = Served(spawn, rollee, directory)
    assert rollee.ask("s 2") == "2"
    uffdtrack("rollback", rollee.pid, directory)
    assert rollee.ask("c") == "1" and served.process.poll() is None


def test_the_socket_of_a_session_that_was_killed(served: Served, uffdtrack: Run) -> None:
    rollee = served.rollee
    worker = served.worker
    os.kill(worker, signal.SIGKILL)
    served.process.wait()
    assert (served.directory / SOCKET).exists() and not is_served(served.directory)
    assert rollee.ask("s 2") == "2"
    uffdtrack("rollback", rollee.pid, served.directory)
    assert rollee.ask("c") == "1"


def test_clients_that_go_away_and_that_talk_nonsense(served: Served) -> None:
    rollee, directory = served.rollee, served.directory
    for data in (b"", b"x" * 100, b"x\n", b"[]\n", b'{"schema": "other/1"}\n'):
        connection = connect(directory)
        assert connection
        with connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile().readline()
            assert not data or json.loads(answer)["error"] == "InvalidInputError"
    # One that has gone when it is its turn: nothing is done.
    assert rollee.ask("s 2") == "2"
    os.kill(served.worker, signal.SIGSTOP)
    connection = connect(directory)
    assert connection
    connection.sendall(json.dumps(served.request().to_json()).encode() + b"\n")
    connection.close()
    os.kill(served.worker, signal.SIGCONT)
    with pytest.raises(TargetError, match="is not the one"):
        ask(directory, Request(os.getpid(), *list(served.request().to_json().values())[2:]))
    assert rollee.ask("c") == "2"


def test_two_clients(served: Served) -> None:
    """One after the other; both get an answer."""
    command = (
        sys.executable,
        "-m",
        "checkpoint",
        "rollback",
        str(served.rollee.pid),
        f"{served.directory}@0",
    )
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for client in clients:
        assert "is back at epoch 0" in client.communicate()[0]
    assert served.rollee.ask("c") == "1"


def test_a_session_whose_traps_wait(spawn: Spawn, rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    assert rollee.ask("s 1") == "1"
    session = session_of(spawn, rollee.pid, tmp_path / "c", "--every", "1h", "--json", "--engine", "sync")
    assert session.stdout and session.stdout.readline()
    assert rollee.ask("s 2") == "2"
    uffdtrack("rollback", rollee.pid, tmp_path / "c")
    assert rollee.ask("c") == "1"
    assert session.poll() is None


def test_a_session_of_a_tree(spawn: Spawn, rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    assert rollee.ask("s 1") == "1"
    options = "--every", "1h", "--json", "--children"
    session = session_of(spawn, rollee.pid, tmp_path / "t", *options)
    assert session.stdout and session.stdout.readline()
    assert rollee.ask("s 2") == "2"
    done = uffdtrack("rollback", rollee.pid, tmp_path / "t")
    assert "1 processes of the tree are back at epoch 0" in done.stdout
    assert rollee.ask("c") == "1" and traps(rollee.pid)
    failed = uffdtrack("rollback", os.getpid(), tmp_path / "t", code=5)
    assert "does not belong to epoch " in failed.stderr
    assert session.poll() is None


def test_its_rows_go_on(spawn: Spawn, rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    """Epochs keep their schedule, each a state of the target."""
    assert rollee.ask("s 1") == "1"
    with (tmp_path / "rows").open("wb") as rows:
        session = session_of(spawn, rollee.pid, tmp_path / "c", "--every", "20ms", "--json", stdout=rows)
        wait_for(lambda: is_served(tmp_path / "c"), "it listens")
        wait_for(lambda: len((tmp_path / "rows").read_text().splitlines()) > 1, "its base is there")
    for n in range(2, 5):
        assert rollee.ask(f"s {n}") == str(n)
        uffdtrack("rollback", rollee.pid, f"{tmp_path}/c@0")
        assert rollee.ask("c") == "1"
    session.send_signal(signal.SIGINT)
    assert session.wait() == 0
    found = [json.loads(line)["epoch"] for line in (tmp_path / "rows").read_text().splitlines()]
    assert found == list(range(len(found))) and len(found) > 10
    uffdtrack("verify", tmp_path / "c")


@pytest.mark.parametrize("whom", ["command", "group", "worker"])
def test_killed_at_random_instants(
    kernel: None, spawn: Spawn, build: Build, tmp_path: Path, uffdtrack: Run, whom: str
) -> None:
    """A kill of the command, or of its process group, does not cut a rollback short; one of the process that
    does it may, and another rollback makes it whole."""
    rollee = Rollee(spawn, build, env=WITHOUT_RSEQ)
    kills = {"command": os.kill, "group": os.killpg, "worker": os.kill}
    rng = random.Random(whom)
    assert rollee.ask("s 1") == "1"
    for n in range(3):
        served = Served(spawn, rollee, tmp_path / f"c{n}")
        request, worker = served.request(), served.worker
        assert rollee.ask("m") == "messed"
        os.kill(rollee.pid, signal.SIGSTOP)
        client = connect(served.directory)
        assert client
        with client:
            client.sendall(json.dumps(request.to_json()).encode() + b"\n")
            stream = client.makefile()
            assert "begun" in stream.readline()
            time.sleep(rng.uniform(0, 0.04))
            kills[whom](worker if whom == "worker" else served.process.pid, signal.SIGKILL)
            answer = stream.readline()
        served.process.wait()
        wait_for(lambda w=worker: is_dead(w), "the worker has ended")  # type: ignore[misc]
        assert answer or whom == "worker"
        if whom == "worker":
            uffdtrack("rollback", rollee.pid, served.directory)
        assert differing(rollee.pid, Chain(served.directory).view(0)) == []
        os.kill(rollee.pid, signal.SIGCONT)
        assert rollee.ask("c") == "1"
