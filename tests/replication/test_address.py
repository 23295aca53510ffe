"""Addresses: read, written, and refused with what is expected."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.replication.links.address import Address, is_loopback, parse
from uffdtrack.errors import InvalidInputError


@pytest.mark.parametrize(
    "text, address, written",
    [
        ("tls://10.0.0.1:7071", Address("tls", "10.0.0.1", 7071), None),
        ("tls://a.example:1", Address("tls", "a.example", 1), None),
        ("tcp://[::1]:7071", Address("tcp", "::1", 7071), None),
        ("tcp://[0:0::0:1]:0", Address("tcp", "::1", 0), "tcp://[::1]:0"),
        ("unix:/run/x", Address("unix", path="/run/x"), None),
        ("unix:///run/x", Address("unix", path="/run/x"), "unix:/run/x"),
        ("unix:x y:z", Address("unix", path="x y:z"), None),
        ("nats://h:4222/my-guest_1", Address("nats", "h", 4222, name="my-guest_1"), None),
    ],
)
def test_addresses(text: str, address: Address, written: str | None) -> None:
    assert parse(text) == address
    assert str(address) == (written or text) and parse(str(address)) == address


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "expected is tls://HOST:PORT, unix:PATH"),
        ("127.0.0.1:7071", "expected is tls"),
        ("http://a:1", "expected is tls"),
        ("tls:a:1", "expected is tls"),
        ("TLS://a:1", "expected is tls"),
        ("tls://a", "lacks a host or a port"),
        ("tls://:1", "lacks a host or a port"),
        ("tls://a:65536", "65536 is no port"),
        ("tls://a:1x", "lacks a host or a port"),
        ("tls://::1:7071", "[HOST] for IPv6"),
        ("tls://[a.example]:1", "no IPv6 address"),
        ("tls://[::g]:1", "no IPv6 address"),
        ("tls://me@a:1", "lacks a host or a port"),
        ("tls://.a:1", "lacks a host or a port"),
        ("tls://a..b:1", "lacks a host or a port"),
        ("tls://\u00e4:1", "lacks a host or a port"),
        (f"tls://{'a' * 64}:1", "lacks a host or a port"),
        (f"tls://{'a.' * 140}a:1", "lacks a host or a port"),
        ("tls://a:1/x", "something behind the port"),
        ("tls://a:1/", "something behind the port"),
        ("nats://a:1", "lacks a name"),
        ("nats://a:1/", "lacks a name"),
        ("nats://a:1/x.y", "lacks a name"),
        ("unix:", "names no socket"),
        ("unix://", "names no socket"),
        ("unix:/run/", "names no socket"),
        ("unix:a\0b", "names no socket"),
    ],
)
def test_what_is_no_address(text: str, expected: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse(text)
    assert expected in str(caught.value)


@given(
    st.text(max_size=30) | st.tuples(st.sampled_from(["tls://", "unix:", "nats://"]), st.text()).map("".join)
)
def test_any_text(text: str) -> None:
    try:
        found = parse(text)
    except InvalidInputError:
        return
    assert parse(str(found)) == found


def test_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "fe80::1%2", "::ffff:10.0.0.1"]))
