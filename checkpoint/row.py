"""Dataclasses that are objects of JSON: lines of `--json`, facts of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from operator import attrgetter
from typing import Any, ClassVar, Self

_PLAIN = frozenset((bool, int, float, str))
_fields: dict[type, tuple[list[str], Callable[[Any], tuple[Any, ...]]]] = {}
_keys: dict[type, frozenset[str]] = {}
_stored: dict[type, list[tuple[str, type[Row] | None, bool]]] = {}


def _fields_of(kind: type) -> tuple[list[str], Callable[[Any], tuple[Any, ...]]]:
    """The names of the fields, and what reads all of them."""
    known = _fields.get(kind)
    if known is None:
        assert is_dataclass(kind)
        names = [part.name for part in fields(kind)]
        # With one name, or none, attrgetter() is of another kind.
        one_by_one = lambda row: tuple(getattr(row, name) for name in names)  # noqa: E731
        known = _fields[kind] = names, attrgetter(*names) if len(names) > 1 else one_by_one
    return known


def _stored_of(kind: type[Row]) -> list[tuple[str, type[Row] | None, bool]]:
    """Of each field the name, what it is if it is a row itself, and whether every version has stored it."""
    known = _stored.get(kind)
    if known is None:
        assert is_dataclass(kind)
        known = _stored[kind] = [
            (part.name, kind.rows.get(part.name), part.default is MISSING and part.default_factory is MISSING)
            for part in fields(kind)
        ]
    return known


class Row:
    """A dataclass that is one object of JSON, its fields in their order, without those that are None.

    Attributes:
        schema: comes first in the object, if there is one.
        among: as a field of another row, it puts its own fields among those of that row.
        rows: fields that are rows themselves when they are read back.
    """

    __slots__ = ()
    schema: ClassVar[str] = ""
    among: ClassVar[bool] = False
    rows: ClassVar[Mapping[str, type[Row]]] = {}

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"schema": self.schema} if self.schema else {}
        names, values = _fields_of(type(self))
        for name, value in zip(names, values(self), strict=True):
            if type(value) in _PLAIN:
                out[name] = value
            elif value is None:
                continue
            elif isinstance(value, Row):
                own = value.to_json()
                out.update(own if value.among else {name: own})
            elif isinstance(value, list):
                out[name] = [one.to_json() if isinstance(one, Row) else one for one in value]
            else:
                out[name] = value
        return out

    @classmethod
    def names(cls) -> frozenset[str]:
        """The keys that an object can have."""
        known = _keys.get(cls)
        if known is None:
            found = {"schema"}
            for name, kind, _ in _stored_of(cls):
                found |= kind.names() if kind and kind.among else {name}
            known = _keys[cls] = frozenset(found)
        return known

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read what this or an older version of `to_json` made; ignores keys that are no fields.

        Raises:
            KeyError, TypeError: a field is missing that every version has, or is no object.
        """
        values: dict[str, Any] = {}
        for name, kind, required in _stored_of(cls):
            if kind and kind.among:
                values[name] = kind.of_json(stored)
            elif name in stored:
                value = stored[name]
                values[name] = kind.of_json(value) if kind else value
            elif required:
                raise KeyError(name)
        return cls(**values)
