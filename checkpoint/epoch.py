"""Rows: what `--json` prints of epochs, and of which an image holds what was known when it was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Protocol, Self


class Timed(Protocol):
    """What has lasted: a window of one process, or of a tree. All in microseconds."""

    @property
    def pause_us(self) -> float: ...
    @property
    def stop_us(self) -> float: ...
    @property
    def harvest_us(self) -> float: ...
    @property
    def copy_us(self) -> float: ...
    @property
    def rearm_us(self) -> float: ...
    @property
    def resume_us(self) -> float: ...


class Row:
    """A dataclass that is one object of JSON, its fields in their order; what is None is left out."""

    __slots__ = ()
    schema: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        """With the fields of its `Times` and its `Membership` among its own."""
        out: dict[str, Any] = {"schema": self.schema} if self.schema else {}
        for name in _names(type(self)):
            value = getattr(self, name)
            if isinstance(value, (Times, Membership)):
                out.update(value.to_json())
            elif isinstance(value, list):
                out[name] = [one.to_json() if isinstance(one, Row) else one for one in value]
            elif value is not None:
                out[name] = value
        return out

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> Self:
        """Of what `to_json` gave, now or in an older version; what is stored and no field is passed over.

        Raises:
            TypeError: what no version leaves out is missing.
        """
        names = _names(cls)
        values = {name: stored[name] for name in names if name in stored}
        if "times" in names:
            values["times"] = Times.of_json(stored)
        return cls(**values)


def _names(kind: type) -> list[str]:
    assert is_dataclass(kind)
    return [part.name for part in fields(kind)]


@dataclass(frozen=True, slots=True)
class Times(Row):
    """A pause and its parts, in microseconds; `resume_us` is None in images of versions that lack it."""

    pause_us: float
    stop_us: float
    harvest_us: float
    copy_us: float
    rearm_us: float
    resume_us: float | None = None

    @classmethod
    def of(cls, window: Timed) -> Times:
        return cls(*(round(getattr(window, name), 1) for name in _names(cls)))


@dataclass(frozen=True, slots=True)
class Membership(Row):
    """Which process of a tree a row is of.

    Attributes:
        start_time: as in proc_pid_stat(5), field 22.
        directory: the name of its chain's.
        unchanged: it has not run since its last epoch, which this one is again.
    """

    start_time: int
    comm: str
    directory: str
    unchanged: bool


@dataclass(frozen=True, slots=True)
class EpochRow(Row):
    """One epoch of one process or VM, see docs/image.md.

    Attributes:
        left_out, left_out_bytes: mappings whose contents are in no image and no file.
        late: intervals that have passed since it was due.
        skipped, skip_reason: epochs that could not be taken since the last row, and why.
        max_dirty, overshoot: where there is a limit of dirty pages: it, and pages beyond it.
        digest, write_us: known when the epoch is whole, and when it is safe; in no image.
    """

    schema: ClassVar[str] = "uffdtrack/epoch/1"

    epoch: int
    base: bool
    pid: int
    engine: str
    pages: int
    bytes: int
    scanned: bool
    times: Times
    threads: int
    regions: int = 0
    compared: int = 0
    unreadable: int = 0
    left_out: int = 0
    left_out_bytes: int = 0
    warnings: list[str] = field(default_factory=list)
    late: int = 0
    skipped: int = 0
    skip_reason: str = ""
    time_ns: int = 0
    max_dirty: int | None = None
    overshoot: int | None = None
    digest: str | None = None
    member: Membership | None = None
    write_us: float | None = None


@dataclass(frozen=True, slots=True)
class LeftOut(Row):
    """A process of a tree that lived and is not in its epoch."""

    pid: int
    comm: str
    reason: str


@dataclass(frozen=True, slots=True)
class TreeRow(Row):
    """One epoch of a tree of processes; sums over them, but for the times.

    Attributes:
        pid: of the first process.
        base: all of them are.
        write_us, digest, processes: known when it is safe; not in its own file.
    """

    schema: ClassVar[str] = "uffdtrack/tree-epoch/1"

    epoch: int
    pid: int
    engine: str
    base: bool
    pages: int
    bytes: int
    threads: int
    regions: int
    compared: int
    times: Times
    left_out: list[LeftOut]
    skipped: int = 0
    skip_reason: str = ""
    late: int = 0
    time_ns: int = 0
    max_dirty: int | None = None
    overshoot: int | None = None
    write_us: float | None = None
    digest: str | None = None
    processes: list[EpochRow] | None = None
