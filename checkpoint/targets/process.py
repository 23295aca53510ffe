"""A live process: what it is, whether we may touch it, what it has open."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from checkpoint.attributes import Recorder
from checkpoint.heads import heads_note, is_file_of
from checkpoint.image import NT_AUXV, file_note, note, thread_notes
from checkpoint.objects import Snapshot, parse_status
from checkpoint.once import Once
from checkpoint.targets.kernel_state import Reader
from checkpoint.targets.visitors import Visitor, dumps_core, find_visitor, may_trace
from uffdtrack import (
    AddressSpace,
    Pending,
    Region,
    Runs,
    Tracee,
    Window,
    frozen_cgroup,
    how_to_be_allowed,
    open_pidfd,
    shares_memory,
    status_field,
    task_directory,
)
from uffdtrack.errors import (
    EpochSkippedError,
    NewMemoryError,
    PermissionDeniedError,
    StopTimeoutError,
    TargetError,
    TargetGoneError,
    TargetRefusedError,
)

T = TypeVar("T")
_PF_KTHREAD = 0x00200000
_IN_FLIGHT = "{} is in use: writes into pinned buffers in flight escape every tracker"
EXEC_SECONDS = 10
"""How long a process that does nothing but exec is tried again."""
DUMPING = "the kernel writes a core of the process"
UNSEEN_VISITS = 3
"""Times in a row that we may be forbidden to trace without a tracer to be seen, until we believe it."""
MANY_MAPPINGS = 0.8
"""The share of vm.max_map_count from which on a target is told of."""
EXEC_POLL = 0.02
"""Seconds that a process without memory, in exec or at its end, is given to become one of the two."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Tells a process from every other one, also after its pid was used again."""

    pid: int
    start_time: int
    boot_id: str


def proc_read(pid: int, name: str) -> bytes:
    """A file of /proc/PID, as a living thread has it.

    Raises:
        TargetGoneError, PermissionDeniedError: as they say.
    """
    try:
        return (task_directory(pid) / name).read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetGoneError(f"there is no process {pid}") from error
    except PermissionError as error:
        raise PermissionDeniedError(f"cannot read /proc/{pid}/{name}. {how_to_be_allowed(pid)}") from error


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: index 0 is field 3 of proc_pid_stat(5).

    Raises:
        TargetGoneError: there is no such process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetGoneError(f"there is no process {pid}") from error
    return text[text.rindex(")") + 2 :].split()


def identify(pid: int) -> Identity:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Identity(pid, int(stat_fields(pid)[19]), boot)


def check_target(pid: int) -> None:
    """Refuse what cannot be handled, before anything is touched.

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
    """`check_target`, of one that may be inside of exec: much of /proc says then that there is none."""
    try:
        check_target(pid)
        return
    except TargetGoneError:
        pidfd = open_pidfd(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + EXEC_SECONDS
    try:
        while True:
            try:
                check_target(pid)
                return
            except TargetGoneError:
                if poll.poll(EXEC_POLL * 1000) or time.monotonic() > deadline:
                    raise
    finally:
        os.close(pidfd)


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
    """No other process writes the same memory. A vfork in progress, which is short, is waited for."""
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


def descriptors(pid: int) -> list[tuple[int, str]]:
    """The open files: number, and what /proc/PID/fd says it is."""
    found = []
    try:
        links = os.open(task_directory(pid) / "fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, TargetGoneError):
        return []
    except PermissionError as error:
        raise PermissionDeniedError(
            f"not allowed to look into process {pid}. {how_to_be_allowed(pid)}"
        ) from error
    try:
        for name in os.listdir(links):
            with contextlib.suppress(OSError):
                found.append((int(name), os.readlink(name, dir_fd=links)))
    except FileNotFoundError:
        pass  # it has called exec, or ended, since
    finally:
        os.close(links)
    return sorted(found)


def named_files(regions: list[Region]) -> list[Region]:
    """One mapping of each file."""
    return list({r.name: r for r in regions if r.inode and r.name.startswith("/")}.values())


def mapped_files(regions: list[Region], pid: int | None = None) -> dict[str, list[int]]:
    """Mapped files that can be found by name: device, inode, size and mtime in ns.

    Args:
        pid: of the process; with it, also what only it finds by that name (a container).
    """
    files: dict[str, list[int]] = {}
    roots = ("", f"{task_directory(pid)}/root") if pid else ("",)
    for region in named_files(regions):
        for root in roots:
            try:
                s = os.stat(root + region.name)
            except (OSError, ValueError):
                continue
            if is_file_of(region, s):
                files[region.name] = [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns]
                break
    return files


def warnings_for(regions: list[Region]) -> dict[str, str]:
    """What a checkpoint of these mappings may miss, in words, each by a name under which it is told once."""
    warnings = {}
    if any(r.kind == "ring" and r.name.startswith("/[aio]") for r in regions):
        warnings["aio"] = _IN_FLIGHT.format("aio")
    shared = sum(r.size for r in regions if r.shared and r.stored)
    if shared >= 256 << 20:
        warnings["shared"] = (
            f"{shared >> 20} MiB of shared mappings are compared at each epoch, since others can write "
            "them: pauses grow with what of them is in use"
        )
    left_out: dict[str, list[Region]] = {}
    for region in regions:
        if region.left_out:
            left_out.setdefault(region.name, []).append(region)
    for name, parts in left_out.items():
        warnings[f"left out {name}"] = (
            f"{name}, {sum(r.size for r in parts) >> 10} KiB at {parts[0].start:#x}, is left out of the "
            f"image: it is {parts[0].left_out}"
        )
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    if len(regions) > MANY_MAPPINGS * most:
        warnings["mappings"] = (
            f"the process has {len(regions)} mappings of at most {most}. New memory beside memory that is "
            "tracked stays a mapping of its own until the next epoch, so it may reach the limit earlier: "
            "raise it with sysctl vm.max_map_count"
        )
    return warnings


class ProcessTarget:
    """A process that is being checkpointed. Closing it takes every trap away; the process runs on."""

    def __init__(self, pid: int, engine: str = "scan", max_dirty: int | None = None) -> None:
        """Attach to a process that `check_target` has passed.

        Args:
            engine, max_dirty: see `AddressSpace.attach`.
        """
        self.pid = pid
        self.engine = engine
        self.max_dirty = max_dirty
        self._visitor: Visitor | None = None
        self._unseen = 0
        self._frozen = False
        self.identity = identify(pid)
        self._warned: set[str] = set()
        self._read: tuple[Snapshot, tuple[dict[str, Any], bytes]] | None = None
        self._file_note, self._named_files, self._warnings = (
            Once(file_note), Once(named_files), Once(warnings_for),
        )  # fmt: skip
        self.pidfd = open_pidfd(pid)
        self.tracee = Tracee(pid)
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def new_warnings(self, regions: list[Region], files: Iterable[str]) -> list[str]:
        """What a checkpoint may miss, and was not told before.

        Args:
            files: what /proc/PID/fd says of its descriptors.
        """
        found = dict(self._warnings(regions))
        if "anon_inode:[io_uring]" in files:
            found["io_uring"] = _IN_FLIGHT.format("io_uring")
        new = [text for name, text in found.items() if name not in self._warned]
        self._warned |= found.keys()
        return new

    def reattach(self) -> None:
        """After exec: the memory is another one, and so may be the kind of program."""
        self.space.close()
        self.tracee.settle(5)
        self._await_visitor()
        try:
            self._attach()
        except (PermissionDeniedError, TargetRefusedError) as error:
            self._unseen += 1
            if find_visitor(self.pid) or (
                isinstance(error, PermissionDeniedError) and self._unseen < UNSEEN_VISITS
            ):
                raise self._visited() from error
            raise
        self._unseen = 0

    def ended(self, seconds: float = 0) -> bool:
        """Whether the process has ended, or does within some seconds.

        Its pidfd knows. All else that can be asked says the same of one that is just inside of exec.
        """
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _attach(self) -> None:
        deadline = time.monotonic() + EXEC_SECONDS
        while True:
            try:
                check_target(self.pid)
                self.space = AddressSpace.attach(self.pid, self.engine, self.max_dirty)
                self._objects, self._attributes = Reader(self.pid), Recorder(self.pid)
                return
            except TargetGoneError:
                if self.ended(EXEC_POLL) or time.monotonic() > deadline:
                    raise

    def share_time(self, sharers: int) -> None:
        """So many processes have the time together that reading /proc may take of one."""
        self._attributes.sharers = self._objects.sharers = sharers

    def facts(self) -> dict[str, Any]:
        """Who the process is, for the image."""
        fields = stat_fields(self.pid)
        status = parse_status(proc_read(self.pid, "status").decode(errors="replace"))
        cmdline = proc_read(self.pid, "cmdline").rstrip(b"\0").replace(b"\0", b" ")
        try:
            exe = os.readlink(task_directory(self.pid) / "exe")
        except OSError:
            exe = ""
        return {
            "pid": self.pid,
            "ppid": int(fields[1]),
            "pgrp": int(fields[2]),
            "sid": int(fields[3]),
            "uid": int(status["Uid"].split()[0]),
            "gid": int(status["Gid"].split()[0]),
            "comm": proc_read(self.pid, "comm").decode(errors="surrogateescape").rstrip("\n"),
            "cmdline": cmdline.decode(errors="surrogateescape"),
            "exe": exe,
            "start_time": self.identity.start_time,
            "boot_id": self.identity.boot_id,
        }

    def harvest(self, everything: bool) -> tuple[Runs, Runs]:
        return self._stopping(lambda: self.space.harvest(self.tracee, everything))

    def copy(self, runs: Runs) -> tuple[Runs, Runs, memoryview]:
        self.space.copy(runs)
        return self.space.split_zero(runs)

    def window(self, pending: Pending) -> Window:
        return self._stopping(lambda: self.space.window(self.tracee, pending))

    def _stopping(self, work: Callable[[], T]) -> T:
        """What may stop it, if it is well stopped now; a base would be copied for nothing, if not."""
        self.check_stop()
        try:
            return work()
        except (PermissionDeniedError, StopTimeoutError) as error:
            why = self.why_not_stopped(error)
            if not why:
                raise
            raise why from error

    def check_stop(self) -> None:
        """Raises: EpochSkippedError: it is better not stopped now."""
        self._await_visitor()
        self._await_thaw()
        if dumps_core(self.pid):  # which PTRACE_INTERRUPT would cut short
            raise EpochSkippedError(DUMPING)

    def why_not_stopped(self, error: PermissionDeniedError | StopTimeoutError) -> TargetError | None:
        """What a stop that has failed means: another one is to be tried later, or it has ended just then."""
        if isinstance(error, PermissionDeniedError):
            traceable = may_trace(self.pid)
            if self.ended(0 if traceable else EXEC_POLL):
                return TargetGoneError(f"process {self.pid} has ended")
            return self._visited() if traceable else None
        if dumps_core(self.pid):
            return EpochSkippedError(DUMPING)
        self._frozen = frozen_cgroup(self.pid) is not None
        return EpochSkippedError(self.tracee.late_reason)

    def _await_visitor(self) -> None:
        """A visitor that we know of is asked for first: each stop that fails costs the target some time."""
        if self._visitor and self._visitor.is_here():
            raise EpochSkippedError(f"{self._visitor} traces the process")
        self._visitor = None

    def _visited(self) -> EpochSkippedError:
        """Somebody has taken the process from us. It may have been for a moment, and over by now."""
        self.tracee.settle(0.1)  # threads that are not the visitor's were called to stop
        self.space.passed_over()
        self._visitor = find_visitor(self.pid)
        return EpochSkippedError(f"{self._visitor or 'another process'} traces the process")

    def _await_thaw(self) -> None:
        """What is known to be frozen is asked to stop again after the thaw only."""
        frozen = self._frozen and frozen_cgroup(self.pid)
        if frozen:
            raise EpochSkippedError(f"the cgroup {frozen} of the process is frozen")
        self._frozen = False

    def describe(self, window: Window) -> tuple[bytes, dict[str, Any]]:
        try:
            objects = self._objects.read(window.regions)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise TargetGoneError(f"process {self.pid} has ended") from error
        facts, auxv = self._read_with(objects)
        notes = thread_notes(window.threads, facts)
        notes += note(b"CORE", NT_AUXV, auxv) + self._file_note(window.regions) + heads_note(window.heads)
        files = [d.target for d in objects.descriptors.values()]
        heap = [r.end for r in window.regions if r.name == "[heap]"]
        if self.space.is_gone and not self.ended():
            # All this was read after the stop: it may be of another program than what was copied in it.
            raise NewMemoryError(f"process {self.pid} has replaced its program (exec)")
        return notes, {
            "process": facts,
            "objects": objects,
            "files": mapped_files(self._named_files(window.regions), self.pid),
            "heap_end": max(heap, default=0),
            **self._attributes.facts(window.regions),
            "warnings": self.new_warnings(window.regions, files),
        }

    def _read_with(self, objects: Snapshot) -> tuple[dict[str, Any], bytes]:
        """Facts and auxv, read when `objects` are."""
        if self._read is None or self._read[0] is not objects:
            self._read = objects, (self.facts(), proc_read(self.pid, "auxv"))
        return self._read[1]

    def settle(self, timeout: float) -> bool:
        return self.tracee.settle(timeout)

    def close(self) -> None:
        """Idempotent."""
        if hasattr(self, "space"):
            self.space.close()
        if self.pidfd >= 0:
            self.tracee.settle(2)
            self.tracee.close()
            os.close(self.pidfd)
            self.pidfd = -1

    def __enter__(self) -> ProcessTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
