"""Links over sockets: TLS, Unix sockets, plain TCP."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from pathlib import Path

from checkpoint.errors import LinkError
from checkpoint.replication.links.address import Address
from checkpoint.replication.links.credentials import Credentials
from checkpoint.replication.links.endpoint import places, secured, tune
from checkpoint.replication.links.listener import Accept, Listener
from checkpoint.replication.links.local import connect_local
from checkpoint.replication.links.socket_channel import SocketChannel, text_of
from checkpoint.replication.links.wire import Wire
from uffdtrack.errors import InvalidInputError, PermissionDeniedError

CONNECT_SECONDS = 10.0
"""For so long an attempt to connect may last."""


async def connect(
    address: Address, credentials: Credentials | None = None, insecure: bool = False
) -> SocketChannel:
    """One attempt to take up a link.

    Args:
        credentials: for TLS.
        insecure: plain TCP to another host is wanted.

    Raises:
        InvalidInputError: TLS without credentials; plain TCP to another host, and not insecure.
        PermissionDeniedError: we may not use that Unix socket.
        LinkError: nobody listens, or the other end has not the certificate that it should have.
    """
    if address.scheme == "unix":
        local = connect_local(Path(address.path))
        tune(local)
        return SocketChannel(Wire(local), str(address))
    _check_security(address, credentials)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            wire = Wire(await _connected(address, insecure))
            if credentials and address.scheme == "tls":
                return await secured(wire, credentials.client, address.host, str(address))
            return SocketChannel(wire, str(address))
    except TimeoutError as error:
        raise LinkError(f"{address} does not answer within {CONNECT_SECONDS:g} s") from error
    except OSError as error:
        raise LinkError(f"cannot connect to {address}: {text_of(error)}") from error


async def _connected(address: Address, insecure: bool) -> socket.socket:
    """Raises: OSError: none of the host's addresses takes the connection, or it has none."""
    loop = asyncio.get_running_loop()
    failure = OSError(errno.EADDRNOTAVAIL, "the host has no address")
    for family, kind, protocol, _, place in await places(address, insecure):
        made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
        try:
            tune(made)
            await loop.sock_connect(made, place)
            return made
        except OSError as error:
            made.close()
            failure = error
        except BaseException:
            made.close()
            raise
    raise failure


def _check_security(address: Address, credentials: Credentials | None) -> None:
    if address.scheme not in ("tls", "tcp"):
        raise InvalidInputError(f"{address} is no direct link: tls://, unix: and tcp:// are")
    if address.scheme == "tls" and not credentials:
        raise InvalidInputError(f"{address} needs a key: make a pair with `uffdtrack keys`, and give --tls")


async def listen(
    address: Address,
    credentials: Credentials | None,
    accept: Accept,
    refused: Callable[[LinkError], None] = lambda error: None,
    insecure: bool = False,
) -> Listener:
    """Take links at an address.

    Args:
        credentials: for TLS.
        accept: gets a channel whose other end has said HELLO, in a task of its own; the channel is closed
            when it returns.
        refused: is told of each connection that did not come so far, and of a LinkError out of `accept`.
        insecure: plain TCP that other hosts can reach is wanted.

    Raises:
        InvalidInputError: TLS without credentials, plain TCP for other hosts, or somebody listens there.
        PermissionDeniedError: we may not listen there.
        LinkError: we cannot.
    """
    if address.scheme != "unix":
        _check_security(address, credentials)
    context = credentials.server if credentials and address.scheme == "tls" else None
    listener = Listener(accept, refused, context)
    try:
        await listener.open(address, insecure)
    except PermissionError as error:
        await listener.close()
        raise PermissionDeniedError(f"may not listen at {address}: {error.strerror}") from error
    except OSError as error:
        await listener.close()
        if error.errno == errno.EADDRINUSE:
            raise InvalidInputError(f"a process listens at {address} already") from error
        raise LinkError(f"cannot listen at {address}: {text_of(error)}") from error
    return listener
