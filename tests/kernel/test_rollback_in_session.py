"""A session rolls its target back by what it knows, and goes on."""

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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from checkpoint.chain import Chain
from checkpoint.rollback.request import SOCKET, Request, ask, connect, fingerprint, is_served
from tests.helpers import Build, Run, Spawn, session_of, start_notices, state_of, traps, wait_for
from tests.helpers import ask as ask_program
from tests.kernel.rolled import WITHOUT_RSEQ, Rolled, held, roll
from tests.kernel.rollee import Rollee, covers, differing
from uffdtrack.errors import InvalidInputError, TargetError, TargetGoneError

ROUNDS = 8
MANY = int(os.environ.get("UFFDTRACK_ROLLBACKS", "300"))
"""Rounds of the slow test, for each engine."""
A_CHAIN = 50
"""Rounds after which the slow test begins another chain: each look at one costs what it is long."""


def start_writer(spawn: Spawn, build: Build, threads: int, seed: int) -> tuple[int, int]:
    process = spawn(build("writer"), threads, seed, "counter", "again", env=WITHOUT_RSEQ)
    assert process.stdout
    address, pid = process.stdout.readline().split()
    return int(pid), int(address, 16)


@pytest.fixture(params=["ring", "scan"])
def rolling(request: pytest.FixtureRequest, kernel: None) -> str:
    """Each engine whose session can do it."""
    engine: str = request.param
    return engine


# -- the bytes ---------------------------------------------------------------------------------------


def test_rolled_back_to_random_epochs(rolling: str, spawn: Spawn, build: Build, in_memory: Path) -> None:
    """Threads, mappings that come, go, move, grow and change, shared ones, a heap, children."""
    pid, control = start_writer(spawn, build, 2, 21)
    assert roll(pid, control, in_memory / "c", rolling, ROUNDS, 21) > ROUNDS // 3


@pytest.mark.slow
def test_thousands_of_rollbacks(rolling: str, spawn: Spawn, build: Build, in_memory: Path) -> None:
    done = 0
    for n in range(-(-MANY // A_CHAIN)):
        pid, control = start_writer(spawn, build, 1 + n % 3, 1000 + n)
        done += roll(pid, control, in_memory / f"c{n}", rolling, A_CHAIN, n)
        subprocess.run(["rm", "-rf", in_memory / f"c{n}"], check=True)
        os.kill(pid, signal.SIGKILL)
    print(f"{done} rollbacks with {rolling}")
    assert done > MANY // 3


@pytest.mark.parametrize(("engine", "sabotage"), [("scan", "forget"), ("ring", "forget")])
def test_negative_control(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, engine: str, sabotage: str
) -> None:
    """A rollback that does not know of a page must show."""
    pid, control = start_writer(spawn, build, 2, 9)
    with pytest.raises((AssertionError, TargetError)):
        roll(pid, control, in_memory / "c", engine, 300, 9, sabotage)


@pytest.fixture
def rolled(rolling: str, spawn: Spawn, build: Build, tmp_path: Path) -> Any:
    rollee = Rollee(spawn, build, env=WITHOUT_RSEQ)
    with ExitStack() as stack:
        yield rollee, Rolled(stack, rollee.pid, tmp_path / "c", rolling)


def test_mappings_threads_and_contents(rolled: tuple[Rollee, Rolled]) -> None:
    """What is written between an epoch and the rollback, in mappings that have come, gone and changed."""
    rollee, session = rolled
    assert rollee.ask("s 42") == "42"
    threads, maps = rollee.threads(), rollee.maps()
    session.take()
    for _ in range(2):
        assert rollee.ask("m") == "messed"
        assert rollee.threads() == threads + 1
        with held(rollee.pid):
            outcome = session.back_to(0)
            assert len(outcome.ended) == 1 and outcome.mappings > 5
            assert differing(rollee.pid, Chain(session.directory).view(0)) == []
        assert rollee.threads() == threads and covers(rollee.maps()) == covers(maps)
        assert rollee.ask("c") == "42"
        session.take()
    assert rollee.ask("s 43") == "43"
    session.take()
    with held(rollee.pid):
        session.back_to(3)
        assert differing(rollee.pid, Chain(session.directory).view(3)) == []
    assert rollee.ask("c") == "43"


def test_what_was_not_written_is_not_read(
    rolled: tuple[Rollee, Rolled], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It compares pages that were written since, not all that the image has."""
    rollee, session = rolled
    session.take()
    assert rollee.ask("s 1") == "1"
    session.take()
    compared: list[int] = []
    compare = sys.modules["checkpoint.rollback.contents"].compare_pages

    def count(memory: int, pages: Any, *more: Any) -> Any:
        compared.append(len(pages))
        return compare(memory, pages, *more)

    monkeypatch.setattr("checkpoint.rollback.contents.compare_pages", count)
    assert rollee.ask("s 2") == "2"
    session.back_to(1)
    assert rollee.ask("c") == "1"
    assert 0 < sum(compared) < len(Chain(session.directory).view(1).pages) * 0.8


def test_a_failure_is_taken_back_and_the_session_goes_on(
    rolled: tuple[Rollee, Rolled], monkeypatch: pytest.MonkeyPatch
) -> None:
    rollee, session = rolled
    assert rollee.ask("s 1") == "1"
    session.take()
    assert rollee.ask("s 2") == "2"
    with monkeypatch.context() as patch:

        def fails(self: object, plan: object) -> None:
            raise TargetError("made to fail")

        patch.setattr("checkpoint.rollback.contents.Memory.write", fails)
        with pytest.raises(TargetError, match="made to fail; the process is as it was"):
            session.back_to(0)
    assert rollee.ask("c") == "2"
    session.take()
    with held(rollee.pid):
        session.back_to(1)
        assert differing(rollee.pid, Chain(session.directory).view(1)) == []
    assert rollee.ask("c") == "2"


def test_a_stop_that_is_too_long_for_the_client(rolled: tuple[Rollee, Rolled]) -> None:
    rollee, session = rolled
    assert rollee.ask("s 1") == "1"
    session.take()
    assert rollee.ask("s 2") == "2"
    with pytest.raises(TargetError, match=r"--max-stop 1e-06s\): give it more; the process is as it was"):
        session.back_to(0, max_stop=1e-6)
    assert rollee.ask("c") == "2"


def test_a_chain_that_is_not_what_was_verified(rolled: tuple[Rollee, Rolled]) -> None:
    rollee, session = rolled
    session.take()
    view = Chain(session.directory).view(0)
    request = Request(rollee.pid, 0, view.epoch.digest, fingerprint(view), False, 5.0)
    (session.directory / "epoch-00000000.core").touch()
    with pytest.raises(InvalidInputError, match="was replaced while it was read"):
        session.rollback(request)
    with pytest.raises(InvalidInputError, match="has no epoch 7"):
        session.rollback(Request(rollee.pid, 7, "", "", False, 5.0))


def test_a_target_that_has_ended(rolled: tuple[Rollee, Rolled]) -> None:
    rollee, session = rolled
    session.take()
    rollee.process.kill()
    rollee.process.wait()
    with pytest.raises(TargetGoneError):
        session.back_to(0)


# -- the command line --------------------------------------------------------------------------------


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


def test_a_session_that_cannot(spawn: Spawn, rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    session = session_of(spawn, rollee.pid, tmp_path / "c", "--every", "1h", "--json", "--engine", "sync")
    assert session.stdout and session.stdout.readline()
    failed = uffdtrack("rollback", rollee.pid, tmp_path / "c", code=5)
    assert "engine sync" in failed.stderr and "end it first" in failed.stderr
    assert session.poll() is None


def test_a_session_of_a_tree(spawn: Spawn, rollee: Rollee, tmp_path: Path, uffdtrack: Run) -> None:
    session = session_of(spawn, rollee.pid, tmp_path / "t", "--every", "1h", "--json", "--children")
    assert session.stdout and session.stdout.readline()
    failed = uffdtrack("rollback", rollee.pid, tmp_path / "t", code=2)
    assert "end that one first" in failed.stderr


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


def test_it_is_not_noticed(rolling: str, spawn: Spawn, build: Build, tmp_path: Path) -> None:
    process = start_notices(spawn, build)
    before = state_of(process.pid)
    with ExitStack() as stack:
        rolled = Rolled(stack, process.pid, tmp_path / "c", rolling)
        rolled.take()
        for _ in range(10):
            rolled.back_to(rolled.take().epoch)
            ask_program(process)
    assert state_of(process.pid) == before


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
        wait_for(lambda w=worker: not Path(f"/proc/{w}").exists(), "the worker has ended")  # type: ignore[misc]
        assert answer or whom == "worker"
        if whom == "worker":
            uffdtrack("rollback", rollee.pid, served.directory)
        assert differing(rollee.pid, Chain(served.directory).view(0)) == []
        os.kill(rollee.pid, signal.SIGCONT)
        assert rollee.ask("c") == "1"
