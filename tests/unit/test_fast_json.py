"""JSON by orjson is that of the standard library, with what orjson does not know."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint import fast_json

TEXT = st.text() | st.binary(max_size=8).map(os.fsdecode)
NUMBER = st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUE = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@given(VALUE)
def test_it_comes_back(value: Any) -> None:
    assert fast_json.decode(fast_json.encode(value)) == value
    assert json.loads(fast_json.encode(value)) == value
    assert fast_json.decode(json.dumps(value).encode()) == value


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": NaN}', b"[-Infinity]", b"\xff", b'"\xed\xb2\x80"'])
def test_what_is_no_json(text: bytes) -> None:
    with pytest.raises(ValueError):
        fast_json.decode(memoryview(text))


def test_depth() -> None:
    with pytest.raises(ValueError, match=r"deep|expected"):
        fast_json.decode(b"[" * 100_000 + b"]" * 100_000)


def test_what_cannot_be_json() -> None:
    with pytest.raises((ValueError, TypeError)):
        fast_json.encode({"a": {1, 2}})
