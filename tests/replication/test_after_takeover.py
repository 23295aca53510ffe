"""Real processes: a guest that was taken over is replicated again, and survives the next failure, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import DEADLINE
from tests.replication.hosts import Hosts, hosts_in
from tests.replication.servers import Server
from tests.replication.zygote import Zygote
from uffdtrack.errors import UffdtrackError


@pytest.fixture
def hosts(zygote: Zygote, tmp_path: Path) -> Iterator[Hosts]:
    with hosts_in(zygote, tmp_path) as made:
        yield made


def _kill(hosts: Hosts, name: str) -> None:
    hosts.kill(name)


def _switch(hosts: Hosts, name: str) -> None:
    row = hosts.switch_over(name)
    assert row.epoch > 0 and "handed over" not in hosts.processes[name].said


WAYS: dict[str, Callable[[Hosts, str], None]] = {"killed": _kill, "switchover": _switch}


SLOW = pytest.mark.slow
CHAINS = [
    pytest.param("killed", True),
    pytest.param("switchover", False),
    pytest.param("killed", False, marks=SLOW),
    pytest.param("switchover", True, marks=SLOW),
]
BROKERS = [
    pytest.param("killed", "2.15"),
    pytest.param("killed", "2.9", marks=SLOW),
    pytest.param("switchover", "2.15", marks=SLOW),
    pytest.param("switchover", "2.9", marks=SLOW),
]


@pytest.mark.parametrize(("way", "lock"), CHAINS)
def test_a_chain(hosts: Hosts, way: str, lock: bool) -> None:
    """From a to b, from b to c, and from there to a again, where a standby is started only then."""
    fence = ["--fence", f"lock:{hosts.place / 'lock'}"] if lock else []
    every = ["--every", "5ms" if lock else "output"]

    def standby(name: str, next_one: str) -> None:
        at = [f"unix:{hosts.place / one}" for one in (name, next_one)]
        hosts.start_standby(name, "--listen", at[0], "--replicate", at[1], *fence)

    standby("b", "c")
    standby("c", "a")
    b = f"unix:{hosts.place / 'b'}"
    hosts.start("a", "vm", "run", "count", "--replicate", b, *every, "--name", "it", *fence)
    for one, other in (("a", "b"), ("b", "c")):
        hosts.await_protected(one)
        hosts.goes_on()
        WAYS[way](hosts, one)
        hosts.active_of(other)
        hosts.goes_on()
    hosts.await_state("c", "active unprotected")
    row = hosts.row("c")
    assert row and row.name == "it" and row.address == f"unix:{hosts.place / 'a'}" and row.error
    hosts.await_said("c", "its output goes out at once")
    standby("a", "b")
    hosts.await_protected("c")
    hosts.await_said("c", "its output is held from now on")
    hosts.kill("c")
    hosts.await_state("a", "active unprotected")
    hosts.goes_on()


@pytest.mark.parametrize(("way", "version"), BROKERS)
def test_three_hosts_and_a_broker(hosts: Hosts, way: str, version: str) -> None:
    """The other standby follows the one that has taken over, and takes over from that."""
    with Server(version, hosts.place / "nats") as server:
        address = server.address("three")
        for name in ("b", "c"):
            hosts.start_standby(name, "--follow", address)
        hosts.start("a", "vm", "run", "count", "--replicate", address, "--every", "10ms")
        hosts.await_protected("a")
        for name in ("b", "c"):
            hosts.await_state(name, "standby following")
        hosts.goes_on()
        WAYS[way](hosts, "a")
        first = hosts.active_of("b", "c")
        (second,) = {"b", "c"} - {first}
        hosts.goes_on()
        hosts.await_protected(first)
        hosts.await_said(second, "another host has taken over")
        hosts.goes_on()
        WAYS[way](hosts, first)
        hosts.await_state(second, "active unprotected")
        hosts.goes_on()


def test_a_stale_active_says_who_has_its_lease(hosts: Hosts, server: Server) -> None:
    address = server.address("stale")
    hosts.start_standby("b", "--follow", address)
    hosts.start("a", "vm", "run", "count", "--replicate", address, "--every", "10ms")
    hosts.await_protected("a")
    hosts.stop("a")
    hosts.await_state("b", "active unprotected")
    hosts.goes_on()
    hosts.resume("a")
    hosts.await_said("a", "is stopped here: the lease is lost: process .* has it")
    assert hosts.processes["a"].wait(DEADLINE) == 5
    hosts.goes_on()


@pytest.mark.slow
def test_a_standby_that_was_cut_off_follows_again(hosts: Hosts, server: Server) -> None:
    """It was the successor, and stood while another one became that, and took over: it has an older epoch."""
    address = server.address("cut-off")
    hosts.start_standby("b", "--follow", address)
    hosts.start("a", "vm", "run", "count", "--replicate", address, "--every", "10ms")
    hosts.await_protected("a")
    hosts.start_standby("c", "--follow", address)
    hosts.await_state("c", "standby following")
    hosts.stop("b")
    hosts.await_said("a", "output is held")
    hosts.goes_on()  # what "c" has acknowledged: it is the successor
    hosts.await_protected("a")
    hosts.kill("a")
    assert hosts.active_of("c") == "c"
    hosts.goes_on()
    hosts.resume("b")
    hosts.await_protected("c")
    hosts.goes_on()
    hosts.await_said("b", "another host has taken over")
    assert hosts.state("b") == "standby following"
    hosts.kill("c")
    hosts.await_state("b", "active unprotected")
    hosts.goes_on()


def test_two_locks_are_no_lock(hosts: Hosts) -> None:
    """It is said before it matters, and there is no switchover."""
    address, a, b = f"unix:{hosts.place / 's'}", hosts.place / "a.lock", hosts.place / "b.lock"
    hosts.start_standby("b", "--listen", address, "--fence", f"lock:{b}")
    hosts.start("a", "vm", "run", "count", "--replicate", address, "--every", "10ms", "--fence", f"lock:{a}")
    hosts.await_protected("a")
    hosts.await_said("b", "warning: this standby could not take over: the active does not lock .*b.lock")
    with pytest.raises(UffdtrackError, match=r"no switchover.*the active does not lock .*b.lock"):
        hosts.switch_over("a")
    hosts.await_protected("a")
    hosts.goes_on()


@pytest.mark.slow
def test_a_standby_that_refuses_makes_nobody_silent(hosts: Hosts) -> None:
    """It has another key: it never has an epoch, so the guest's output goes on. Then the right one comes."""
    b, c = (f"unix:{hosts.place / one}" for one in "bc")
    key = hosts.place / "key"
    key.write_bytes(b"another key, of 32 bytes or more.")
    hosts.start_standby("b", "--listen", b, "--replicate", c)
    hosts.start("a", "vm", "run", "count", "--replicate", b, "--every", "5ms")
    hosts.await_protected("a")
    hosts.start_standby("c", "--listen", c, "--key-file", key)
    hosts.kill("a")
    hosts.await_said("b", "refuses")
    for _ in range(3):
        hosts.goes_on()
    assert not hosts.state("b").endswith("followed")
    hosts.kill("c")
    hosts.start_standby("c", "--listen", c)
    hosts.await_protected("b")
    hosts.kill("b")
    hosts.await_said("c", "taking over")
    hosts.goes_on()
