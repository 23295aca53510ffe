"""A connected socket in asyncio that copies little: plain, or with TLS.

asyncio's transports copy what the kernel does not take at once, and with TLS copy all of it several times.
Here buffers go to the socket, and from it, as they are: each call is tried first, and the loop is asked only
when it would block; or, for a read, when the last one has taken all that was there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TypeVar

from checkpoint.errors import LinkError

T = TypeVar("T")
BUFFER = 4 << 20
"""Bytes that the kernel may hold in each direction, where we may ask for so much."""
_AT_ONCE = 64
"""Buffers of one sendmsg(2)."""
_RECORD = 16 << 10
"""Bytes of a record of TLS."""
_UNTIL_OTHERS = 1 << 20
"""After so many bytes other tasks of the loop have their turn."""


class Wire:
    """A socket that is connected. Not for several tasks that read, or several that write."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[bool, list[asyncio.Future[None]]] = {False: [], True: []}
        self._watched: set[bool] = set()  # what the loop looks at: reading, writing (True)
        self._closed = self._is_drained = False
        self._moved = 0

    async def secure(self, context: ssl.SSLContext, host: str | None) -> None:
        """Speak TLS from now on; `host`: who the server has to be, None: we are the server."""
        plain = self.socket
        wrapped = context.wrap_socket(
            plain, server_side=host is None, server_hostname=host, do_handshake_on_connect=False
        )
        self.socket = wrapped
        await self._do(wrapped.do_handshake, write=False)

    async def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Send all, and wait as long as the other end is slow. Raises: OSError, LinkError (it was closed)."""
        if isinstance(self.socket, ssl.SSLSocket):
            await self._write_records(self.socket, buffers)
            return
        left = [memoryview(one) for one in buffers]
        while left:
            sent = await self._do(lambda: self.socket.sendmsg(left[:_AT_ONCE]), write=True)
            await self._count(sent)
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]

    async def _write_records(self, to: ssl.SSLSocket, buffers: Sequence[bytes | memoryview]) -> None:
        small: list[bytes | memoryview] = []
        parts: list[memoryview] = []
        for one in buffers:  # several small ones are one record
            if sum(map(len, small)) + len(one) > _RECORD and small:
                parts.append(memoryview(b"".join(small)))
                small = []
            if len(one) > _RECORD:
                parts.append(memoryview(one))
            else:
                small.append(one)
        if small:
            parts.append(memoryview(b"".join(small)))
        for part in parts:
            while part:
                sent = await self._do(lambda part=part: to.send(part), write=True)  # type: ignore[misc]
                await self._count(sent)
                part = part[sent:]

    async def read(self, room: memoryview) -> int:
        """Wait for bytes; 0: the other end sends no more. Raises: OSError, LinkError (it was closed)."""
        if self._is_drained and not self._closed:
            await self._wait(write=False)
        n = await self._do(lambda: self.socket.recv_into(room), write=False)
        self._is_drained = n < len(room) and not isinstance(self.socket, ssl.SSLSocket)
        await self._count(n)
        return n

    async def finish(self) -> None:
        """Send no more, and wait until the other end has read all, and has closed."""
        if isinstance(self.socket, ssl.SSLSocket):
            # It says that we end, and looks for the other end's word, before which there may be messages.
            with contextlib.suppress(ssl.SSLError):
                self.socket.unwrap()
        self.socket.shutdown(socket.SHUT_WR)
        while await self._do(lambda: os.read(self.socket.fileno(), 1 << 16), write=False):
            pass

    def interrupt(self) -> None:
        """Who waits gets a LinkError."""
        for waiting in self._waiting.values():
            for future in waiting:
                if not future.done():
                    future.set_exception(LinkError("the link was closed"))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.interrupt()
            self._loop.remove_reader(self.socket)
            self._loop.remove_writer(self.socket)
            self.socket.close()

    async def _count(self, n: int) -> None:
        self._moved += n
        if self._moved > _UNTIL_OTHERS:
            self._moved = 0
            await asyncio.sleep(0)

    async def _do(self, call: Callable[[], T], write: bool) -> T:
        """What a call gives that may have to wait for the socket."""
        while not self._closed:
            try:
                return call()
            except ssl.SSLWantReadError:
                write = False
            except ssl.SSLWantWriteError:
                write = True
            except (BlockingIOError, InterruptedError):
                pass
            await self._wait(write)
        raise LinkError("the link was closed")

    async def _wait(self, write: bool) -> None:
        self._moved = 0
        if write not in self._watched:
            self._watched.add(write)
            add = self._loop.add_writer if write else self._loop.add_reader
            add(self.socket, self._wake, write)
        waiting = self._waiting[write]
        future = self._loop.create_future()
        waiting.append(future)
        try:
            await future
        finally:
            waiting.remove(future)

    def _wake(self, write: bool) -> None:
        """The socket is watched on, for who waits next: until it is ready and nobody waits."""
        if not self._waiting[write]:
            self._watched.remove(write)
            remove = self._loop.remove_writer if write else self._loop.remove_reader
            remove(self.socket)
        for future in self._waiting[write]:
            if not future.done():
                future.set_result(None)
