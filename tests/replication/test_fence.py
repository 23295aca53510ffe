"""Fences: who may go on with a guest, and who may not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint.cli.options import Options
from checkpoint.cli.replicate import Replicate
from checkpoint.errors import LinkError
from checkpoint.replication.fence import Command, FileLock, parse_fence
from checkpoint.replication.following import DirectFollowing
from checkpoint.replication.links.address import Address, parse
from checkpoint.replication.links.channel import Channel
from checkpoint.replication.links.frames import Kind, Message
from checkpoint.replication.protocol.table import ActiveState, StandbyState
from tests.kvm.conftest import Machine, kvm
from tests.replication.ends import Raw, frames_of, run
from tests.replication.pair import active, standby, take, until
from tests.replication.test_mirror import begin, cut, guest
from uffdtrack.errors import InvalidInputError

assert kvm and guest  # fixtures
SHORT = 0.3
"""Seconds of silence."""


def test_lock(guest: Callable[[str], Machine], tmp_path: Path) -> None:
    """The standby takes over when the lock is free, and not before: the active's link alone is cut."""
    there, lock = guest("kvm-ring"), tmp_path / "lock"
    with standby(tmp_path / "s", tmp_path / "chain", FileLock(lock), deadline=SHORT) as far:
        with active(tmp_path / "s", lock=FileLock(lock)) as edge:
            session, _ = begin(edge, there)
            take(session)
            for _ in range(3):
                cut(far)
                take(session)
            edge._route._address = Address("unix", path=str(tmp_path / "gone"))  # type: ignore[attr-defined]
            cut(far)
            until(lambda: "may not take over" in str(far.tell), "the fence was not asked")
            assert not far.outcome
            until(lambda: edge.machine.state is ActiveState.SEEKING, "the active has a link")
        until(lambda: far.outcome == "takeover", "the lock is free, and the standby does not take over")
        assert far.machine.state is StandbyState.RUNNING


@pytest.mark.parametrize("theirs", ["the same", "another", "none"])
def test_whether_the_active_has_that_lock(
    guest: Callable[[str], Machine], tmp_path: Path, theirs: str
) -> None:
    """Whoever could never take over says so as soon as an epoch has come, and once."""
    lock = {"the same": FileLock(tmp_path / "lock"), "another": FileLock(tmp_path / "other"), "none": None}
    with standby(tmp_path / "s", tmp_path / "chain", FileLock(tmp_path / "lock")) as far:
        with active(tmp_path / "s", lock=lock[theirs]) as edge:
            session, _ = begin(edge, guest("kvm-ring"))
            for _ in range(3):
                take(session)
        warnings = [text for text in far.tell if "warning" in text]  # type: ignore[attr-defined]
    assert len(warnings) == (theirs != "the same")
    assert all("could not take over: the active does not lock" in text for text in warnings)


def test_who_is_refused_has_ended(tmp_path: Path) -> None:
    """Its thread wakes nobody when the session has gone, whose descriptors may be another's then."""
    where, lock = parse(f"unix:{tmp_path}/s"), FileLock(tmp_path / "lock")
    options = Options(tmp_path, 1.0, None, None, "scan", None, None, False, b"", False)
    threads = threading.active_count()
    with FileLock(tmp_path / "lock") as held:
        assert held.take()
        for _ in range(10):
            with pytest.raises(InvalidInputError, match="is locked"):
                Replicate(where, "", None, False, lock, SHORT).open("vm", "it", 0, options, lambda: None)
            assert threading.active_count() == threads


def test_an_older_standby(tmp_path: Path) -> None:
    """One whose epochs are behind those of another one may not take over, though the lock is free."""
    path = tmp_path / "lock"
    with FileLock(path) as held:
        assert held.take()
        held.write("first")
        older = FileLock(path)
        assert not older.take_if("first")
        held.write("second")
    assert not older.take_if("first")
    assert older.take_if("second")
    older.close()


def test_a_lock_that_was_replaced(tmp_path: Path) -> None:
    """Two files of one name are two locks: whose file has gone has none."""
    with FileLock(tmp_path / "lock") as lock:
        assert lock.take() and lock.is_held
        (tmp_path / "lock").unlink()
        assert not lock.is_held
        with FileLock(tmp_path / "lock") as another:
            assert another.take() and another.is_held and not lock.is_held


@pytest.mark.parametrize(("command", "fenced"), [("true", True), ("exit 3", False), ("kill -9 $$", False)])
def test_command(command: str, fenced: bool) -> None:
    assert asyncio.run(Command(command).fence()) is fenced


def test_no_fence() -> None:
    following = DirectFollowing(Address("unix", path="/nowhere"), None, False, None)
    assert asyncio.run(following.fence()) is None


def test_what_a_user_names() -> None:
    assert isinstance(parse_fence("lock:/tmp/x"), FileLock)
    assert isinstance(parse_fence("ssh host poweroff"), Command)
    assert isinstance(parse_fence("/usr/sbin/fence-host1 --port 8:1"), Command)
    for text in ("", "  ", "lock:", "lck:/tmp/x"):
        with pytest.raises(InvalidInputError):
            parse_fence(text)


def test_who_is_refused_again_and_again() -> None:
    """It is told once, whatever port it comes from, and another reason once more."""
    said: list[str] = []

    async def test() -> None:
        following = DirectFollowing(parse("tcp://127.0.0.1:0"), None, False, Command("true"))
        listens = asyncio.Event()

        def tell(text: str) -> None:
            said.append(text)
            listens.set()

        async def accept(channel: Channel) -> None:
            raise LinkError("it is no active")

        serving = asyncio.create_task(following.serve(accept, tell))
        await listens.wait()
        address = parse(said[0].split()[-1])
        for data in (
            b"GET / HTTP/1.1\r\n\r\n" * 9,
            b"GET / HTTP/1.1\r\n\r\n" * 9,
            frames_of(Message(Kind.BEAT))[0],
        ) * 2:
            peer = Raw(address)
            await peer.send(data)
            await peer.reason()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    run(test)
    assert len(said) == 3 and said[1] != said[2]
