"""Addresses of links: where a standby listens, where a broker is."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass

from uffdtrack.errors import InvalidInputError

EXPECTED = "tls://HOST:PORT, unix:PATH, tcp://HOST:PORT or nats://HOST:PORT/NAME"
_HOST_NAME = r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}"
_HOST_AND_PORT = re.compile(rf"(?:\[([^\[\]/]+)\]|({_HOST_NAME})):([0-9]{{1,5}})")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Address:
    """An address; `str()` writes it as `parse` reads it.

    Attributes:
        scheme: "tls", "unix", "tcp" or "nats".
        host, port: not of "unix".
        path: of "unix".
        name: of "nats": what of all that the broker carries.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    name: str = ""

    @property
    def is_near(self) -> bool:
        """Whether what is sent there stays on this host."""
        if self.scheme == "unix" or self.host == "localhost":
            return True
        with contextlib.suppress(ValueError):  # a host's name
            return is_loopback(self.host)
        return False

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}" + (f"/{self.name}" if self.name else "")


def parse(text: str) -> Address:
    """Read an address.

    Raises:
        InvalidInputError: it is none; the message says what is expected.
    """
    scheme, colon, rest = text.partition(":")
    if scheme == "unix" and colon:
        path = rest[2:] if rest.startswith("//") else rest
        if not path or "\0" in path or path.endswith("/"):
            raise InvalidInputError(f"{text!r} names no socket: unix:PATH is expected")
        return Address("unix", path=path)
    if scheme not in ("tls", "tcp", "nats") or not rest.startswith("//"):
        raise InvalidInputError(f"{text!r} is no address: expected is {EXPECTED}")
    place, slash, name = rest[2:].partition("/")
    found = _HOST_AND_PORT.fullmatch(place)
    if found and int(found[3]) > 65535:
        raise InvalidInputError(f"{text!r}: {found[3]} is no port, which ends at 65535")
    if not found or len(place) > 260:
        raise InvalidInputError(
            f"{text!r} lacks a host or a port: {scheme}://HOST:PORT is expected, [HOST] for IPv6"
        )
    if scheme == "nats" and not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{text!r} lacks a name: nats://HOST:PORT/NAME is expected, of letters, digits, _ and -"
        )
    if scheme != "nats" and slash:
        raise InvalidInputError(f"{text!r} has something behind the port: {scheme}://HOST:PORT is expected")
    return Address(scheme, _checked_host(text, found[1], found[2]), int(found[3]), name=name)


def _checked_host(text: str, bracketed: str | None, plain: str | None) -> str:
    """The host of an address as written; in brackets only an IPv6 address may be."""
    if bracketed is None:
        assert plain
        return plain
    try:
        return str(ipaddress.IPv6Address(bracketed))
    except ValueError as error:
        raise InvalidInputError(f"{text!r}: [{bracketed}] is no IPv6 address") from error


def is_host_name(text: str) -> bool:
    """Whether it can be the name of a host; a numeric IPv4 address can."""
    return re.fullmatch(_HOST_NAME, text) is not None and len(text) <= 253


def is_loopback(host: str) -> bool:
    """Whether a numeric address stays on this host."""
    return ipaddress.ip_address(host).is_loopback
