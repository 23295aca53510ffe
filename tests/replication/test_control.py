"""The socket by which a replicating process is asked for its status and a switchover."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from checkpoint.cli.main import cli
from checkpoint.errors import LinkError
from checkpoint.replication import control
from checkpoint.replication.asking import Process, chosen, one_to_switch, processes, switch_over
from checkpoint.replication.control import Control, Progress, run_directory
from checkpoint.replication.links.local import connect_local
from checkpoint.replication.status import StatusRow, SwitchoverRow
from tests.helpers import DEADLINE, wait_for
from uffdtrack.errors import (
    InvalidInputError,
    PermissionDeniedError,
    TargetBusyError,
    TargetError,
    UffdtrackError,
)

ROW = StatusRow(
    role="active", state="followed", name="web", address="tls://10.0.0.2:7071", pid=os.getpid(), since_ns=1,
    taken=12, sent=12, acknowledged=11, lag_epochs=1, lag_bytes=4096, lag_us=1500.0, output_held=7,
)  # fmt: skip
STANDBY = StatusRow("standby", "following", "web", "unix:/s", os.getpid(), 1, successor=True, whole=11)
MOVED = SwitchoverRow("web", 13, 4200.0, "standby at 10.0.0.2:7071")


class Owner:
    """A process that replicates, here in this one."""

    def __init__(self, directory: Path, row: StatusRow = ROW) -> None:
        self.row = row
        self.error: Exception | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.control = Control(lambda: self.row, self.switch_over, directory)

    def switch_over(self, progress: Progress) -> SwitchoverRow:
        progress("the last window")
        assert self.may_go_on.wait(DEADLINE)
        if self.error:
            raise self.error
        progress("the standby has it")
        return MOVED


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the sockets, for the verbs, too."""
    monkeypatch.setattr("checkpoint.replication.asking.run_directory", lambda: tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def start(place: Path) -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def started(row: StatusRow = ROW) -> Owner:
        owners.append(Owner(place, row))
        return owners[-1]

    yield started
    for owner in owners:
        owner.may_go_on.set()
        owner.control.close()
    assert not place.exists() or os.listdir(place) == []


Start = Callable[..., Owner]


def verb(*arguments: str) -> tuple[str, str]:
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout, done.stderr


def test_status(start: Start, place: Path) -> None:
    assert verb("status") == ("nothing replicates here\n", "")
    start()
    start(STANDBY)
    assert sorted((one.row for one in processes(place) if one.row), key=lambda row: row.role) == [
        ROW,
        STANDBY,
    ]
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    table = verb("status")[0]
    assert len(table.splitlines()) == 3
    cells = ("web", "active", "followed", "following,", "next", "KiB", "unix:/s")
    assert all(cell in table.split() for cell in cells)
    for which in ("tls://10.0.0.2:7071", "unix:///s"):
        rows = [json.loads(line) for line in verb("status", which, "--json")[0].splitlines()]
        assert rows == [(ROW if "tls" in which else STANDBY).to_json()]
    with pytest.raises(LinkError, match="nothing replicates as other here: `uffdtrack status` has web"):
        verb("status", "other")


def test_an_error_of_the_chain_is_a_warning(start: Start) -> None:
    start(StatusRow("standby", "following", "web", "unix:/s", 1, 1, directory="d", error="the disk is full"))
    assert verb("status")[1] == "uffdtrack: warning: standby web: d: the disk is full\n"


def test_switchover(start: Start) -> None:
    start(STANDBY).error = AssertionError("the active is asked first")
    start()
    out, told = verb("switchover", "web")
    assert out == "web runs at standby at 10.0.0.2:7071, from epoch 13 on; it stood for 4.2 ms\n"
    assert told == "uffdtrack: the last window\nuffdtrack: the standby has it\n"
    assert json.loads(verb("switchover", "web", "--json")[0]) == MOVED.to_json()


@pytest.mark.parametrize("error", [TargetError("no"), LinkError("no"), TargetBusyError("no"), OSError("no")])
def test_a_switchover_that_fails(start: Start, error: Exception) -> None:
    owner = start()
    owner.error = error
    with pytest.raises(UffdtrackError) as caught:
        verb("switchover", "web")
    expected = type(error) if isinstance(error, UffdtrackError) else TargetError
    assert type(caught.value) is expected and "no" in str(caught.value)
    owner.error = None
    verb("switchover", "web")


def test_meanwhile_there_is_a_status_and_no_second_switchover(start: Start, place: Path) -> None:
    owner = start()
    owner.may_go_on.clear()
    path = processes(place)[0].path
    begun = threading.Event()
    done: list[SwitchoverRow] = []
    asking = threading.Thread(target=lambda: done.append(switch_over(path, lambda text: begun.set())))
    asking.start()
    assert begun.wait(DEADLINE)
    with pytest.raises(InvalidInputError, match="under way already"):
        switch_over(path, print)
    assert processes(place)[0].row == ROW
    owner.may_go_on.set()
    asking.join()
    assert done == [MOVED]


def test_which_is_asked() -> None:
    found = [Process(Path(f"{n}.x"), row) for n, row in enumerate([ROW, STANDBY])]
    assert one_to_switch(found) == found[0] and one_to_switch(found[1:]) == found[1]
    with pytest.raises(InvalidInputError, match="processes 0, 3 match"):
        one_to_switch([*found, Process(Path("3.x"), ROW)])
    with pytest.raises(LinkError, match="process 9 does not answer"):
        chosen([*found, Process(Path("9.x"), None)], "other")


def fork_owner(place: Path) -> int:
    """A process that has begun a switchover, and stops there."""
    child = os.fork()
    if child:
        return child
    with suppress(BaseException):

        def stop(progress: Progress) -> SwitchoverRow:
            os.kill(os.getpid(), signal.SIGSTOP)
            signal.pause()
            raise AssertionError

        Control(lambda: ROW, stop, place)
        signal.pause()
    os._exit(1)


def test_a_process_that_hangs_and_dies(place: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not answer; then its socket is removed, and others stay."""
    child = fork_owner(place)
    wait_for(lambda: any(one.row for one in processes(place)), "it listens")
    path = processes(place)[0].path
    failed: list[str] = []

    def ask() -> None:
        try:
            switch_over(path, print)
        except LinkError as error:
            failed.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOWAIT)
    monkeypatch.setattr("checkpoint.replication.asking.SECONDS", 0.05)
    assert processes(place) == [Process(path, None)]
    assert verb("status")[1] == f"uffdtrack: warning: process {child} does not answer\n"
    monkeypatch.undo()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    asking.join()
    assert len(failed) == 1 and "has ended on the way" in failed[0]
    owner = start()
    assert path.exists()
    found = processes(place)
    assert [one.row for one in found] == [owner.row] and not path.exists()


def test_another_user(start: Start, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start()
    path = processes(place)[0].path
    monkeypatch.setattr(
        "checkpoint.replication.links.local.credentials_of", lambda connection: (7, os.geteuid() + 1)
    )
    with pytest.raises(PermissionDeniedError, match="user"):
        switch_over(path, print)
    monkeypatch.setattr("checkpoint.replication.asking.connect_local", unchecked)
    with pytest.raises(PermissionDeniedError, match="user"):
        switch_over(path, print)


def unchecked(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


@pytest.mark.parametrize(
    "text", [b"{}", b"[" * 60000, b"\xff", b"1" * 70000, b'{"schema": 1}', b""], ids=range(6)
)
def test_rubbish_is_answered(start: Start, place: Path, text: bytes) -> None:
    start()
    with connect_local(processes(place)[0].path) as connection, connection.makefile("rb") as stream:
        connection.settimeout(DEADLINE)
        with suppress(BrokenPipeError):
            connection.sendall(text + b"\n")
        assert json.loads(stream.readline())["error"] == "InvalidInputError"
    assert verb("status", "web")[0]


def test_a_client_that_says_nothing_is_waited_for_by_nobody(
    start: Start, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = start()
    path = processes(place)[0].path
    with closing(connect_local(path)) as silent:
        assert verb("status", "web")[0]
        monkeypatch.setattr(control, "SECONDS", 3600.0)
        owner.control.close()
        assert "does not know the request" in silent.makefile().readline()
    monkeypatch.setattr(control, "SECONDS", 0.02)
    start()
    path = processes(place)[0].path
    with connect_local(path) as connection, connection.makefile("rb") as stream:
        connection.settimeout(DEADLINE)
        assert "did not come in time" in json.loads(stream.readline())["text"]


def test_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(PermissionDeniedError, match="chmod 700"):
        Owner(tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(PermissionDeniedError):
        Owner(tmp_path / "link")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert run_directory() == Path("/run/uffdtrack")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert run_directory() == Path("/run/user/1000/uffdtrack")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert run_directory() == Path("/tmp/uffdtrack-1000")
