"""Where a standby replicates a guest to when it has taken it over: its options."""

from __future__ import annotations

import shutil
from math import inf
from pathlib import Path

import pytest

from checkpoint.cli.standby import following_of
from checkpoint.replication.broker.identity import whose
from checkpoint.replication.fence import Command, FileLock
from checkpoint.replication.following import DirectFollowing
from checkpoint.replication.heard import Heard
from checkpoint.replication.links.address import parse
from checkpoint.replication.links.keys import make_pair
from checkpoint.replication.route import DirectRoute
from tests.helpers import Run
from tests.replication.hosts import Hosts, hosts_in
from tests.replication.servers import free_ports
from tests.replication.zygote import Zygote
from uffdtrack.errors import InvalidInputError

HERE, NEXT = parse("tls://127.0.0.1:7071"), parse("tls://127.0.0.1:7072")


def route(keys: Path | None, fence: FileLock | Command | None = None) -> DirectRoute:
    following = following_of(HERE, None, NEXT, keys, False, fence)
    assert isinstance(following, DirectFollowing)
    made = following.onward(0)
    assert isinstance(made, DirectRoute)
    return made


def test_its_period() -> None:
    """As the active has said; what makes no sense is as if it was not there."""
    heard = Heard()
    for said, every in ((0.01, 0.01), ("output", inf), (3, 3), (-1, 3), (inf, 3), ("often", 3), (None, 3)):
        heard.note({"role": "active", "name": "it", "every": said})
        assert heard.every == every


def test_its_name() -> None:
    """A terminal obeys nothing that a peer says."""
    heard = Heard()
    heard.note({"role": "active", "name": "web\x1b[2J", "host": ["\x07"]})
    assert (heard.name, heard.host) == ("web?[2J", "['\\x07']")
    assert whose("host\x1b:1:f") == "process 1 of host?" and whose("standby-\n") == "standby-?"


def test_its_key(tmp_path: Path) -> None:
    """The active's, where it has both; a host of a pair has one, and that does for both directions."""
    make_pair(tmp_path)
    found = route(tmp_path)._credentials
    assert found and found.path.name == "active.pem"
    for keys in (tmp_path / "standby.pem", tmp_path):
        (tmp_path / "active.pem").unlink(missing_ok=True)
        found = route(keys)._credentials
        assert found and found.path.name == "standby.pem"


def test_its_lock(tmp_path: Path) -> None:
    """It is the one that was taken from the active before."""
    make_pair(tmp_path)
    lock = FileLock(tmp_path / "lock")
    assert route(tmp_path, lock)._lock is lock
    assert route(tmp_path, Command("true"))._lock is None, "that is of the active before"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--follow", "nats://h:1/n", "--replicate", "unix:/s"), "go with --listen"),
        (
            ("--listen", "unix:/r", "--replicate", "nats://h:1/n"),
            "all standbys follow it",
        ),
        (("--listen", "unix:/r", "--replicate", "tls://h:1"), "tls:// needs --tls"),
        (("--listen", "unix:/r", "--replicate", "unix:/s", "--on-failover", "true"), "goes on here"),
        (("--listen", "unix:/r", "--replicate", "unix:/r"), "where this standby listens"),
        (("--listen", "unix:/r", "--on-failover", "export "), "needs the name of a file"),
        (("--listen", "unix:/nowhere/r"), "no directory /nowhere"),
    ],
)
def test_what_makes_no_sense(words: tuple[str, ...], why: str, uffdtrack: Run, tmp_path: Path) -> None:
    done = uffdtrack("standby", *words, "-o", tmp_path / "c", code=InvalidInputError.exit_code)
    assert why in done.stderr


@pytest.mark.slow
def test_back_to_the_other_host_of_a_pair(zygote: Zygote, tmp_path: Path) -> None:
    """Each has its one key, whoever is active."""
    make_pair(tmp_path / "keys")
    for name, file in (("a", "active.pem"), ("b", "standby.pem")):
        shutil.copy(tmp_path / "keys" / file, tmp_path / f"{name}.pem")
    at = {name: f"tls://127.0.0.1:{port}" for name, port in zip("ab", free_ports(2), strict=True)}
    with hosts_in(zygote, tmp_path) as hosts:

        def common(name: str) -> list[object]:
            return ["--tls", tmp_path / f"{name}.pem", "--fence", f"lock:{tmp_path / 'lock'}"]

        def standby(hosts: Hosts, name: str, other: str) -> None:
            listen = ["--listen", at[name], "--replicate", at[other]]
            hosts.start_standby(name, *listen, *common(name))

        standby(hosts, "b", "a")
        hosts.start("a", "vm", "run", "count", "--replicate", at["b"], "--every", "5ms", *common("a"))
        for one, other in (("a", "b"), ("b", "a"), ("a", "b")):
            hosts.await_protected(one)
            hosts.kill(one)
            hosts.await_state(other, "active unprotected")
            hosts.goes_on()
            standby(hosts, one, other)
