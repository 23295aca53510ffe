"""What a broker keeps under a name: two JetStream streams, one of records and one of parts.

A record has the lease (lease.py) and, if it carries messages, names the parts that they are in; the rest of
them is its body. The stream of records has nothing else in it, since only Nats-Expected-Last-Sequence, which
counts a whole stream, lets exactly one of several writers through on all servers: with the header for one
subject, a cluster of 2.9 stores all that come at the same time. Its records have consecutive numbers. The
server sends each that it has stored on to who listens (republish), and readers fetch what they have missed.

Of both streams the server drops the oldest when they have their size.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from checkpoint.errors import LinkError
from checkpoint.replication.broker.lease import Record
from checkpoint.replication.broker.nats_connection import NatsConnection, NotNowError
from uffdtrack.errors import StorageError

if TYPE_CHECKING:
    from nats.aio.msg import Msg

LEASE, BATCH = "Uffdtrack-Lease", "Uffdtrack-Batch"
_EXPECTED, _SEQUENCE = "Nats-Expected-Last-Sequence", "Nats-Sequence"
_NOT_FOUND = "404"
_NO_SUCH_STREAM, _NO_ROOM = 10059, 10047
_LEAST_BYTES = 32 << 20
"""A stream that is smaller is of no use for memory."""
_HEADERS = 60_000
"""Bytes of headers that a server takes are 64 KiB."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages that a record carries.

    Attributes:
        link: for whom they are.
        parts: first number and count of parts that follow each other, in the order of their bytes.
        size, digest: of all bytes: of the parts, and then of the record's body. BLAKE3, in hexadecimal.
    """

    link: str
    parts: tuple[tuple[int, int], ...]
    size: int
    digest: str

    def text(self) -> str:
        return json.dumps([self.link, self.parts, self.size, self.digest], separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Batch:
        """Raises: LinkError: it is malformed."""
        try:
            link, parts, size, digest = json.loads(text)
            return cls(str(link), tuple((int(first), int(n)) for first, n in parts), int(size), str(digest))
        except (ValueError, TypeError) as error:
            raise LinkError(f"a record of the broker's is malformed: {error}") from error


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored record."""

    sequence: int
    record: Record
    batch: Batch | None
    body: bytes

    @classmethod
    def of(cls, sequence: str, headers: Mapping[str, str] | None, body: bytes) -> Entry:
        """Raises: LinkError: it is no record of ours."""
        if not headers or LEASE not in headers or not sequence.isdecimal():
            raise LinkError("what the broker has under that name is not uffdtrack's: choose another name")
        batch = Batch.parse(headers[BATCH]) if BATCH in headers else None
        return cls(int(sequence), Record.parse(headers[LEASE]), batch, body)


class Stream:
    """The records and parts of a name, and its subjects for what is not kept."""

    def __init__(self, connection: NatsConnection, name: str) -> None:
        self.connection = connection
        self.name = name
        self.records, self.parts = f"uffdtrack-{name}", f"uffdtrack-{name}-parts"
        self._most = 0  # bytes that were asked for
        self._record, self._part = f"uffdtrack.{name}.record", f"uffdtrack.{name}.part"

    def live(self, what: str) -> str:
        """The subject of what is not kept: "records", "beat", "link", "up.ID", "down.ID"."""
        return f"uffdtrack-live.{self.name}.{what}"

    async def create(self, max_bytes: int) -> int:
        """Make the streams, with three replicas in a cluster that has so many servers, or find them made.

        Args:
            max_bytes: of each of the two; less of both, if the server has not so much room.

        Returns:
            How many bytes the server keeps of each, at least.

        Raises:
            LinkError: the server cannot.
            StorageError: it has next to no room.
            NotNowError: try again.
        """
        self._most = max_bytes
        while True:
            try:
                return await self._both(max_bytes)
            except StorageError:
                if max_bytes < 2 * _LEAST_BYTES:
                    raise
                max_bytes //= 2

    async def _both(self, max_bytes: int) -> int:
        """Make them of one size, or none. Raises: as `create`."""
        parts, is_new = await self._made(self.parts, self._part, max_bytes)
        try:
            republish = {"src": self._record, "dest": self.live("records")}
            most = min(parts, max_bytes)
            records, _ = await self._made(self.records, self._record, most, republish=republish)
        except StorageError:
            if is_new:
                await self.connection.api(f"STREAM.DELETE.{self.parts}")
            raise
        return min(parts, records)

    async def create_again(self) -> None:
        """After `create`: make the streams again, if the server is back without them. Raises: as `create`."""
        if self._most:
            await self.create(self._most)

    async def _made(self, stream: str, subject: str, max_bytes: int, **more: Any) -> tuple[int, bool]:
        """Returns: its size, and whether it was made now."""
        config: dict[str, Any] = {
            "name": stream, "subjects": [subject], "storage": "file", "retention": "limits",
            "discard": "old", "max_bytes": max_bytes, "allow_direct": True, **more,
        }  # fmt: skip
        found = await self.connection.api(f"STREAM.INFO.{stream}")
        if "error" not in found:
            if found["config"]["max_bytes"] < max_bytes:
                if found["config"].get("allow_direct"):  # see `last`: who answers to this is made
                    await self._get(stream, {"last_by_subj": subject})
                larger = {**config, "num_replicas": found["config"]["num_replicas"]}
                made = await self.connection.api(f"STREAM.UPDATE.{stream}", larger)
                found = found if "error" in made else made
            return int(found["config"]["max_bytes"]), False
        if found["error"].get("err_code") != _NO_SUCH_STREAM:
            _check(found)
        replicas = 3 if self.connection.info.get("cluster") else 1
        while True:
            made = await self.connection.api(f"STREAM.CREATE.{stream}", {**config, "num_replicas": replicas})
            if "error" not in made:
                return int(made["config"]["max_bytes"]), True
            if "error" not in await self.connection.api(f"STREAM.INFO.{stream}"):
                raise NotNowError("somebody else has just made the stream")
            if replicas > 1 and made["error"].get("err_code") != _NO_ROOM:
                replicas = 1
            else:
                _check(made)

    async def put(self, record: Record, batch: Batch | None, body: bytes, after: int) -> int:
        """Store a record as the one that follows number `after`.

        Returns:
            Its number.

        Raises:
            WrongSequenceError, StorageError, NotNowError, LinkError: see `NatsConnection.store`.
        """
        headers = {LEASE: record.text(), _EXPECTED: str(after)}
        if batch:
            headers[BATCH] = batch.text()
            if len(headers[BATCH]) > _HEADERS:
                raise StorageError("an epoch is in too many pieces for a record of the broker's")
        return await self.connection.store(self._record, body, headers)

    async def put_part(self, data: bytes) -> int:
        """Store a part. Raises: as `put`."""
        return await self.connection.store(self._part, data)

    async def last(self) -> Entry | None:
        """The last record, by the stream's leader; None: there is no record, or no stream.

        A server of 2.9 dies if it is asked for a message of a stream that it is just making; then that has
        no number yet.

        Raises:
            NotNowError, LinkError
        """
        found = await self._answered(f"STREAM.INFO.{self.records}")
        if not found or not found["state"]["last_seq"]:
            return None
        answer = await self._answered(f"STREAM.MSG.GET.{self.records}", {"last_by_subj": self._record})
        if not answer:
            return None
        message = answer["message"]
        headers = _headers(base64.b64decode(message.get("hdrs", "")))
        return Entry.of(str(message["seq"]), headers, base64.b64decode(message.get("data", "")))

    async def _answered(self, what: str, message: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """None: there is nothing. Raises: NotNowError, LinkError."""
        answer = await self.connection.api(what, message)
        if "error" in answer:
            if answer["error"].get("code") == 404:
                return None
            raise NotNowError(answer["error"].get("description", ""))
        return answer

    async def entry(self, sequence: int) -> Entry | None:
        """The first record from a number on; None: there is none yet. Raises: NotNowError, LinkError."""
        wanted = {"seq": sequence, "next_by_subj": self._record}
        found = await self._get(self.records, wanted)
        return self.republished(found) if found else None

    async def part(self, sequence: int) -> bytes | None:
        """A part; None: that server does not have it. Raises: NotNowError, LinkError."""
        found = await self._get(self.parts, {"seq": sequence})
        return found.data if found else None

    async def _get(self, stream: str, wanted: Mapping[str, Any]) -> Msg | None:
        found = await self.connection.request(f"$JS.API.DIRECT.GET.{stream}", json.dumps(wanted).encode())
        status = (found.headers or {}).get("Status")
        if status and status != _NOT_FOUND:
            raise NotNowError(f"status {status}")
        return None if status else found

    def republished(self, message: Msg) -> Entry:
        """A record as the server sends it. Raises: LinkError: it is none."""
        headers = message.headers or {}
        return Entry.of(headers.get(_SEQUENCE, ""), headers, message.data)

    async def listen(self, take: Callable[[Msg], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Get records as they are stored; some may be missed. Returns: what ends that."""
        return await self.connection.subscribe(self.live("records"), take)


def _headers(text: bytes) -> dict[str, str]:
    lines = text.decode("utf-8", "replace").split("\r\n")[1:]
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


def _check(answer: Mapping[str, Any]) -> None:
    error = answer.get("error")
    if not error:
        return
    text = error.get("description", "")
    if error.get("code") == 503 or "JetStream not" in text:
        raise LinkError(f"the NATS server has no JetStream ready: {text}; start it with --jetstream")
    if error.get("err_code") in (10023, _NO_ROOM, 10028) or "insufficient" in text:
        raise StorageError(f"the NATS server has not that much room: {text}")
    raise LinkError(f"the NATS server refuses the stream: {text}")
