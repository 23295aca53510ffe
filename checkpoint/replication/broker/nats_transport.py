"""A socket of the client's library that is closed at once, even if the server has stopped reading."""

from __future__ import annotations

from urllib.parse import ParseResult

from nats.aio.transport import TcpTransport


class AbruptTransport(TcpTransport):
    """The library's own waits until all is sent, which a stopped server prevents, and so its reconnecting."""

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Also closes what an attempt has left that failed: a stopped server's kernel takes connections."""
        self.close()
        await super().connect(uri, buffer_size, connect_timeout)

    def close(self) -> None:
        """What was not sent is dropped; who has to know that it was, has asked for an answer."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    def __bool__(self) -> bool:
        """The library makes one of its own where this is false, as its own is before it has connected."""
        return True
