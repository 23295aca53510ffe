"""An epoch on its way, and its row, which `--json` prints.

An image has the fields of the row that were known when it was written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from checkpoint.elf import Notes
from checkpoint.facts import Elsewhere, ImageFacts, TargetFacts
from checkpoint.objects import ObjectFacts
from checkpoint.row import Row
from uffdtrack import StopTimes, Window


def since(started: float) -> float:
    """Microseconds since a value of time.perf_counter()."""
    return round((time.perf_counter() - started) * 1e6, 1)


@dataclass(slots=True)
class Times(Row):
    """A pause and its parts, in microseconds; `resume_us` is None in images of versions that lack it.

    Of several stops, as a base has, these are sums; `longest_us` is the longest one's, None if there was one.
    """

    among: ClassVar[bool] = True

    pause_us: float
    stop_us: float
    harvest_us: float
    copy_us: float
    rearm_us: float
    resume_us: float | None = None
    longest_us: float | None = None

    @classmethod
    def of(cls, window: StopTimes) -> Times:
        return cls(
            pause_us=round(window.pause_us, 1),
            stop_us=round(window.stop_us, 1),
            harvest_us=round(window.harvest_us, 1),
            copy_us=round(window.copy_us, 1),
            rearm_us=round(window.rearm_us, 1),
            resume_us=round(window.resume_us, 1),
            longest_us=round(window.longest_us, 1) or None,
        )


@dataclass(frozen=True, slots=True)
class Membership(Row):
    """The process of a tree that a row belongs to.

    Attributes:
        start_time: as in proc_pid_stat(5), field 22.
        directory: the name of its chain's directory.
        unchanged: it has not run since its last epoch, which the tree's epoch names again.
    """

    among: ClassVar[bool] = True

    start_time: int
    comm: str
    directory: str
    unchanged: bool


@dataclass(slots=True, kw_only=True)
class EpochRow(Row):
    """One epoch of one process or VM, see docs/image.md. It is filled in as the epoch goes its way.

    Attributes:
        left_out, left_out_bytes: mappings whose contents are in no image and no file.
        waited_us: how long the stop was put off since too much was waiting for the disk.
        late: intervals that have passed since the epoch was due.
        skipped, skip_reason: how many epochs we could not take since the last row, and why.
        time_ns: when it was taken, on the host's clock.
        max_dirty, overshoot: the limit of dirty pages, if there is one, and by how many pages we exceed it.
        digest: known when the epoch is whole; no image has it.
        kept, kept_bytes: it is not durable: so many epochs, this one included, are in the session's memory,
            with so many bytes.
        write_us: from when the target ran on until the epoch was safe; no image has it.
    """

    schema: ClassVar[str] = "uffdtrack/epoch/1"
    rows: ClassVar[Mapping[str, type[Row]]] = {"times": Times}

    epoch: int
    base: bool
    pid: int
    engine: str
    pages: int
    bytes: int
    scanned: bool = False
    times: Times
    threads: int
    regions: int = 0
    compared: int = 0
    unreadable: int = 0
    left_out: int = 0
    left_out_bytes: int = 0
    warnings: list[str] = field(default_factory=list)
    waited_us: float | None = None
    late: int = 0
    skipped: int = 0
    skip_reason: str = ""
    time_ns: int = 0
    max_dirty: int | None = None
    overshoot: int | None = None
    digest: str | None = None
    member: Membership | None = None
    kept: int | None = None
    kept_bytes: int | None = None
    write_us: float | None = None

    @property
    def place(self) -> tuple[str, int, str]:
        """In a tree: directory, epoch and digest, by which other processes' epochs name this one."""
        assert self.member and self.digest
        return self.member.directory, self.epoch, self.digest


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch on its way from a source to a sink.

    Attributes:
        row: without the fields that the sink counts.
        window: its contents are valid until the source's next window.
        notes: registers, mapped files.
        facts: of the target, for the image's JSON.
        elsewhere: in a tree: shared memory that other processes store for this one.
    """

    row: EpochRow
    window: Window
    notes: Notes
    facts: TargetFacts
    elsewhere: list[Elsewhere] | None = None

    def counted(self, number: int, pages: int, content: int) -> EpochRow:
        """Its row, with what the sink knows: its number, pages, bytes of contents."""
        row, limit = self.row, self.row.max_dirty
        row.epoch, row.pages, row.bytes = number, pages, content
        if limit:
            row.overshoot = 0 if row.base else max(0, (self.window.touched or pages) - limit)
        return row


def image_facts(
    epoch: Epoch,
    row: EpochRow,
    parent: tuple[str, int | None],
    keyed: bool,
    regions: list[Any],
    objects: ObjectFacts,
) -> ImageFacts:
    """What an image says of an epoch.

    Args:
        row: the epoch's, counted.
        parent: its digest, and its number, if that is not the one before.
        regions: as the image describes them.
        objects: what it stores of the target's state.
    """
    window, target = epoch.window, epoch.facts
    return ImageFacts(
        epoch=row.epoch,
        base=row.base,
        parent=parent[0],
        parent_epoch=parent[1],
        keyed=keyed,
        row=row.to_json(),
        reset=window.reset.tolist(),
        threads=[t.tid for t in window.threads if not t.worker],
        kernel_threads=[t.tid for t in window.threads if t.worker],
        regions=regions,
        process=target.process,
        files=target.files,
        heap_end=target.heap_end,
        attributes=target.attributes,
        attributes_unknown=target.attributes_unknown,
        objects=objects,
        elsewhere=epoch.elsewhere,
        vm=target.vm,
    )


@dataclass(frozen=True, slots=True)
class TakenRow(Row):
    """An epoch was taken, and will be safe later; if it cannot be stored, a later one gets its number."""

    schema: ClassVar[str] = "uffdtrack/taken/1"
    rows: ClassVar[Mapping[str, type[Row]]] = {"times": Times}

    epoch: int
    time_ns: int
    times: Times


@dataclass(frozen=True, slots=True)
class MemberEpoch(Row):
    """A process's part in an epoch of a tree: which epoch of which chain; see `EpochRow`, `Membership`."""

    pid: int
    start_time: int
    comm: str
    directory: str
    epoch: int
    digest: str

    @classmethod
    def of(cls, row: EpochRow) -> MemberEpoch:
        return cls.of_json(row.to_json())


@dataclass(frozen=True, slots=True)
class LeftOut(Row):
    """A process of a tree that lived and is not in the tree's epoch."""

    pid: int
    comm: str
    reason: str


@dataclass(frozen=True, slots=True)
class TreeRow(Row):
    """One epoch of a tree of processes; sums over them, but for the times.

    Attributes:
        pid: of the first process.
        base: all processes' epochs are bases.
        write_us, digest, processes: known when the epoch is safe; its own file does not have them.
    """

    schema: ClassVar[str] = "uffdtrack/tree-epoch/1"
    rows: ClassVar[Mapping[str, type[Row]]] = {"times": Times}

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
    waited_us: float | None = None
    skipped: int = 0
    skip_reason: str = ""
    late: int = 0
    time_ns: int = 0
    max_dirty: int | None = None
    overshoot: int | None = None
    write_us: float | None = None
    digest: str | None = None
    processes: list[EpochRow] | None = None
