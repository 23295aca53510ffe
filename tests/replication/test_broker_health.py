"""`doctor` and a broker: what it says, and that it leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from checkpoint.cli import doctor
from checkpoint.health import Check
from checkpoint.replication.broker.broker_active import BrokerActive
from checkpoint.replication.broker.broker_health import broker_checks
from checkpoint.replication.broker.nats_connection import NatsConnection
from checkpoint.replication.broker.stream import Stream
from tests.replication.brokers import run
from tests.replication.servers import Server
from uffdtrack.errors import InvalidInputError

ACCOUNTS = {
    "USERS": {"jetstream": "enabled", "users": [{"user": "us", "password": "secret"}]},
    "SYS": {"users": [{"user": "sys", "password": "secret"}]},
}


def checked(server: Server) -> dict[str, Check]:
    return {check.name: check for check in run(broker_checks(server.address("any")))}


def test_each_server(server: Server) -> None:
    found = checked(server)
    version = "2.9.10" if "usr" in server.binary else "2.15.1"
    assert version in found["NATS server"].detail
    assert "1048576 bytes" in found["NATS messages"].detail
    assert found["JetStream"].status == found["JetStream lease"].status == "pass"
    assert found["JetStream replicas"].status == "warn"
    assert found["JetStream sync"].status == "warn" and "not shown" in found["JetStream sync"].detail
    assert found["NATS access"].status == "warn"
    newer = "yes" if version == "2.15.1" else "no"
    assert found["JetStream features"].detail.startswith(
        f"lifetimes of messages: {newer}, atomic batches: {newer}"
    )

    async def streams() -> list[str]:
        async with await NatsConnection.open(server.url) as connection:
            return (await connection.api("STREAM.NAMES")).get("streams") or []

    assert not [name for name in run(streams()) if "doctor" in name]


def test_two_writers_would_be_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a server that stores all that come."""

    async def stores(self: Stream, *args: object) -> int:
        return 1

    monkeypatch.setattr(Stream, "put", stores)
    assert checked(server)["JetStream lease"].status == "fail"


@pytest.mark.parametrize("sync", ["always", None])
def test_sync(sync: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system account is told whether the server syncs."""
    monkeypatch.setenv("NATS_USER", "sys")
    monkeypatch.setenv("NATS_PASSWORD", "secret")
    jetstream = {"sync_interval": sync} if sync else {}
    with Server("2.15", tmp_path, accounts=ACCOUNTS, system_account="SYS", jetstream=jetstream) as server:
        found = checked(server)
        assert found["JetStream sync"].status == ("pass" if sync else "warn")
        assert found["JetStream sync"].fix == "" if sync else "2.10" in found["JetStream sync"].fix
        assert found["NATS access"].status == "pass"

        async def opens(user: str) -> None:
            monkeypatch.setenv("NATS_USER", user)
            async with await BrokerActive.open(server.address("auth"), seconds=1.0) as broker:
                assert broker.may_release()

        run(opens("us"))


def test_interval_is_unknown_to_the_older_one(tmp_path: Path) -> None:
    """Why 2.9 always acknowledges before it syncs: it refuses the setting."""
    server = Server("2.9", tmp_path, jetstream={"sync_interval": "always"})
    assert not server.start((1, 2))
    assert 'unknown field "sync_interval"' in (tmp_path / "log").read_text()


def test_password_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_USER", "us")
    monkeypatch.setenv("NATS_PASSWORD", "guessed")
    with Server("2.15", tmp_path, accounts=ACCOUNTS) as server:
        found = checked(server)
        assert found["NATS server"].status == "fail"
        assert "uthorization" in found["NATS server"].detail


def test_verb(server: Server) -> None:
    text = CliRunner().invoke(doctor.command, [server.url])
    assert text.exit_code == 0 and "JetStream lease" in text.output and "0 failed" in text.output
    found = CliRunner().invoke(doctor.command, [server.url, "--json"]).output
    assert {json.loads(line)["schema"] for line in found.splitlines()} == {"uffdtrack/doctor/1"}
    assert CliRunner().invoke(doctor.command, ["nats://127.0.0.1:1"]).exit_code == 3
    for text_of in ("tcp://127.0.0.1:1", "x"):
        assert isinstance(CliRunner().invoke(doctor.command, [text_of]).exception, InvalidInputError)


def test_each_line_has_a_fix_or_needs_none(server: Server) -> None:
    for check in checked(server).values():
        assert bool(check.fix) == (check.status != "pass"), check


def test_nothing_waits_for_ever(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    from checkpoint.replication.broker import nats_connection

    monkeypatch.setattr(nats_connection, "CONNECT_SECONDS", 0.3)
    own_server.signal(signal.SIGSTOP)
    found = checked(own_server)
    own_server.signal(signal.SIGCONT)
    assert found["NATS server"].status == "fail"
