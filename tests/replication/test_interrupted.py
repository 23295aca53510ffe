"""A standby that is ended, or busy, in the middle of an epoch."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.chain import Chain
from checkpoint.errors import LinkError
from checkpoint.replication import mirror
from checkpoint.replication import standby as standby_end
from checkpoint.replication.links.frames import Encoder, Kind, Message
from checkpoint.replication.protocol.machine import Epoch
from checkpoint.replication.protocol.table import StandbyState
from tests.kvm.conftest import Machine, kvm
from tests.replication.pair import active, standby, take, until
from tests.replication.test_mirror import begin, guest

assert kvm and guest  # fixtures
BUSY = 0.3
"""Seconds that the host is busy."""


def test_ended_while_a_base_is_merged(
    guest: Callable[[str], Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directory is a chain, the one that it was or the new one."""
    there, chain = guest("kvm-ring"), tmp_path / "chain"
    there.ram.array[: 1500 * 4096] = np.random.default_rng(1).integers(1, 255, 1500 * 4096, np.uint8)
    with standby(tmp_path / "s", chain), active(tmp_path / "s") as edge:
        session, _ = begin(edge, there)
        for _ in range(3):
            take(session)
    there.vm.resume()
    merging, put = threading.Event(), mirror.put_vcpus

    def slow(*of: Any) -> None:
        put(*of)
        merging.set()
        time.sleep(BUSY)

    monkeypatch.setattr(mirror, "put_vcpus", slow)
    with active(tmp_path / "s") as edge:
        session, _ = begin(edge, there)

        def take_one() -> None:
            with contextlib.suppress(LinkError, AssertionError):
                take(session)

        taker = threading.Thread(target=take_one, daemon=True)
        with standby(tmp_path / "s", chain, force=True) as far:
            taker.start()
            assert merging.wait(30)
        assert far.replica.store.error == ""
        assert Chain(chain).verify(b"")


def test_asked_when_it_has_ended(tmp_path: Path) -> None:
    with standby(tmp_path / "s", tmp_path / "c") as far:
        until(lambda: "listening" in str(far.tell), "it listens")
    with pytest.raises(LinkError, match="has ended"):
        far.ask()


class Asked:
    """A fence that notes whether it was asked."""

    asked = False

    async def fence(self) -> bool:
        self.asked = True
        return False


@pytest.mark.parametrize("beats", [True, False])
def test_busy_for_longer_than_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beats: bool) -> None:
    """An active that is not heard meanwhile was not silent."""
    busy = 5 * BUSY

    async def take_epoch(*of: Any) -> None:
        await asyncio.sleep(busy)
        raise LinkError("an epoch cannot be stored")

    monkeypatch.setattr(standby_end, "take_epoch", take_epoch)
    fence, began = Asked(), time.monotonic()
    with (
        contextlib.ExitStack() as stack,
        standby(tmp_path / "s", tmp_path / "c", fence=fence, deadline=3 * BUSY) as far,  # type: ignore[arg-type]
    ):
        far.call(lambda: far.machine.__dict__.update(tip=Epoch(0, "x"), state=StandbyState.LOST, run="r"))
        until(lambda: "listening" in str(far.tell), "it listens")

        def linked() -> tuple[socket.socket, Callable[..., None]]:
            us, encoder = stack.enter_context(socket.socket(socket.AF_UNIX)), Encoder()
            us.connect(str(tmp_path / "s"))

            def say(kind: Kind, **meta: Any) -> None:
                us.sendall(b"".join(encoder.encode(Message(kind, meta))))

            say(Kind.HELLO, role="active", run="r", name="a", deadline=3 * BUSY)
            return us, say

        def is_refused(us: socket.socket) -> bool:
            with contextlib.suppress(BlockingIOError):
                while data := us.recv(1 << 16, socket.MSG_DONTWAIT):
                    if b"cannot be stored" in data:
                        return True
            return False

        us, say = linked()
        say(Kind.BEGIN, epoch=1)
        say(Kind.END, epoch=1, size=1, digest="y")
        while time.monotonic() < began + busy + 6 * BUSY:
            if beats and is_refused(us):
                us.close()
                us, say = linked()
            if beats:
                say(Kind.BEAT)
            time.sleep(BUSY / 5)
        assert fence.asked is not beats, "\n".join(far.tell)
