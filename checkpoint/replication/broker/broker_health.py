"""What a NATS server can do for replication, for `doctor`: each thing is tried."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from checkpoint.errors import LinkError
from checkpoint.health import Check
from checkpoint.replication.broker.lease import Record
from checkpoint.replication.broker.nats_connection import (
    NatsConnection,
    NotNowError,
    WrongSequenceError,
    until_done,
)
from checkpoint.replication.broker.stream import Stream
from checkpoint.replication.links.address import Address, is_loopback
from uffdtrack.errors import StorageError, UffdtrackError

_SMALL_PAYLOAD = 256 << 10
_WRITERS = 8


async def broker_checks(address: Address) -> list[Check]:
    """Run every check of a server; it makes two streams of its own, and removes them."""
    try:
        connection = await NatsConnection.open(f"nats://{address.host}:{address.port}")
    except UffdtrackError as error:
        return [Check("NATS server", "fail", str(error), "nats-server --jetstream, at that address")]
    async with connection:
        found = [_server(connection), _access(connection, address.host), _messages(connection)]
        try:
            limits = await until_done(lambda: connection.api("INFO"), connection.url)
            found.append(_limits(limits))
            if found[-1].status != "fail":
                async with _made(connection) as stream:
                    found += [await _writers(stream), await _replicas(stream), await _features(stream)]
            found.append(await _sync(connection))
        except (LinkError, StorageError, NotNowError) as error:
            found.append(Check("JetStream", "fail", str(error), "see the server's log"))
        return found


def _server(connection: NatsConnection) -> Check:
    info = connection.info
    cluster = f", of the cluster {info['cluster']}" if info.get("cluster") else ""
    return Check("NATS server", "pass", f"version {info.get('version')}{cluster}")


def _access(connection: NatsConnection, host: str) -> Check:
    info = connection.info
    if info.get("auth_required") and (info.get("tls_required") or _is_here(host)):
        return Check("NATS access", "pass", "only for those whom it knows")
    missing = "TLS" if info.get("auth_required") else "a password"
    if _is_here(host):
        return Check("NATS access", "warn", f"without {missing}: any user of this host is let in",
                     "users in its configuration; we are NATS_USER with NATS_PASSWORD")  # fmt: skip
    return Check(
        "NATS access", "warn", f"without {missing}: who reaches it can read memory, and write epochs",
        "authorization and tls in its configuration",
    )  # fmt: skip


def _is_here(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return is_loopback(host)
    return host == "localhost"


def _messages(connection: NatsConnection) -> Check:
    most = connection.max_payload
    if most < _SMALL_PAYLOAD:
        return Check("NATS messages", "warn", f"of up to {most} bytes: an epoch is many parts",
                     "max_payload: 1MB in its configuration")  # fmt: skip
    return Check("NATS messages", "pass", f"of up to {most} bytes; what is larger is cut into parts")


def _limits(info: dict[str, Any]) -> Check:
    if "error" in info:
        return Check("JetStream", "fail", info["error"].get("description", "none"), "nats-server --jetstream")
    most = info.get("limits", {}).get("max_storage", -1)
    used = info.get("reserved_storage") or info.get("storage", 0)
    of = f" of {most}" if most >= 0 else ""
    return Check("JetStream", "pass", f"{used}{of} bytes are used by {info.get('streams', 0)} streams")


@asynccontextmanager
async def _made(connection: NatsConnection) -> AsyncIterator[Stream]:
    stream = Stream(connection, f"doctor-{secrets.token_hex(4)}")
    try:
        await until_done(lambda: stream.create(1 << 20), connection.url)
        yield stream
    finally:
        for name in (stream.records, stream.parts):
            with contextlib.suppress(NotNowError, LinkError):
                await connection.api(f"STREAM.DELETE.{name}")


async def _writers(stream: Stream) -> Check:
    async def writes(serial: int) -> bool:
        try:
            await stream.put(Record(1, "doctor", serial, 1.0), None, b"", 0)
        except (WrongSequenceError, NotNowError):
            return False
        return True

    stored = sum(await asyncio.gather(*map(writes, range(_WRITERS))))
    if stored == 1:
        return Check("JetStream lease", "pass", f"of {_WRITERS} records at the same time, one was stored")
    return Check(
        "JetStream lease", "fail", f"of {_WRITERS} records at the same time, {stored} were stored: two could "
        "be active", "another version of the server",
    )  # fmt: skip


async def _replicas(stream: Stream) -> Check:
    info = await until_done(lambda: stream.connection.api(f"STREAM.INFO.{stream.records}"), "")
    replicas = info.get("config", {}).get("num_replicas", 1)
    if replicas > 1:
        return Check("JetStream replicas", "pass", f"{replicas}: any one server may fail")
    return Check("JetStream replicas", "warn", "1: without this server there is no lease, and so no output",
                 "a cluster of three servers")  # fmt: skip


async def _features(stream: Stream) -> Check:
    """By what the server makes of a stream's settings: an old one leaves out what it does not know."""
    connection, wanted = stream.connection, ("allow_msg_ttl", "allow_atomic")
    await connection.api(f"STREAM.DELETE.{stream.parts}")
    config = {"name": stream.parts, "subjects": [f"uffdtrack.{stream.name}.part"], "storage": "file"}
    made = await connection.api(f"STREAM.CREATE.{stream.parts}", {**config, **dict.fromkeys(wanted, True)})
    names = {"allow_msg_ttl": "lifetimes of messages", "allow_atomic": "atomic batches"}
    has = [f"{names[one]}: {'yes' if made.get('config', {}).get(one) else 'no'}" for one in wanted]
    return Check("JetStream features", "pass", f"{', '.join(has)}; neither is needed")


async def _sync(connection: NatsConnection) -> Check:
    """Whether it syncs before it acknowledges: only the system account is told."""
    name, fix = "JetStream sync", "sync_interval: always in the section jetstream of its configuration"
    loses = (
        "it acknowledges what it has not synced: a power failure loses up to two minutes, perhaps the lease"
    )
    try:
        answer = await connection.request("$SYS.REQ.SERVER.PING.JSZ", b'{"config":true}')
        config = json.loads(answer.data)["data"]["config"]
    except (NotNowError, ValueError, KeyError, TypeError):
        return Check(
            name, "warn", f"not shown to this user; if it is not set, {loses}",
            f"{fix} (a server of 2.10 or newer); sync_always in /jsz?config=true of its monitoring port "
            "says whether it is set",
        )  # fmt: skip
    if config.get("sync_always"):
        return Check(name, "pass", "it syncs before it acknowledges")
    return Check(name, "warn", loses, f"{fix}, which takes a server of 2.10 or newer")
