"""An active and a standby on two hosts: network namespaces, TLS, a cable that is pulled out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from checkpoint.chain import Chain
from tests.contract.conftest import need_kvm
from tests.helpers import DEADLINE, Run, Spawn
from tests.replication.outside import counted
from tests.replication.pair import until

ADDRESSES = "10.203.0.1", "10.203.0.2"


class Cable:
    """Two hosts and what joins them. Nothing tells them that it was pulled out: what is sent is lost."""

    def __init__(self) -> None:
        name = f"ut{os.getpid()}"  # tests may run side by side
        self.hosts = f"{name}a", f"{name}s"
        self.bridge = f"{name}b"

    def set(self, up: bool) -> None:
        """The bridge between the hosts passes frames on, or drops them."""
        _ip("link", "set", self.bridge, "up" if up else "down")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def cable(root: None) -> Iterator[Cable]:
    need_kvm()
    made = Cable()
    with ExitStack() as stack:
        _ip("link", "add", made.bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", made.bridge)
        for host, address in zip(made.hosts, ADDRESSES, strict=True):
            _ip("netns", "add", host)
            stack.callback(_ip, "netns", "del", host)
            _ip("link", "add", f"{host}b", "type", "veth", "peer", "name", "eth0", "netns", host)
            stack.callback(_ip, "link", "del", f"{host}b")
            _ip("link", "set", f"{host}b", "master", made.bridge, "up")
            _ip("-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", host, "link", "set", "eth0", "up")
            _ip("-n", host, "link", "set", "lo", "up")
        made.set(up=True)
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_cable_is_pulled_out(cable: Cable, spawn: Spawn, uffdtrack: Run, tmp_path: Path, seed: int) -> None:
    """For a while, and nothing happens but that output waits; then the active's host dies behind it."""
    serial, log = tmp_path / "serial", (tmp_path / "standby.log", tmp_path / "active.log")
    uffdtrack("keys", tmp_path / "keys", *ADDRESSES)
    common = ["--tls", tmp_path / "keys", "--fence", f"lock:{tmp_path / 'lock'}", "--serial", serial,
              "--deadline", "200ms"]  # fmt: skip

    def start(host: str, to: Path, *words: object) -> subprocess.Popen[bytes]:
        command = ("ip", "netns", "exec", host, sys.executable, "-m", "checkpoint", *words, *common)
        with to.open("wb") as stderr:
            return spawn(*command, stderr=stderr)

    def said(pattern: str, of: Path) -> re.Match[str] | None:
        return re.search(pattern, of.read_text())

    def lines() -> int:
        return serial.read_bytes().count(b"\n") if serial.exists() else 0

    def goes_on(what: str, more: int = 2) -> None:
        was = lines()
        until(lambda: lines() >= was + more, what)

    where, every = f"tls://{ADDRESSES[1]}:7071", f"{1 + seed}ms"
    standby = start(cable.hosts[1], log[0], "standby", "--listen", where, "-o", tmp_path / "c")
    until(lambda: said("listening", log[0]), "it listens")
    active = start(cable.hosts[0], log[1], "vm", "run", "count", "--replicate", where, "--every", every)
    goes_on("both run")
    cable.set(up=False)
    until(lambda: said("may not take over", log[0]), "the standby hears nothing")
    until(lambda: said("output is held", log[1]), "the active hears nothing")
    was = lines()
    cable.set(up=True)
    until(lambda: lines() > was + 2, "it goes on")
    cable.set(up=False)
    active.kill()
    active.wait(DEADLINE)
    until(lambda: said("taking over", log[0]), "the standby takes over")
    goes_on("it goes on at the standby")
    standby.terminate()
    assert standby.wait(DEADLINE) == 0
    data = serial.read_bytes()
    assert counted(len(data), 1).startswith(data)
    assert Chain(tmp_path / "c").verify(b"")
