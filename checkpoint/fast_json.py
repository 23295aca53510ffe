"""JSON where an epoch waits for it: by orjson, but for lone surrogates (names that are no UTF-8)."""

from __future__ import annotations

import json
from typing import Any

import orjson


def encode(value: Any) -> bytes:
    """Numbers that are not finite become null. Raises: ValueError, TypeError: it cannot be JSON."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode()


def decode(data: bytes | memoryview) -> Any:
    """Integers beyond 64 bits become floats. Raises: ValueError: it is no JSON, or nested too deeply."""
    try:
        return orjson.loads(data)
    except ValueError:
        pass
    try:
        return json.loads(str(data, "utf-8"), parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")
