"""A base class of objects that a `with` closes."""

from __future__ import annotations

from typing import Self


class Closing:
    """Has `close()`; a `with` calls it."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
