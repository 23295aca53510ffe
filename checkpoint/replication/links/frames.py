"""Messages as bytes of a link, without I/O.

A frame is a header (`HEADER`), a JSON object, and a body. The header has two bytes that each frame begins
with, the kind, the lengths of both parts, and the number of the frame in its direction, from 0 on.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import zstandard

from checkpoint import fast_json
from checkpoint.errors import LinkError

PROTOCOL = (1, 1)
"""The lowest and the highest version that we speak."""
MAX_META = 64 << 10
"""Bytes of a message's JSON."""
MAX_BODY = 1 << 20
"""Bytes of a message's body, before and after compression."""
HEADER = struct.Struct("!2sHIIQ")
MAGIC = b"uR"
_STAGE = 2 * MAX_META
_LEVEL = 1
"""Of zstd: a link is to be fast, and images have compressed contents already."""


class Kind(enum.Enum):
    """What a message says; `PART` alone has a body."""

    HELLO = 1
    BEGIN = 2
    PART = 3
    END = 4
    ACK = 5
    BEAT = 6
    FINAL = 7
    READY = 8
    GO = 9
    TAKEN = 10
    ASK = 11
    BYE = 12
    REFUSE = 13


_KINDS = {kind.value: kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Message:
    """One message. With `zstd` true in `meta` the body is compressed on its way, not in here."""

    kind: Kind
    meta: Mapping[str, Any] = field(default_factory=dict)
    body: bytes | memoryview = b""


def agree(protocol: object) -> int:
    """The highest version that the other end has as well, by the `protocol` of its HELLO.

    Raises:
        LinkError: there is none.
    """
    match protocol:
        case [int(low), int(high)] if 0 < low <= high:
            version = min(high, PROTOCOL[1])
            if version < max(low, PROTOCOL[0]):
                raise LinkError(
                    f"the other end speaks the protocol's {_versions(low, high)}, and this one "
                    f"{_versions(*PROTOCOL)}: install the same version of uffdtrack at both"
                )
            return version
    raise LinkError("the other end does not say which versions of the protocol it speaks")


def _versions(low: int, high: int) -> str:
    return f"version {low}" if low == high else f"versions {low} to {high}"


class Encoder:
    """Makes the frames of one direction of a link."""

    def __init__(self) -> None:
        self._sequence = 0
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)

    def encode(self, message: Message) -> list[bytes | memoryview]:
        """Buffers that make the frame; the body is not copied.

        Raises:
            LinkError: the message is too large.
        """
        meta, body = message.meta, message.body
        if message.kind is Kind.HELLO:
            meta = {**meta, "protocol": PROTOCOL}
        size = len(body)
        if size and meta.get("zstd"):
            body = self._compressor.compress(body)
            if len(body) >= size:
                meta, body = {**meta, "zstd": False}, message.body
        text = fast_json.encode(meta)
        if size > MAX_BODY or len(text) > MAX_META or (size and message.kind is not Kind.PART):
            raise LinkError(f"a {message.kind.name} of {len(text)} and {size} bytes fits in no frame")
        head = HEADER.pack(MAGIC, message.kind.value, len(text), len(body), self._sequence)
        self._sequence += 1
        return [head + text, body] if size else [head + text]


class Decoder:
    """Takes the bytes of one direction of a link, in pieces of any size, and gives the messages.

    Its memory is bounded: lengths are checked before anything is allocated.

    Attributes:
        version: of the protocol; 0 before the other end's HELLO.
        error: what was malformed. Nothing is decoded after that.
    """

    def __init__(self) -> None:
        self.version = 0
        self.error: LinkError | None = None
        self._sequence = 0
        self._stage = memoryview(bytearray(_STAGE))
        self._begin = self._end = 0  # what of it is not decoded
        self._head: tuple[Kind, int, int] | None = None
        self._meta: dict[str, Any] = {}
        self._body: memoryview | None = None  # is being filled
        self._filled = 0

    def feed(self, data: bytes | memoryview) -> list[Message]:
        """Decode some bytes.

        Returns:
            The messages that are whole now.

        Raises:
            LinkError: they are malformed. Messages before that are returned first, by this call; the next
                one raises.
        """
        found: list[Message] = []
        left = memoryview(data)
        while left:
            room = self.room()
            n = min(len(room), len(left))
            room[:n] = left[:n]
            left = left[n:]
            found += self.filled(n)
            if self.error:
                break
        if self.error and not found:
            raise self.error
        return found

    def room(self) -> memoryview:
        """Where the next bytes have to go; call `filled` then. Large bodies are not copied that way."""
        if self._body is not None:
            return self._body[self._filled :]
        return self._stage[self._end :]

    def filled(self, n: int) -> list[Message]:
        """The messages that are whole after n more bytes; `error` says whether what follows is malformed."""
        found: list[Message] = []
        if self._body is not None:
            self._filled += n
        else:
            self._end += n
        try:
            while not self.error and (message := self._next()):
                found.append(message)
        except LinkError as error:
            self.error = error
        if self._begin:
            rest = self._end - self._begin
            self._stage[:rest] = self._stage[self._begin : self._end]
            self._begin, self._end = 0, rest
        return found

    def _take(self, n: int) -> memoryview:
        """The next n bytes that are staged."""
        taken = self._stage[self._begin : self._begin + n]
        self._begin += n
        return taken

    def _next(self) -> Message | None:
        if self._body is None:
            if not self._head:
                if self._end - self._begin < HEADER.size:
                    return None
                self._head = self._checked_head(*HEADER.unpack(self._take(HEADER.size)))
            _, of_meta, of_body = self._head
            if self._end - self._begin < of_meta:
                return None
            self._meta = _object(self._take(of_meta))
            self._body = memoryview(bytearray(of_body))
            self._filled = min(of_body, self._end - self._begin)
            self._body[: self._filled] = self._take(self._filled)
        if self._filled < len(self._body):
            return None
        assert self._head
        kind, meta, body = self._head[0], self._meta, self._body
        self._head = self._body = None
        if meta.get("zstd") and body:
            return Message(kind, meta, _decompressed(body))
        if kind is Kind.HELLO:
            self.version = agree(meta.get("protocol"))
        return Message(kind, meta, body.toreadonly() if body else b"")

    def _checked_head(
        self, magic: bytes, number: int, of_meta: int, of_body: int, sequence: int
    ) -> tuple[Kind, int, int]:
        kind = _KINDS.get(number)
        if magic != MAGIC:
            raise LinkError("what came is no frame of uffdtrack's: is that address the right one?")
        if sequence != self._sequence:
            raise LinkError(
                f"frame {sequence} came where {self._sequence} was due: some were lost or repeated"
            )
        if not kind:
            raise LinkError(f"a message came of kind {number}, which is not known here")
        if of_meta > MAX_META or of_body > (MAX_BODY if kind is Kind.PART else 0):
            raise LinkError(f"a {kind.name} of {of_meta} and {of_body} bytes came, which is too large")
        if (kind is Kind.HELLO) != (sequence == 0) and kind is not Kind.REFUSE:
            raise LinkError(f"a {kind.name} came as message {sequence}, and HELLO is the first")
        self._sequence += 1
        return kind, of_meta, of_body


def _object(text: memoryview) -> dict[str, Any]:
    try:
        found = fast_json.decode(text)
    except ValueError as error:
        raise LinkError(f"a message's JSON is malformed: {error}") from error
    if not isinstance(found, dict):
        raise LinkError("a message's JSON is no object")
    return found


def _decompressed(body: memoryview) -> bytes:
    try:
        size = zstandard.frame_content_size(body)
        if not 0 <= size <= MAX_BODY:
            raise LinkError(f"a body decompresses to {size} bytes, which is too large" if size > 0 else
                            "a body does not say to how many bytes it decompresses")  # fmt: skip
        return zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise LinkError(f"a body cannot be decompressed: {error}") from error
