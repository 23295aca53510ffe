"""JSON where an epoch waits for it: by orjson, but for lone surrogates (names that are no UTF-8)."""

from __future__ import annotations

import json
from typing import Any

import orjson


def encode(value: Any) -> bytes:
    """Raises: ValueError, TypeError: it cannot be JSON."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def decode(data: bytes | memoryview) -> Any:
    """Raises: ValueError, RecursionError: it is no JSON, whose numbers are finite."""
    try:
        return orjson.loads(data)
    except ValueError:
        return json.loads(str(data, "utf-8"), parse_constant=_no_number)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")
