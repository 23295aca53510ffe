"""Dataclasses that are objects of JSON: lines of `--json`, facts of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, ClassVar, Self

_names: dict[type, list[str]] = {}


def _field_names(kind: type) -> list[str]:
    known = _names.get(kind)
    if known is None:
        assert is_dataclass(kind)
        known = _names[kind] = [part.name for part in fields(kind)]
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
        for name in _field_names(type(self)):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, Row):
                own = value.to_json()
                out.update(own if value.among else {name: own})
            elif isinstance(value, list):
                out[name] = [one.to_json() if isinstance(one, Row) else one for one in value]
            else:
                out[name] = value
        return out

    @classmethod
    def names(cls) -> set[str]:
        """The keys that an object can have."""
        assert is_dataclass(cls)
        found = {"schema"}
        for part in fields(cls):
            kind = cls.rows.get(part.name)
            found |= kind.names() if kind and kind.among else {part.name}
        return found

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read what this or an older version of `to_json` made; ignores keys that are no fields.

        Raises:
            KeyError, TypeError: a field is missing that every version has, or is no object.
        """
        assert is_dataclass(cls)
        values: dict[str, Any] = {}
        for part in fields(cls):
            kind = cls.rows.get(part.name)
            if kind and kind.among:
                values[part.name] = kind.of_json(stored)
            elif part.name in stored:
                value = stored[part.name]
                values[part.name] = kind.of_json(value) if kind else value
            elif part.default is MISSING and part.default_factory is MISSING:
                raise KeyError(part.name)
        return cls(**values)
