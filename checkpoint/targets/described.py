"""What images say of a process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from checkpoint.facts import ProcessFacts, TargetFacts
from checkpoint.objects import Snapshot, parse_status
from uffdtrack import Process, Region, proc_read, stat_fields, task_directory

MadeOf = tuple[list[Region], Snapshot, tuple[list[list[Any]], list[list[int]]]]
"""Mappings, state in the kernel, attributes of mappings: all that is said of a process follows from these."""


@dataclass(slots=True)
class Described:
    """What was said of a process; `notes`: those that follow the threads'."""

    made_of: MadeOf
    notes: bytes
    facts: TargetFacts


def process_facts(process: Process) -> ProcessFacts:
    """The process's identity, for the image."""
    pid = process.pid
    fields = stat_fields(pid)
    status = parse_status(proc_read(pid, "status").decode(errors="replace"))
    cmdline = proc_read(pid, "cmdline").rstrip(b"\0").replace(b"\0", b" ")
    try:
        exe = os.readlink(task_directory(pid) / "exe")
    except OSError:
        exe = ""
    return ProcessFacts(
        pid=pid,
        ppid=int(fields[1]),
        pgrp=int(fields[2]),
        sid=int(fields[3]),
        uid=int(status["Uid"].split()[0]),
        gid=int(status["Gid"].split()[0]),
        comm=proc_read(pid, "comm").decode(errors="surrogateescape").rstrip("\n"),
        cmdline=cmdline.decode(errors="surrogateescape"),
        exe=exe,
        start_time=process.identity.start_time,
        boot_id=process.identity.boot_id,
    )
