"""Links that are slow, links on which nothing is achieved, and a switchover to the same addresses."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import time
from pathlib import Path

import pytest

from checkpoint.errors import LinkError, StandbyAwayError
from checkpoint.replication import attempts
from checkpoint.replication.active import ActiveEdge
from checkpoint.replication.links.address import Address
from checkpoint.replication.links.channel import Channel
from checkpoint.replication.links.frames import Kind, Message
from checkpoint.replication.outgoing import Outgoing
from checkpoint.replication.route import DirectRoute
from tests.contract.conftest import need_kvm
from tests.helpers import DEADLINE, Run, Spawn
from tests.kvm.test_net import free_port
from tests.replication.ends import frames_of
from tests.replication.pair import standby, until

SHORT = 0.3
"""Seconds of silence."""
PIECES = 20
HELLO = Message(Kind.HELLO, {"role": "active", "run": "a", "name": "slow", "deadline": SHORT})


def test_a_message_that_takes_longer_than_silence(tmp_path: Path) -> None:
    """Who sends a part of a message is not silent; who sends nothing is."""
    body = bytes(1 << 16)
    frames = frames_of(HELLO, Message(Kind.BEGIN, {"epoch": 0}), Message(Kind.PART, {"offset": 0}, body))
    with (
        standby(tmp_path / "s", tmp_path / "chain", deadline=SHORT) as far,
        socket.socket(socket.AF_UNIX) as us,
    ):
        until(lambda: "listening" in str(far.tell), "it listens")
        us.connect(str(tmp_path / "s"))
        us.sendall(frames[0] + frames[1])
        until(lambda: far.peer, "it is linked")
        size = len(frames[2]) // PIECES
        for at in range(0, len(frames[2]), size):
            us.sendall(frames[2][at : at + size])
            time.sleep(3 * SHORT / PIECES)  # this is how slow the link is
        until(lambda: far.replica.heard == len(body), "all of it has come")
        assert far.peer and "nothing was heard" not in str(far.tell)
        until(lambda: not far.peer, "silence is noticed")
        assert "nothing was heard" in str(far.tell)


class _Ends:
    """A channel to a standby that greets, and ends the link then."""

    peer, peer_pid, peer_pidfd, heard_at = "a standby", None, None, 0.0

    def __init__(self, tip: str) -> None:
        self.greets = True
        self.tip = {"epoch": 3, "digest": tip} if tip else None

    async def send(self, *messages: Message) -> None:
        await asyncio.sleep(0)

    async def receive(self) -> Message:
        if self.greets:
            self.greets = False
            return Message(Kind.HELLO, {"role": "standby", "features": [], "tip": self.tip})
        raise LinkError("the disk is full")

    async def close(self, reason: str = "") -> None:
        await asyncio.sleep(0)


@pytest.mark.parametrize("there", ["with nothing", "with an epoch", ""])
def test_links_that_achieve_nothing(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a standby has nothing, they are taken up less and less often; else silence would count."""
    monkeypatch.setattr(attempts, "AGAIN", 0.01)
    monkeypatch.setattr(attempts, "LONGEST_REST", 0.05)
    rests: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        if 0 < seconds < 1:
            rests.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(attempts.asyncio, "sleep", noted)
    route = DirectRoute(Address("unix", path="/nowhere"), None, False, None)

    async def connect() -> Channel:
        return _Ends("digest" if "epoch" in there else "")  # type: ignore[return-value]

    if there:
        monkeypatch.setattr(route, "connect", connect)
    about = {"name": "active", "run": "r", "kind": "vm", "keyed": False}
    with ActiveEdge(route, about, b"", DEADLINE, lambda: None, lambda text: None) as edge:
        edge.start()
        until(lambda: len(rests) >= 5, "it tries again")
    assert rests[:5] == ([0.02, 0.04, 0.05, 0.05, 0.05] if there == "with nothing" else [0.01] * 5)


@pytest.mark.parametrize("net", [True, False])
def test_a_switchover_on_one_host(
    kernel: None, spawn: Spawn, uffdtrack: Run, tmp_path: Path, net: bool
) -> None:
    """The devices are the same: the active lets go of them, and the standby has them."""
    need_kvm()
    where, logs = f"unix:{tmp_path / 's'}", (tmp_path / "active", tmp_path / "standby")
    devices: list[object] = ["--serial", tmp_path / "serial"]
    if net:
        devices = ["--net", f"udp:127.0.0.1:{free_port()},127.0.0.1:{free_port()}"]
    words = (
        ("vm", "run", "echo" if net else "count", "--replicate", where, "--every", "5ms"),
        ("standby", "--listen", where, "-o", tmp_path / "c"),
    )
    started = []
    for them, log in zip(words, logs, strict=True):
        with log.open("wb") as stderr:
            started.append(spawn(sys.executable, "-m", "checkpoint", *them, *devices, stderr=stderr))
    active, other = started
    until(lambda: "is linked" in logs[0].read_text(), "they are linked")

    def name() -> str:
        rows = [json.loads(line) for line in uffdtrack("status", where, "--json").stdout.splitlines()]
        return str(next((row["name"] for row in rows if row.get("acknowledged", 0) > 2), ""))

    until(name, "epochs are acknowledged")
    moved = json.loads(uffdtrack("switchover", name(), "--json").stdout)
    assert moved["epoch"] > 0
    assert active.wait(DEADLINE) == 0
    assert re.search(r"the guest runs at \S+, from epoch", logs[0].read_text())
    until(lambda: "runs here" in logs[1].read_text(), "it runs there")
    other.terminate()
    assert other.wait(DEADLINE) == 0


@pytest.mark.parametrize("acknowledged", [True, False])
def test_an_acknowledgement_that_came_before_the_end_of_the_link(acknowledged: bool) -> None:
    """Who waits for it may look only when the link has gone, and another one is there."""
    outgoing = Outgoing(lambda: None)
    outgoing.link(frozenset())
    five, six = (
        outgoing.announce(outgoing.life, f"digest {n}", n, 1, (0, 0), Message(Kind.END)) for n in (5, 6)
    )
    assert outgoing.acknowledge("digest 5" if not acknowledged else "digest 6")
    outgoing.unlink("it has gone")
    outgoing.link(frozenset())
    again = outgoing.announce(outgoing.life, "other digest", 5, 1, (0, 0), Message(Kind.END))
    outgoing.wait(five)
    if acknowledged:
        outgoing.wait(six)
    else:
        with pytest.raises(StandbyAwayError):
            outgoing.wait(six)
    assert outgoing.acknowledge("other digest")
    outgoing.wait(again)
    with pytest.raises(StandbyAwayError):
        outgoing.wait(six)
