"""Takes connections: a task for each, so that none of them can hold up the others."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from checkpoint.errors import LinkError
from checkpoint.replication.links.address import Address
from checkpoint.replication.links.endpoint import name_of, places, secured, tune
from checkpoint.replication.links.local import LocalListener, check_user
from checkpoint.replication.links.socket_channel import HELLO_SECONDS, SocketChannel, text_of
from checkpoint.replication.links.wire import Wire
from uffdtrack.errors import PermissionDeniedError

MOST_UNKNOWN = 64
"""Connections that have not said HELLO yet; with more, the oldest is closed."""
_AGAIN_SECONDS = 0.1
"""After so long connections are taken again, if there were too many open files."""

Accept = Callable[[SocketChannel], Awaitable[None]]


class Listener:
    """Takes connections until `close`.

    Attributes:
        address: where it listens, with the port that the kernel chose if 0 was asked for.
    """

    def __init__(
        self, accept: Accept, refused: Callable[[LinkError], None], context: ssl.SSLContext | None
    ) -> None:
        """See `listen`, which makes one."""
        self._accept = accept
        self._refused = refused
        self._context = context
        self._local: LocalListener | None = None
        self._sockets: list[socket.socket] = []
        self._takers: list[asyncio.Task[None]] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._unknown: dict[asyncio.Task[None], None] = {}  # in the order in which they came
        self._new: dict[asyncio.Task[None], socket.socket] = {}  # whose tasks have not begun

    async def open(self, address: Address, insecure: bool) -> None:
        """Raises: OSError, UffdtrackError: we cannot listen there."""
        self.address = address
        if address.scheme == "unix":
            self._local = LocalListener(Path(address.path))
            self._sockets = [self._local.socket]
        else:
            await self._bind(address, insecure)
        self._takers = [asyncio.create_task(self._take_all(one)) for one in self._sockets]

    async def _bind(self, address: Address, insecure: bool) -> None:
        found = await places(address, insecure)
        for family, kind, protocol, _, place in found:
            made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
            self._sockets.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind((place[0], self.address.port, *place[2:]))
            made.listen(128)
            self.address = replace(address, port=made.getsockname()[1])

    async def close(self) -> None:
        """Listen no more, and end all tasks; their channels are closed."""
        tasks = [*self._takers, *self._serving]
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:  # whoever waits for us may wait no longer
            if self._local:
                self._local.close()
            for one in self._sockets:
                one.close()

    async def _take_all(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:  # too many open files, or the connection has gone
                self._refused(LinkError(f"cannot take a connection: {text_of(error)}"))
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            if len(self._unknown) >= MOST_UNKNOWN:
                next(iter(self._unknown)).cancel()
            task = asyncio.create_task(self._serve(connection))
            self._serving.add(task)
            self._unknown[task] = None
            self._new[task] = connection
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        self._unknown.pop(task, None)
        connection = self._new.pop(task, None)
        if connection:
            connection.close()  # the task has ended before it began

    async def _serve(self, connection: socket.socket) -> None:
        """From a connection to its end."""
        task = asyncio.current_task()
        assert task
        del self._new[task]  # its channel closes it from now on, which may take longer than this task
        try:
            channel = await self._greeted(Wire(connection))
            del self._unknown[task]
            try:
                await self._accept(channel)
            finally:
                await channel.close()
        except (LinkError, PermissionDeniedError) as error:
            self._refused(LinkError(str(error)))

    async def _greeted(self, wire: Wire) -> SocketChannel:
        """A channel whose other end has said HELLO, which `receive` gives.

        Raises:
            LinkError, PermissionDeniedError: it is nobody whom we know.
        """
        peer = name_of(wire.socket)
        try:
            tune(wire.socket)
            if self._local:
                check_user(wire.socket)
            if self._context:
                async with asyncio.timeout(HELLO_SECONDS):
                    channel = await secured(wire, self._context, None, peer)
            else:
                channel = SocketChannel(wire, peer)
        except TimeoutError as error:
            wire.close()
            raise LinkError(f"{peer} began no TLS within {HELLO_SECONDS:g} s") from error
        except OSError as error:
            wire.close()
            raise LinkError(f"{peer} is refused: {text_of(error)}") from error
        except BaseException:
            wire.close()
            raise
        try:
            channel.put_back(await channel.receive())
        except BaseException:
            await channel.close()
            raise
        return channel
