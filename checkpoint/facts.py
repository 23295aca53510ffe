"""The JSON of an image and of a tree's epoch, see docs/image.md and docs/trees.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from checkpoint.objects import ObjectFacts, Snapshot
from checkpoint.row import Row

if TYPE_CHECKING:
    from kvmglue import Output  # processes do without KVM

Elsewhere = tuple[int, int, int, str, int, str]
"""A mapping, its address in the process that stores it, and directory, epoch and digest there."""
FileFacts = dict[str, list[int]]
"""Device, inode, size and mtime in ns of mapped files, by name."""


@dataclass(frozen=True, slots=True)
class ProcessFacts(Row):
    """A process; no other has its `pid`, `start_time` (proc_pid_stat(5), field 22) and `boot_id`."""

    pid: int
    ppid: int
    pgrp: int
    sid: int
    uid: int
    gid: int
    comm: str
    cmdline: str
    exe: str
    start_time: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class VmFacts(Row):
    """The layout of a VM; `slots`: first frame and number of pages; `system_bytes`: memory beside the RAM."""

    guest: str
    vcpus: int
    slots: list[list[int]]
    system_bytes: int


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What a source says of its target for one epoch.

    Attributes:
        heap_end: the program break, to the page; 0 for no heap.
        attributes: ranges of addresses with their codes; None if they are not known.
        attributes_unknown: ranges that were mapped after the attributes had been read.
        objects: its state in the kernel; an epoch stores what has changed.
        warnings: new warnings about what the epoch may miss; no image has them.
        output: what a guest has sent since the epoch before; it may be released when this epoch is safe.
    """

    process: ProcessFacts
    files: FileFacts = field(default_factory=dict)
    heap_end: int = 0
    attributes: list[list[Any]] | None = None
    attributes_unknown: list[list[int]] | None = None
    objects: Snapshot | None = None
    vm: VmFacts | None = None
    warnings: list[str] = field(default_factory=list)
    output: Output | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts(Row):
    """The facts of an image, with defaults for those that older versions do not store.

    Attributes:
        with_deltas: the schema of an image that has deltas; versions that cannot read them refuse it.
        of_a_branch: the schema of one that has `parent_epoch` or `merged`, with or without deltas.
        parent_epoch: the number of the parent, if that is not the one before.
        row: the line of `--json`, as it was printed.
        merged: of a base that was made of older epochs, while others of lower numbers stay: the first and the
            last number of each stretch of those that it was made of.
    """

    schema: ClassVar[str] = "uffdtrack/image/1"
    with_deltas: ClassVar[str] = "uffdtrack/image/2"
    of_a_branch: ClassVar[str] = "uffdtrack/image/3"
    rows: ClassVar[Mapping[str, type[Row]]] = {
        "process": ProcessFacts, "objects": ObjectFacts, "vm": VmFacts,
    }  # fmt: skip

    epoch: int
    base: bool
    parent: str
    parent_epoch: int | None = None
    keyed: bool
    row: dict[str, Any]
    reset: list[list[int]]
    threads: list[int]
    kernel_threads: list[int]
    regions: list[list[Any]]
    process: ProcessFacts
    files: FileFacts
    heap_end: int
    attributes: list[list[Any]] | None = None
    attributes_unknown: list[list[int]] | None = None
    objects: ObjectFacts
    elsewhere: list[Elsewhere] | None = None
    vm: VmFacts | None = None
    replaces: str | None = None
    merged: list[list[int]] | None = None

    @classmethod
    def schema_of(cls, stored: Mapping[str, Any], deltas: bool) -> str:
        """The schema of an image with this JSON."""
        if "parent_epoch" in stored or "merged" in stored:
            return cls.of_a_branch
        return cls.with_deltas if deltas else cls.schema


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeFacts(Row):
    """The facts of a tree's epoch: `processes` and `left_out` are rows of checkpoint/epoch.py.

    Attributes:
        of_a_branch: the schema of one that has `parent_epoch`, see `ImageFacts`.
    """

    schema: ClassVar[str] = "uffdtrack/tree/1"
    of_a_branch: ClassVar[str] = "uffdtrack/tree/2"

    epoch: int
    parent: str
    parent_epoch: int | None = None
    keyed: bool
    processes: list[dict[str, Any]]
    left_out: list[dict[str, Any]]
    row: dict[str, Any]

    @classmethod
    def schema_of(cls, stored: Mapping[str, Any]) -> str:
        """The schema of an epoch with this JSON."""
        return cls.of_a_branch if "parent_epoch" in stored else cls.schema
