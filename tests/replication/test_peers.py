"""A peer that does wrong is told so, and the others are served."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint.replication.links import listener, socket_channel
from checkpoint.replication.links.credentials import Credentials
from checkpoint.replication.links.frames import HEADER, MAX_BODY, Kind, Message
from tests.replication.ends import (
    HELLO,
    Raw,
    frames_of,
    listening,
    place_of,
    run,
    serves,
)

SCHEMES = ("unix", "tcp", "tls")
BYE = Message(Kind.BYE)
BEAT = Message(Kind.BEAT)


WRONG = {
    "garbage": (b"\x16\x03\x01 anything at all, which is long enough", "no frame of uffdtrack"),
    "no hello": (frames_of(HELLO, BEAT)[1], "frame 1 came where 0 was due"),
    "replayed": (b"".join([*frames_of(HELLO), *frames_of(HELLO)]), "frame 0 came where 1 was due"),
    "reordered": (b"".join(frames_of(HELLO, BEAT, BYE)[n] for n in (0, 2, 1)), "frame 2 came where 1 was"),
    "oversized": (frames_of(HELLO)[0] + HEADER.pack(b"uR", 3, 2, MAX_BODY + 1, 1), "too large"),
    "other version": (frames_of(HELLO)[0].replace(b"[1,1]", b"[8,9]"), "versions 8 to 9, and this one"),
    "a kind of tomorrow": (frames_of(HELLO)[0] + HEADER.pack(b"uR", 77, 2, 0, 1) + b"{}", "kind 77"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("scheme", ["unix", "tcp"])
def test_bad_peers_are_told_why(scheme: str, wrong: str, tmp_path: Path) -> None:
    data, reason = WRONG[wrong]

    async def test() -> None:
        async with listening(place_of(scheme, tmp_path)) as standby:
            raw = Raw(standby.address)
            await raw.send(data)
            assert reason in await raw.reason()
            # In its first message, or behind it.
            before = wrong in ("garbage", "no hello", "other version")
            assert reason in await (standby.refused if before else standby.ended).get()
            await serves(standby)

    run(test)


@pytest.mark.parametrize("data", [b"", b"u", frames_of(HELLO)[0][:-1], b"uR\0\1"], ids=range(4))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_peer_that_says_no_hello_holds_nobody_up(
    scheme: str, data: bytes, tmp_path: Path, pair: tuple[Credentials, Credentials],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    begun = b"\x16\x03\x01\x02"[: len(data)] if scheme == "tls" else data

    async def test() -> None:
        async with listening(place_of(scheme, tmp_path), pair[1]) as standby:
            silent = Raw(standby.address)
            await silent.send(begun)
            await serves(standby, pair[0])
            assert standby.refused.empty()
            for module in (socket_channel, listener):  # from now on
                monkeypatch.setattr(module, "HELLO_SECONDS", 0.02)
            late = Raw(standby.address)
            await late.send(begun)
            await late.read_all()
            late.socket.close()
            assert "within 0.02 s" in await standby.refused.get()
            silent.socket.close()

    run(test)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_of_many_that_say_nothing_the_oldest_goes(
    scheme: str, tmp_path: Path, pair: tuple[Credentials, Credentials], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MOST_UNKNOWN", 3)

    async def test() -> None:
        async with listening(place_of(scheme, tmp_path), pair[1]) as standby:
            silent = [Raw(standby.address) for _ in range(4)]
            assert await silent[0].read_all() == b""
            await serves(standby, pair[0])
            for raw in silent:
                raw.socket.close()

    run(test)
