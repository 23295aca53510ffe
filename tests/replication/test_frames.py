"""Frames: what is well formed comes as it was, what is not is refused, however it is cut."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import accumulate

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint.errors import LinkError
from checkpoint.replication.links import frames
from checkpoint.replication.links.frames import (
    HEADER,
    MAGIC,
    MAX_BODY,
    MAX_META,
    Decoder,
    Encoder,
    Kind,
    Message,
)

HELLO = Message(Kind.HELLO, {"role": "active"})
LATER = [kind for kind in Kind if kind not in (Kind.HELLO, Kind.PART)]


def encoded(*messages: Message) -> list[bytes]:
    """A frame of each."""
    encoder = Encoder()
    return [b"".join(encoder.encode(message)) for message in messages]


def frame(
    sequence: int, kind: int = 6, meta: bytes = b"{}", body: bytes = b"", magic: bytes = MAGIC
) -> bytes:
    return HEADER.pack(magic, kind, len(meta), len(body), sequence) + meta + body


def decoded(data: bytes, cuts: list[int] | None = None) -> tuple[list[Message], str]:
    """The messages, and what was wrong with what follows them."""
    decoder, found = Decoder(), []
    ends = sorted({min(cut, len(data)) for cut in cuts or []} | {len(data)})
    try:
        for begin, end in zip([0, *ends], ends, strict=False):
            found += decoder.feed(data[begin:end])
        found += decoder.feed(b"")
        if decoder.error:
            raise decoder.error
    except LinkError as error:
        return found, str(error)
    return found, ""


def said(messages: list[Message]) -> list[tuple[Kind, dict[str, object], bytes]]:
    return [(m.kind, {k: v for k, v in m.meta.items() if k != "protocol"}, bytes(m.body)) for m in messages]


numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(-1e300, 1e300)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
metas = st.dictionaries(
    st.text(max_size=6).filter(lambda k: k not in ("zstd", "protocol")), json_values, max_size=3
)
later = st.builds(Message, st.sampled_from(LATER), metas) | st.builds(
    lambda meta, zstd, body: Message(Kind.PART, meta | {"zstd": zstd}, body),
    metas, st.booleans(), st.binary(max_size=300) | st.integers(0, 70000).map(bytes),
)  # fmt: skip
streams = st.lists(later, max_size=6).map(lambda more: [HELLO, *more])
cuts_of_all = st.lists(st.integers(0, 2000) | st.integers(0, 10**6), max_size=12)


@given(streams, cuts_of_all)
@settings(max_examples=100)
def test_what_is_sent_comes(messages: list[Message], cuts: list[int]) -> None:
    found, wrong = decoded(b"".join(encoded(*messages)), cuts)
    assert not wrong
    # What was not worth compressing says so.
    plain = [(k, {n: v for n, v in m.items() if n != "zstd"}, b) for k, m, b in said(found)]
    assert plain == [(k, {n: v for n, v in m.items() if n != "zstd"}, b) for k, m, b in said(messages)]


def mutated(parts: list[bytes], choose: Callable[[int], int]) -> tuple[bytes, int]:
    """A stream with one thing wrong, and how many frames before that are whole.

    Args:
        choose: gives a number below its argument.
    """
    at = choose(len(parts))
    out = list(parts)
    match choose(7):
        case 0:  # a bit
            place = choose(len(out[at]))
            changed = bytearray(out[at])
            changed[place] ^= 1 << choose(8)
            out[at] = bytes(changed)
        case 1:  # truncated, and then goes on
            out[at] = out[at][: choose(len(out[at]))]
        case 2:  # replayed
            out.insert(at + 1, out[at])
            at += 1
        case 3:  # reordered
            other = choose(len(out))
            out[at], out[other] = out[other], out[at]
            at = min(at, other)
        case 4:  # lost
            del out[at]
        case 5:  # something in between
            out.insert(at, bytes(choose(256) for _ in range(choose(40) + 1)))
        case 6:  # a header of anything
            numbers = choose(1 << 16), choose(1 << 32), choose(1 << 32), choose(4)
            out[at] = HEADER.pack(MAGIC, *numbers) + out[at][HEADER.size :]
    return b"".join(out), at


def check_mutation(messages: list[Message], choose: Callable[[int], int]) -> bool:
    """Whether the mutation was noticed; what comes before it has come as it was."""
    data, whole = mutated(encoded(*messages), choose)
    found, wrong = decoded(data)
    assert said(found[:whole]) == said(messages[:whole])
    assert len(found) <= len(messages) + 1
    cut = choose(len(data) + 1)
    again, wrong_again = decoded(data, [cut, cut + 1, cut + 20])
    assert (said(again), wrong_again) == (said(found), wrong)
    return bool(wrong)


PLAIN = [HELLO, *(Message(Kind.BEAT, {"taken": n}) for n in range(3)), Message(Kind.PART, {}, b"x" * 50)]


@given(st.integers(1, len(PLAIN)), st.integers(0))
@settings(max_examples=1500)
def test_mutated_streams(n: int, seed: int) -> None:
    check_mutation(PLAIN[:n], random.Random(seed).randrange)


@given(st.binary(max_size=200), st.lists(st.integers(0, 300), max_size=3))
@settings(max_examples=700)
def test_anything_at_all(data: bytes, cuts: list[int]) -> None:
    """Only a LinkError comes of it; so it is behind a whole HELLO."""
    for text in (data, encoded(HELLO)[0] + data, encoded(HELLO)[0] + MAGIC + data):
        assert decoded(text) == decoded(text, cuts)


@pytest.mark.slow  # about a minute of a processor
def test_a_million_inputs() -> None:
    chance = random.Random(11)
    noticed = 0
    for _ in range(700_000):
        noticed += check_mutation(PLAIN[: chance.randrange(1, 6)], chance.randrange)
    assert noticed > 350_000
    head = encoded(HELLO)[0]
    for n in range(300_000):
        data = chance.randbytes(chance.randrange(60))
        found, wrong = decoded((b"", head, head + MAGIC, head + frame(1)[: n % 24])[n % 4] + data)
        assert len(found) <= 4 and (wrong or len(data) < 2 * HEADER.size or n % 4 == 3 or not found[2:])


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n", "no frame of uffdtrack"),
        (frame(1, 1), "frame 1 came where 0 was due"),
        (frame(0, 6), "HELLO is the first"),
        (frame(0, 99), "kind 99"),
        (HEADER.pack(MAGIC, 1, MAX_META + 1, 0, 0), "too large"),
        (HEADER.pack(MAGIC, 1, 2, 1, 0), "too large"),
        (frame(0, 1, b"[]"), "no object"),
        (frame(0, 1, b"{]"), "malformed"),
        (frame(0, 1, b'{"a": NaN}'), "malformed"),
        (frame(0, 1, b'{"a": "\xff"}'), "malformed"),
        (frame(0, 1, '{"a": 1}'.encode("utf-16")), "malformed"),
        (frame(0, 1, b'{"a": ' + b"[" * 60000), "malformed"),
        (frame(0, 1, b'{"a": ' + b"1" * 60000 + b"}"), "malformed"),
        (frame(0, 1, b"{}"), "does not say which versions"),
        (frame(0, 1, b'{"protocol": [2, 1]}'), "does not say which versions"),
        (frame(0, 1, b'{"protocol": [1]}'), "does not say which versions"),
        (frame(0, 1, b'{"protocol": [true, "1"]}'), "does not say which versions"),
        (
            frame(0, 1, b'{"protocol": [7, 9]}'),
            "speaks the protocol's versions 7 to 9, and this one version 1",
        ),
    ],
    ids=range(18),
)
def test_reasons(data: bytes, reason: str) -> None:
    found, wrong = decoded(data)
    assert not found and reason in wrong


@pytest.mark.parametrize(
    "data, reason",
    [
        (frame(0), "frame 0 came where 1 was due"),
        (frame(2), "frame 2 came where 1 was due"),
        (frame(1, 1, b'{"protocol": [1, 1]}'), "HELLO is the first"),
        (HEADER.pack(MAGIC, 3, 2, MAX_BODY + 1, 1), "too large"),
        (HEADER.pack(MAGIC, 6, 2, 1, 1), "too large"),
        (HEADER.pack(MAGIC, 3, 2**32 - 1, 2**32 - 1, 1), "too large"),
    ],
    ids=range(6),
)
def test_reasons_behind_a_hello(data: bytes, reason: str) -> None:
    """The HELLO still comes. Negative control: with the right number there is no error."""
    found, wrong = decoded(encoded(HELLO)[0] + data)
    assert len(found) == 1 and reason in wrong
    assert decoded(encoded(HELLO)[0] + frame(1)) == ([*found, Message(Kind.BEAT)], "")


def test_a_length_allocates_nothing_before_it_is_checked() -> None:
    """And a body that is announced has its own size at most."""
    decoder = Decoder()
    most = len(decoder.room())
    decoder.feed(encoded(HELLO)[0] + HEADER.pack(MAGIC, 3, 2, MAX_BODY, 1) + b"{}")
    assert len(decoder.room()) == MAX_BODY and most <= 4 * MAX_META


@pytest.mark.parametrize(
    "ours, theirs, version", [((1, 1), (1, 3), 1), ((1, 4), (2, 3), 3), ((2, 5), (1, 9), 5)]
)
def test_the_highest_version_that_both_have(
    monkeypatch: pytest.MonkeyPatch, ours: tuple[int, int], theirs: tuple[int, int], version: int
) -> None:
    monkeypatch.setattr(frames, "PROTOCOL", ours)
    decoder = Decoder()
    decoder.feed(frame(0, 1, json.dumps({"protocol": theirs}).encode()))
    assert decoder.version == version


def compressed(body: bytes, **options: bool) -> bytes:
    writer = zstandard.ZstdCompressor(**options).compressobj()  # type: ignore[arg-type]
    return writer.compress(body) + writer.flush()


SMALL = zstandard.ZstdCompressor().compress(b"a" * 1000)


@pytest.mark.parametrize(
    "body, reason",
    [
        (zstandard.ZstdCompressor().compress(bytes(1 << 30)), "too large"),
        (zstandard.ZstdCompressor().compress(bytes(MAX_BODY + 1)), "too large"),
        (compressed(bytes(1 << 24)), "does not say"),
        (b"no zstd at all", "cannot be decompressed"),
        (SMALL[:-3], "cannot be decompressed"),
        (SMALL + SMALL, "cannot be decompressed"),
        (SMALL + b"x", "cannot be decompressed"),
        # It says that it is smaller than it is.
        (SMALL[:5] + (700).to_bytes(2, "little") + SMALL[7:], "cannot be decompressed"),
    ],
    ids=["bomb", "one too many", "no size", "other", "cut", "twice", "more", "lie"],
)
def test_compressed_bodies_that_are_refused(body: bytes, reason: str) -> None:
    found, wrong = decoded(encoded(HELLO)[0] + frame(1, 3, b'{"zstd": true}', body))
    assert len(found) == 1 and reason in wrong


def test_compression() -> None:
    parts = [
        Message(Kind.PART, {"zstd": True}, b) for b in (bytes(MAX_BODY), random.Random(1).randbytes(5000))
    ]
    texts = encoded(HELLO, *parts)
    assert len(texts[1]) < 1000 and 5000 < len(texts[2]) < 5100
    found, _ = decoded(b"".join(texts))
    assert [bytes(m.body) for m in found[1:]] == [bytes(p.body) for p in parts]
    assert [m.meta["zstd"] for m in found[1:]] == [True, False]


def test_bodies_are_not_copied() -> None:
    body = memoryview(bytearray(1000))
    encoder = Encoder()
    encoder.encode(HELLO)
    buffers = encoder.encode(Message(Kind.PART, {}, body))
    assert buffers[1] is body
    assert list(accumulate(map(len, buffers)))[-1] == HEADER.size + 2 + 1000


@pytest.mark.parametrize(
    "message",
    [
        Message(Kind.PART, {}, bytes(MAX_BODY + 1)),
        Message(Kind.BEAT, {"a": "b" * MAX_META}),
        Message(Kind.BEAT, {}, b"x"),
    ],
    ids=["body", "meta", "kind"],
)
def test_what_is_too_large_is_not_sent(message: Message) -> None:
    encoder = Encoder()
    with pytest.raises(LinkError, match="fits in no frame"):
        encoder.encode(message)
    assert b"".join(encoder.encode(HELLO)) == encoded(HELLO)[0]
