"""What both ends of a link do with a socket: its address, its options, TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

from checkpoint.errors import LinkError
from checkpoint.replication.links.address import Address, is_loopback
from checkpoint.replication.links.credentials import name_in
from checkpoint.replication.links.local import credentials_of
from checkpoint.replication.links.socket_channel import SocketChannel, printable
from checkpoint.replication.links.wire import BUFFER, Wire
from uffdtrack.errors import InvalidInputError

DEAD_AFTER = 10
"""Seconds after which the kernel gives up a TCP connection whose other end acknowledges nothing."""
_PROBE_AFTER, _PROBES = 5, 5


async def places(address: Address, insecure: bool) -> list[Any]:
    """What getaddrinfo(3) finds.

    Raises:
        OSError: it finds nothing.
        InvalidInputError: TCP to another host without TLS, and not insecure.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    places = [str(place[0]) for *_, place in found]
    if address.scheme == "tcp" and not insecure and not all(map(is_loopback, places)):
        raise InvalidInputError(
            f"{address} is not this host, and TCP without TLS shows and trusts everything: use tls://, or "
            "--insecure if that network is yours alone"
        )
    return found


async def secured(wire: Wire, context: ssl.SSLContext, host: str | None, peer: str) -> SocketChannel:
    """Raises: OSError: the other end has no certificate that we accept, or does not accept ours."""
    try:
        await wire.secure(context, host)
        assert isinstance(wire.socket, ssl.SSLSocket)
        name = name_in(wire.socket.getpeercert())
        if not name:
            raise LinkError(f"{peer} has a certificate that was not made by `uffdtrack keys`")
        return SocketChannel(wire, f"{printable(name)} at {peer}")
    except BaseException:
        wire.close()
        raise


def tune(connection: socket.socket) -> None:
    if connection.family == socket.AF_UNIX:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, _PROBE_AFTER),
        (socket.TCP_KEEPINTVL, 1),
        (socket.TCP_KEEPCNT, _PROBES),
        (socket.TCP_USER_TIMEOUT, DEAD_AFTER * 1000),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def name_of(connection: socket.socket) -> str:
    """Of who has connected, for people."""
    if connection.family == socket.AF_UNIX:
        return f"process {credentials_of(connection)[0]}"
    try:
        host, port, *_ = connection.getpeername()
    except OSError:
        return "a host that has gone"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
