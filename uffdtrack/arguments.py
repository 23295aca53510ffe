"""Checks of the library's arguments: an error names one that cannot be right, before anything is made."""

from __future__ import annotations

from typing import Any

from uffdtrack.errors import InvalidInputError


def whole(name: str, value: Any, least: int = 0, most: int = (1 << 63) - 1) -> int:
    """A whole number, numpy's included.

    Raises:
        InvalidInputError: it is not a whole number, or out of range.
    """
    try:
        number = int(value.__index__())
    except (AttributeError, TypeError) as error:
        raise InvalidInputError(f"{name} is a whole number, not {value!r}") from error
    if not least <= number <= most:
        raise InvalidInputError(f"{name} is from {least} to {most}, not {number}")
    return number


def bytes_like(name: str, value: Any) -> memoryview:
    """Raises: InvalidInputError: it has no bytes."""
    try:
        return memoryview(value).cast("B")
    except TypeError as error:
        raise InvalidInputError(f"{name} is bytes or the like, not {type(value).__name__}") from error
