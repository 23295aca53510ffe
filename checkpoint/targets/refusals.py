"""Processes that we do not touch, each for a reason that we tell."""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress

from checkpoint.targets.exec import through_exec
from checkpoint.targets.visitors import find_visitor
from uffdtrack import (
    Process,
    descriptors,
    frozen_cgroup,
    how_to_be_allowed,
    proc_read,
    shares_memory,
    stat_fields,
    status_field,
    task_directory,
)
from uffdtrack.errors import PermissionDeniedError, TargetGoneError, TargetRefusedError

_PF_KTHREAD = 0x00200000


def check_target(pid: int) -> None:
    """Refuse a process that we cannot handle, before we touch anything.

    Raises:
        TargetGoneError, TargetRefusedError, PermissionDeniedError: with the reason.
    """
    fields = stat_fields(pid)
    if int(status_field(pid, "Tgid") or pid) != pid:
        raise TargetRefusedError(f"{pid} is a thread; give the process {status_field(pid, 'Tgid')}")
    if pid == os.getpid():
        raise TargetRefusedError("a process cannot checkpoint itself")
    if int(fields[6]) & _PF_KTHREAD:
        raise TargetRefusedError(f"{pid} is a thread of the kernel")
    task_directory(pid)
    visitor = find_visitor(pid)
    if visitor:
        raise TargetRefusedError(
            f"process {pid} is traced already, by process {visitor.tracer} (a debugger, strace?); "
            "end that first"
        )
    frozen = frozen_cgroup(pid)
    if frozen:
        raise TargetRefusedError(f"process {pid} is frozen, with its cgroup {frozen}: thaw that first")
    _check_program(pid)
    _check_memory(pid)
    for _, target in descriptors(pid):
        if target == "anon_inode:[userfaultfd]":
            raise TargetRefusedError(f"process {pid} uses userfaultfd itself, which leaves no room for ours")
    if any(flag in ("uw", "um", "ui") for flag in _vm_flags(pid)):
        raise TargetRefusedError(
            f"the memory of process {pid} is under a userfaultfd already: another uffdtrack, or its "
            "own program"
        )


def check_living_target(pid: int) -> None:
    """`check_target`, of a process that may be inside exec."""
    with suppress(TargetGoneError):
        check_target(pid)
        return
    with Process(pid) as process:
        through_exec(process, lambda: check_target(pid))


def _check_program(pid: int) -> None:
    try:
        with (task_directory(pid) / "exe").open("rb") as file:
            head = file.read(20)
    except FileNotFoundError as error:
        raise TargetGoneError(f"process {pid} has ended, or has no program") from error
    except PermissionError as error:
        raise PermissionDeniedError(
            f"not allowed to look into process {pid}. {how_to_be_allowed(pid)}"
        ) from error
    if len(head) < 20 or head[:4] != b"\x7fELF":
        raise TargetRefusedError(f"the program of process {pid} is not ELF")
    if head[4] != 2:
        raise TargetRefusedError(f"process {pid} is a 32-bit program; only x86-64 is supported")
    if struct.unpack_from("<H", head, 18)[0] != 62:
        raise TargetRefusedError(f"process {pid} is of another architecture; only x86-64 is supported")


def _check_memory(pid: int) -> None:
    """Check that no other process writes the same memory. Wait for a vfork, which is short."""
    deadline = time.monotonic() + 1
    others = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != pid]
    while others:
        others = [other for other in others if shares_memory(pid, other)]
        if others and time.monotonic() > deadline:
            raise TargetRefusedError(
                f"process {pid} has one memory with process {others[0]} (clone with CLONE_VM, vfork), "
                "which would write on while this one is stopped"
            )


def _vm_flags(pid: int) -> list[str]:
    text = proc_read(pid, "smaps")
    return [
        flag
        for line in text.split(b"\n")
        if line.startswith(b"VmFlags:")
        for flag in line[8:].decode().split()
    ]
