"""Keys of two hosts, and that nobody else's are taken."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner

from checkpoint.cli.main import cli
from checkpoint.errors import LinkError
from checkpoint.replication.links import credentials, keys
from checkpoint.replication.links.address import parse
from checkpoint.replication.links.credentials import Credentials
from checkpoint.replication.links.frames import Kind, Message
from checkpoint.replication.links.keys import Authority, make_pair
from checkpoint.replication.links.link import connect
from tests.replication.ends import HELLO, Raw, Standby, frames_of, listening, run, serves
from uffdtrack.errors import InvalidInputError, UffdtrackError

LOOPBACK = parse("tls://127.0.0.1:0")
HOUR = datetime.timedelta(hours=1)
Pair = tuple[Credentials, Credentials]


def written(path: Path, text: bytes) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(text)
    return path


def of_trustme(authority: trustme.CA, *names: str) -> bytes:
    certificate = authority.issue_cert(*names)
    return certificate.private_key_and_cert_chain_pem.bytes() + authority.cert_pem.bytes()


# -- files ----------------------------------------------------------------------------------------


def test_a_pair(tmp_path: Path) -> None:
    rows = make_pair(tmp_path / "new" / "keys", ["one.example,10.0.0.1", "two.example"])
    assert [(row.name, row.hosts) for row in rows] == [
        ("active", ["one.example", "10.0.0.1"]),
        ("standby", ["two.example"]),
    ]
    for row in rows:
        path = Path(row.file)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert Credentials.load(path, "whatever").name == row.name
        assert Credentials.load(path.parent, row.name).path == path
    assert sorted(os.listdir(path.parent)) == ["active.pem", "standby.pem"]
    assert b"CERTIFICATE" in path.read_bytes()


def test_keys_are_replaced_by_force_alone(tmp_path: Path) -> None:
    make_pair(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InvalidInputError, match="--force"):
        make_pair(tmp_path)
    (tmp_path / "active.pem").unlink()
    with pytest.raises(InvalidInputError, match="--force"):
        make_pair(tmp_path)
    assert (tmp_path / "standby.pem").read_bytes() == before[tmp_path / "standby.pem"]
    make_pair(tmp_path, force=True)
    assert all(path.read_bytes() != text for path, text in before.items())


@pytest.mark.parametrize(
    "hosts",
    [
        ["one"],
        ["one", "two", "three"],
        ["", "two"],
        ["a/b", "two"],
        ["one", "a..b"],
        ["a:1", "b"],
        ["ä", "b"],
    ],
)
def test_hosts_that_are_none(tmp_path: Path, hosts: list[str]) -> None:
    with pytest.raises(InvalidInputError):
        make_pair(tmp_path / "keys", hosts)
    assert not (tmp_path / "keys").exists()


def test_verb(tmp_path: Path) -> None:
    command = ["keys", str(tmp_path), "one.example", "::1"]
    done = CliRunner().invoke(cli, [*command, "--json"], catch_exceptions=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["hosts"] for row in rows] == [["one.example"], ["::1"]]
    with pytest.raises(InvalidInputError, match="--force"):
        CliRunner().invoke(cli, command, catch_exceptions=False)
    done = CliRunner().invoke(cli, [*command, "--force"], catch_exceptions=False)
    assert f"{tmp_path}/standby.pem, for ::1, until 20" in done.stdout


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (lambda p: p.unlink(), "No such file"),
    "others may read": (lambda p: p.chmod(0o640), "chmod 600"),
    "a FIFO": (lambda p: (p.unlink(), os.mkfifo(p, 0o600)), "no file"),
    "empty": (lambda p: p.write_bytes(b""), "is not a key"),
    "no certificate": (lambda p: p.write_bytes(p.read_bytes()[:300]), "is not a key"),
    "garbage": (lambda p: p.write_bytes(os.urandom(500)), "is not a key"),
    "another's key": (lambda p: p.write_bytes(of_active_and_standby(p)), "is not a key"),
    "expired": (lambda p: p.write_bytes(Authority.make(-HOUR).issue("active", ["a"])), "expired"),
    "no mark": (lambda p: p.write_bytes(of_trustme(trustme.CA(), "localhost")), "not made by"),
    "another CA": (lambda p: p.write_bytes(with_another_ca(p)), "unable to get local issuer"),
}  # fmt: skip


def of_active_and_standby(path: Path) -> bytes:
    key = path.read_bytes().partition(b"-----BEGIN CERT")[0]
    rest = path.with_name("standby.pem").read_bytes().partition(b"-----BEGIN CERT")
    return key + rest[1] + rest[2]


def with_another_ca(path: Path) -> bytes:
    own = path.read_bytes().split(b"-----BEGIN CERT")
    return b"-----BEGIN CERT".join(own[:2]) + trustme.CA().cert_pem.bytes()


@pytest.mark.parametrize("what", FILES)
def test_files_that_are_refused(tmp_path: Path, what: str) -> None:
    make_pair(tmp_path)
    change, reason = FILES[what]
    Credentials.load(tmp_path, "active")  # the negative control
    change(tmp_path / "active.pem")
    with pytest.raises(InvalidInputError, match=reason):
        Credentials.load(tmp_path, "active")


# -- links ----------------------------------------------------------------------------------------


def context(path: Path | None = None, authority: Path | None = None) -> ssl.SSLContext:
    """A client that takes any server, and shows a certificate or none."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if path:
        made.load_cert_chain(path)
    return made


async def talk(standby: Standby, client: ssl.SSLContext) -> bytes:
    """What a TLS client hears that says HELLO."""
    reader, writer = await asyncio.open_connection("127.0.0.1", standby.address.port, ssl=client)
    found = b""
    with contextlib.suppress(OSError):
        writer.write(frames_of(HELLO)[0])
        while part := await reader.read(1000):
            found += part
            writer.write(frames_of(HELLO, Message(Kind.BYE))[1])
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return found


def check_client(pair: Pair, client: ssl.SSLContext, reason: str) -> None:
    async def test() -> None:
        async with listening(LOOPBACK, pair[1]) as standby:
            try:
                heard = await talk(standby, client)
            except ssl.SSLError:  # in the handshake already
                heard = b""
            assert heard == b"" and reason in await standby.refused.get()
            await serves(standby, pair[0])

    run(test)


def test_the_pair_is_served(pair: Pair) -> None:
    """The negative control of the tests below."""

    async def test() -> None:
        async with listening(LOOPBACK, pair[1]) as standby:
            assert b"standby" in await talk(standby, context(pair[0].path))
            assert await standby.ended.get() == "bye"
            await serves(standby, pair[0])

    run(test)


def test_no_certificate(pair: Pair) -> None:
    check_client(pair, context(), "did not return a certificate")


def test_a_certificate_of_another_ca(pair: Pair, tmp_path: Path) -> None:
    path = written(tmp_path / "other", of_trustme(trustme.CA(), "127.0.0.1"))
    check_client(pair, context(path), "its certificate is not accepted")


def test_a_pair_of_another(pair: Pair, tmp_path: Path) -> None:
    make_pair(tmp_path)
    check_client(pair, context(tmp_path / "active.pem"), "its certificate is not accepted")


def made_by(authority: Authority, directory: Path, name: str, hosts: tuple[str, ...] = keys.LOOPBACK) -> Path:
    return written(directory / f"{name}.pem", authority.issue(name, hosts))


def test_an_expired_certificate(tmp_path: Path) -> None:
    """Of the right CA."""
    authority = Authority.make()
    standby = Credentials.load(made_by(authority, tmp_path, "standby"), "standby")
    past = datetime.datetime.now(datetime.UTC) - HOUR
    old = Authority(authority.key, authority.certificate, authority.begins, past)
    path = made_by(old, tmp_path, "active")
    with pytest.raises(InvalidInputError, match="expired"):
        Credentials.load(path, "active")
    check_client((standby, standby), context(path), "certificate has expired")


def test_a_certificate_that_keys_has_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the right CA: a company's, for instance, that signs others, too."""
    authority = Authority.make()
    standby = Credentials.load(made_by(authority, tmp_path, "standby"), "standby")
    monkeypatch.setattr(keys, "MARK", "https://")
    check_client(
        (standby, standby), context(made_by(authority, tmp_path, "mail")), "not made by `uffdtrack keys`"
    )


def test_an_old_version_of_tls(pair: Pair) -> None:
    client = context(pair[0].path)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    check_client(pair, client, "TLS: unsupported protocol")


@pytest.mark.parametrize("data", [frames_of(HELLO)[0], b"GET / HTTP/1.1\r\n\r\n", bytes(64)], ids=range(3))
def test_plain_text(pair: Pair, data: bytes) -> None:
    async def test() -> None:
        async with listening(LOOPBACK, pair[1]) as standby:
            raw = Raw(standby.address)
            await raw.send(data)
            assert b"standby" not in await raw.read_all()
            raw.socket.close()
            assert "is refused: it does not speak TLS" in await standby.refused.get()
            await serves(standby, pair[0])

    run(test)


def check_server(server: Credentials, client: Credentials, reason: str) -> None:
    async def test() -> None:
        async with listening(LOOPBACK, server) as standby:
            with pytest.raises(LinkError, match=reason):
                await connect(standby.address, client)

    run(test)


def test_servers_that_are_others(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another pair; of ours, at another host; of the right CA, and not made for us."""
    make_pair(tmp_path)
    other = Credentials.load(tmp_path, "standby")
    check_server(other, pair[0], "cannot connect to tls://.*its certificate is not accepted")
    authority = Authority.make()
    ours = Credentials.load(made_by(authority, tmp_path, "a"), "a")
    elsewhere = Credentials.load(made_by(authority, tmp_path, "b", ("10.9.8.7", "far.example")), "b")
    check_server(elsewhere, ours, "IP address mismatch")
    monkeypatch.setattr(keys, "MARK", "https://")
    path = made_by(authority, tmp_path, "mail")
    with pytest.raises(InvalidInputError):
        Credentials.load(path, "mail")
    with monkeypatch.context() as patch:
        patch.setattr(credentials, "MARK", "https://")
        mail = Credentials.load(path, "mail")
    check_server(mail, ours, "not made by `uffdtrack keys`")


def test_who_shows_no_right_certificate_hears_why(pair: Pair, tmp_path: Path) -> None:
    """In TLS 1.3 a client learns it behind the handshake."""
    authority = Authority.make()
    mixed = authority.issue("active", keys.LOOPBACK) + pair[1].path.read_bytes().split(b"-----BEGIN CERT")[-1]
    path = written(tmp_path / "mixed", mixed)
    other = Credentials(path, "active", pair[1].server, pair[0].client)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(pair[1].path)
    client.load_cert_chain(path)

    async def test() -> None:
        async with listening(LOOPBACK, pair[1]) as standby:
            with pytest.raises(UffdtrackError, match=r"it does not accept our certificate \(unknown ca\)"):
                channel = await connect(standby.address, Credentials(path, "a", other.server, client))
                await channel.receive()

    run(test)
