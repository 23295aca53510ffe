"""A channel over a connected socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import time
from collections import deque

from checkpoint.errors import LinkError
from checkpoint.replication.links.frames import Decoder, Encoder, Kind, Message
from checkpoint.replication.links.local import credentials_of, pidfd_of
from checkpoint.replication.links.wire import Wire

HELLO_SECONDS = 10.0
"""For so long a peer may take for its HELLO; one that listens may take it for TLS before."""
CLOSE_SECONDS = 1.0
"""For so long a close waits until the other end has read all."""


class SocketChannel:
    """A `Channel` over a connected socket."""

    def __init__(self, wire: Wire, peer: str) -> None:
        self.peer = peer
        self.peer_pid: int | None = None
        self.peer_pidfd: int | None = None
        self.heard_at = 0.0
        if wire.socket.family == socket.AF_UNIX:
            self.peer_pidfd = pidfd_of(wire.socket)
            self.peer_pid = credentials_of(wire.socket)[0] or None  # 0: it is in another PID namespace
        self._wire = wire
        self._encoder = Encoder()
        self._decoder = Decoder()
        self._received: deque[Message] = deque()
        self._sending = asyncio.Lock()
        self._closed = False
        self._broken = asyncio.Event()
        self._hello_by = asyncio.get_running_loop().time() + HELLO_SECONDS

    async def send(self, *messages: Message) -> None:
        async with self._sending:
            if self._closed:
                raise LinkError(f"the link to {self.peer} was closed")
            buffers = [one for message in messages for one in self._encoder.encode(message)]
            try:
                await self._wire.write(buffers)
            except OSError as error:
                self._break()
                raise self._lost(error) from error
            except BaseException:  # a part of a message may have been sent
                self._break()
                raise

    async def receive(self) -> Message:
        if not self._received:
            limit = asyncio.timeout_at(None if self._decoder.version else self._hello_by)
            try:
                async with limit:
                    await self._read()
            except OSError as error:
                if isinstance(error, TimeoutError) and limit.expired():
                    late = LinkError(f"no HELLO came within {HELLO_SECONDS:g} s")
                    raise await self._refused(late) from error
                self._break()
                raise self._lost(error) from error
            except LinkError as error:
                raise await self._refused(error) from error
        message = self._received.popleft()
        if message.kind is Kind.REFUSE:
            self._break()
            raise LinkError(f"{self.peer} refuses: {printable(message.meta.get('reason'))}")
        return message

    def put_back(self, message: Message) -> None:
        """`receive` gives it again."""
        self._received.appendleft(message)

    async def _read(self) -> None:
        while not self._received:
            if self._decoder.error:
                raise self._decoder.error
            n = await self._wire.read(self._decoder.room())
            if not n:
                raise ConnectionResetError(errno.ECONNRESET, "it has closed the link")
            self.heard_at = time.monotonic()
            self._received.extend(self._decoder.filled(n))

    async def _refused(self, error: LinkError) -> LinkError:
        """Tell the other end what was wrong with what it has sent."""
        if self._closed:
            return error
        await self.close(str(error))
        return LinkError(f"{self.peer}: {error}")

    def _lost(self, error: OSError) -> LinkError:
        return LinkError(f"the link to {self.peer} is lost: {text_of(error)}")

    def _break(self) -> None:
        """The socket is of no use any more."""
        self._closed = True
        self._wire.close()
        self._broken.set()
        if self.peer_pidfd is not None:
            os.close(self.peer_pidfd)
            self.peer_pidfd = None

    async def close(self, reason: str = "") -> None:
        if self._closed:
            await self._broken.wait()  # who listens closes the socket behind this
            return
        self._closed = True
        self._wire.interrupt()
        try:
            with contextlib.suppress(OSError, LinkError, ValueError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    async with self._sending:
                        if reason:
                            refusal = Message(Kind.REFUSE, {"reason": reason[:1000]})
                            await self._wire.write(self._encoder.encode(refusal))
                    await self._wire.finish()
        finally:
            self._break()


def printable(text: object) -> str:
    """What a peer says, for people: of bounded length, and without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:1000])


_PLAIN = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "PACKET_LENGTH_TOO_LONG")
_UNWELCOME = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED")
"""Of OpenSSL's names."""


def text_of(error: OSError) -> str:
    """What went wrong, as a part of a sentence."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        if reason in _PLAIN:
            return "it does not speak TLS"
        if "ALERT" in reason and any(word in reason for word in _UNWELCOME):
            return (
                f"it does not accept our certificate ({reason.split('ALERT_')[-1].lower().replace('_', ' ')})"
            )
        return f"TLS: {(reason or str(error)).lower().replace('_', ' ')}"
    return error.strerror or str(error) or type(error).__name__
