"""Streams that a server is just making, when several hosts come at the same time.

A server of 2.9 dies of some requests then (a panic of its own), with all that it keeps for others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest

from checkpoint.replication.broker.nats_connection import NatsConnection, NotNowError, until_done
from checkpoint.replication.broker.stream import Stream
from tests.replication.brokers import run
from tests.replication.servers import Server

NAMES = 60
MIB = 1 << 20


def test_a_server_survives_whoever_looks_and_makes(own_server: Server) -> None:
    """Without care in `last` it is dead within ten names."""

    async def main() -> None:
        connections = [await NatsConnection.open(own_server.url) for _ in range(5)]
        for n in range(NAMES):
            made = asyncio.Event()

            async def look(connection: NatsConnection, name: str, made: asyncio.Event = made) -> None:
                stream = Stream(connection, name)
                while not made.is_set():
                    with suppress(NotNowError):
                        assert await stream.last() is None

            async def make(connection: NatsConnection, name: str, size: int) -> int:
                stream = Stream(connection, name)
                return await until_done(lambda: stream.create(size), connection.url)

            name = f"making-{n}"
            looking = [asyncio.create_task(look(one, name)) for one in connections[2:]]
            sizes = await asyncio.gather(
                *(make(one, name, (64 + i) * MIB) for i, one in enumerate(connections[:2]))
            )
            made.set()
            await asyncio.gather(*looking)
            assert not own_server.ended(), (own_server.root / "log").read_text()
            assert min(sizes) >= 64 * MIB and max(sizes) >= 65 * MIB
            for stream in (f"uffdtrack-{name}", f"uffdtrack-{name}-parts"):
                await connections[0].api(f"STREAM.DELETE.{stream}")
        for connection in connections:
            await connection.close()

    run(main())


class Making(NatsConnection):
    """To a server that has said that there is the stream, and is not done with it."""

    def __init__(self) -> None:
        super().__init__("nats://127.0.0.1:1")
        self.asked: list[str] = []

    async def api(self, what: str, message: Mapping[str, Any] | None = None) -> dict[str, Any]:
        self.asked.append(what.rpartition(".")[0])
        assert self.asked[-1] == "STREAM.INFO"
        return {"config": {"max_bytes": 1, "allow_direct": True, "num_replicas": 1}, "state": {"last_seq": 0}}

    async def request(self, subject: str, *_: Any, **__: Any) -> Any:
        self.asked.append(subject.rpartition(".")[0])
        raise NotNowError("no responders")


def test_what_is_being_made_is_not_asked_for() -> None:
    connection = Making()
    stream = Stream(connection, "x")
    assert run(stream.last()) is None
    with pytest.raises(NotNowError):
        run(stream.create(2))
    assert connection.asked == ["STREAM.INFO", "STREAM.INFO", "$JS.API.DIRECT.GET"]
