"""Reuse results that depend on the mappings alone: most epochs have the same mappings as the one before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from uffdtrack import Region

T = TypeVar("T")


class Once(Generic[T]):
    """A function of the mappings that is called again only if their list has changed."""

    def __init__(self, function: Callable[[list[Region]], T]) -> None:
        self._function = function
        self._last: tuple[list[Region], T] | None = None

    def __call__(self, regions: list[Region]) -> T:
        if self._last is None or self._last[0] is not regions:
            self._last = regions, self._function(regions)
        return self._last[1]
