"""Where a VM's network device leads to: a TAP interface, or a pair of UDP ports."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from typing import Any

from uffdtrack.errors import InvalidInputError, PermissionDeniedError, UnsupportedError

TUN = "/dev/net/tun"
_IFREQ = struct.Struct("16sH22x")  # netdevice(7)
_TUNSETIFF, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x400454CA, 0x8913, 0x8914
_IFF_TAP, _IFF_NO_PI, _IFF_UP = 0x2, 0x1000, 0x1
_LATER = (errno.EAGAIN, errno.ENOBUFS)
_LOST = (errno.EINVAL, errno.EMSGSIZE, errno.ECONNREFUSED)
"""The wire is whole: it carries no such frame, or nobody is at its other end."""


class _Wire:
    """A descriptor that takes one packet with each write, and gives one with each read."""

    fd: int

    def send(self, packet: bytes) -> bool:
        for _ in range(2):  # ECONNREFUSED was about a packet before: this one was not sent
            try:
                os.write(self.fd, packet)
                return True
            except OSError as error:
                if error.errno in _LATER:
                    return False
                if error.errno not in _LOST:
                    raise
        return True


class Tap(_Wire):
    """A TAP interface, which is made if it is not there: packets are Ethernet frames.

    Raises:
        PermissionDeniedError, UnsupportedError, InvalidInputError: we cannot have it; the message says why.
    """

    def __init__(self, name: str) -> None:
        request = _interface(name)
        try:
            self.fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError as error:
            raise PermissionDeniedError(f"cannot open {TUN}: {error.strerror}. Run as root") from error
        except OSError as error:
            raise UnsupportedError(f"no TAP interfaces here: {TUN}: {error.strerror}") from error
        try:
            fcntl.ioctl(self.fd, _TUNSETIFF, _IFREQ.pack(request, _IFF_TAP | _IFF_NO_PI))
            _bring_up(request)
        except PermissionError as error:
            self.close()
            raise PermissionDeniedError(
                f"cannot have the interface {name}: {error.strerror}. Run as root, or let root make it for "
                f"you: ip tuntap add {name} mode tap user $USER; ip link set {name} up"
            ) from error
        except OSError as error:
            self.close()
            raise InvalidInputError(f"cannot have the interface {name}: {error.strerror}") from error

    def close(self) -> None:
        os.close(self.fd)


def _interface(name: str) -> bytes:
    """Raises: InvalidInputError: no interface can have that name."""
    request = name.encode(errors="surrogateescape")
    if not 0 < len(request) < 16 or b"/" in request:
        raise InvalidInputError(f"{name!r} is no name of a network interface: 1 to 15 bytes, no slash")
    return request


def _bring_up(name: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        _, flags = _IFREQ.unpack(fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(name, 0)))
        if not flags & _IFF_UP:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(name, flags | _IFF_UP))


class UdpPair(_Wire):
    """Each packet is a datagram to one address, and each from there a packet for the guest.

    Args:
        local, remote: host and port.

    Raises:
        InvalidInputError: no such address, or another process uses the local one.
    """

    def __init__(self, local: tuple[str, int], remote: tuple[str, int]) -> None:
        family, kind, protocol, _, to = _resolved(*remote)
        try:
            self._socket = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        except OSError as error:
            raise InvalidInputError(f"cannot send to {remote[0]} port {remote[1]}: {error}") from error
        try:
            self._socket.bind(local)
            self._socket.connect(to)
        except OSError as error:
            self._socket.close()
            place = f"{local[0]} port {local[1]} and {remote[0]} port {remote[1]}"
            raise InvalidInputError(f"cannot connect {place}: {error.strerror or error}") from error
        self.fd = self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


def open_net(where: str) -> Tap | UdpPair:
    """Open what a user names: `tap:NAME`, or `udp:HOST:PORT,HOST:PORT`, the own address first.

    Raises:
        InvalidInputError: it is neither.
        Others: see `Tap`, `UdpPair`.
    """
    name, ends = _named(where)
    return UdpPair(*ends) if ends else Tap(name)


def check_net(where: str) -> None:
    """What can be known of it before it is opened, when another process may have it still.

    It resolves names, and so the first time of that in a process, which takes longest, is over.

    Raises:
        InvalidInputError: as `open_net`.
    """
    name, ends = _named(where)
    if not ends:
        _interface(name)
        return
    local, remote = ends
    if local[0]:  # else any address of this host
        _resolved(*local)
    _resolved(*remote)


Ends = tuple[tuple[str, int], tuple[str, int]]


def _named(where: str) -> tuple[str, Ends | None]:
    """The name of a TAP, or both ends of a pair."""
    kind, _, rest = where.partition(":")
    if kind == "tap":
        return rest, None
    match kind, [_address(end) for end in rest.split(",")]:
        case "udp", [(_, _) as local, (_, _) as remote]:
            return "", (local, remote)
    raise InvalidInputError(f"{where!r} is neither tap:NAME nor udp:HOST:PORT,HOST:PORT")


def _resolved(host: str, port: int) -> tuple[Any, ...]:
    """An address of getaddrinfo(3), which looks into files for a name, and not for a number.

    Raises:
        InvalidInputError: the host is not known.
    """
    try:
        with contextlib.suppress(socket.gaierror):
            return _addresses(host, port, socket.AI_NUMERICHOST)[0]
        return _addresses(host, port, 0)[0]
    except OSError as error:
        raise InvalidInputError(f"{host} port {port} is no address: {error.strerror or error}") from error


def _addresses(host: str, port: int, flags: int) -> list[tuple[Any, ...]]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=flags))


def _address(text: str) -> tuple[str, int] | None:
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and int(port) < 65536):
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)
