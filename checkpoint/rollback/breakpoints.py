"""Breakpoints of uprobes in the code of a process: they are no part of the program, nor of an epoch.

A probe replaces the first byte of an instruction, in a private copy of the page, and the kernel keeps its own
account of that. If we put such a byte back, or took it away, the process would have a breakpoint that the
kernel does not know, or the probe would miss its hits.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from checkpoint.errors import RollbackRefusedError
from checkpoint.rollback.layout import Change, Stretches, protection
from checkpoint.view import View
from uffdtrack import PAGE, Region, task_directory
from uffdtrack.runs import Pages, batches, between

_INT3, _CALL = 0xCC, 0xE8
_NOP5 = np.array([0x0F, 0x1F, 0x44, 0, 0], np.uint8)
_RSP = slice(152, 160)  # of struct user_regs_struct
_SEARCHED = 256  # pages of a stack at a time

Contents = npt.NDArray[np.uint8]
"""Pages back to back, shape (n, 4096)."""


def uprobes(now: Contents, then: Contents, files: Contents) -> npt.NDArray[np.bool_]:
    """A mask of the bytes that differ between two moments only because a uprobe has come or gone.

    Args:
        files: the same pages as their file has them.
    """
    differs: npt.NDArray[np.bool_] = now != then
    found = np.zeros(now.shape, np.bool_)
    if not differs.any():
        return found
    for one, other in ((now, then), (then, now)):
        found |= differs & (one == _INT3) & (other == files)
    # Linux 6.18 makes a five-byte nop into a call, by way of an int3.
    for row in np.flatnonzero(differs.any(axis=1)).tolist():
        for at in np.flatnonzero(
            (np.lib.stride_tricks.sliding_window_view(files[row], 5) == _NOP5).all(axis=1)
        ):
            place = slice(int(at), int(at) + 5)
            heads = {int(now[row, at]), int(then[row, at])}
            if heads & {_INT3, _CALL} and heads <= {_INT3, _CALL, int(_NOP5[0])}:
                found[row, place] = differs[row, place]
    return found


class Programs:
    """The files of a process's code, opened before it is stopped."""

    def __init__(self, pid: int, changes: list[Change]) -> None:
        self._pid = pid
        self._files: dict[tuple[str, int], int] = {}
        for change in changes:
            region = change.now if change.kept else change.then
            if not region or not region.file_backed or protection(region) & 2:
                continue
            key = region.device, region.inode
            if self._files.get(key, -1) < 0:
                self._files[key] = self._open(region)

    def _open(self, region: Region) -> int:
        """The file behind a mapping, whatever file has its name now; -1: we cannot open it."""
        task = task_directory(self._pid)
        for path in (
            task.parent.parent / "map_files" / f"{region.start:x}-{region.end:x}",
            task / "root" / region.name[1:],
            region.name,
        ):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                continue
            if os.fstat(fd).st_ino == region.inode:
                return fd
            os.close(fd)
        return -1

    def close(self) -> None:
        for fd in self._files.values():
            if fd >= 0:
                os.close(fd)
        self._files = {}

    def read(self, pages: Pages, where: Stretches) -> Contents:
        """Pages as their files have them; a page that we cannot read does not look like code."""
        out = np.zeros((len(pages), PAGE), np.uint8)
        rows = where.rows(pages).tolist()
        for i, (page, row) in enumerate(zip(pages.tolist(), rows, strict=True)):
            region = where.changes[row].then
            fd = self._files.get((region.device, region.inode), -1) if region else -1
            if fd >= 0 and region:
                try:
                    os.preadv(fd, [out[i].data], region.offset + page * PAGE - region.start)
                except OSError:
                    continue
        return out


def check_return_probes(view: View) -> None:
    """Refuse uretprobes: such a function returns to the kernel's own mapping, whose account is of now.

    Raises:
        RollbackRefusedError: a thread is in such a function at the epoch.
    """
    area = next((r.start for r in view.epoch.regions if r.name == "[uprobes]"), 0)
    if not area:
        return
    for thread in view.epoch.threads:
        stack = int.from_bytes(thread.regs[_RSP], "little")
        region = next((r for r in view.epoch.regions if r.start <= stack < r.end), None)
        if not region:
            continue
        for pages in batches(view.pages[between(view.pages, stack, region.end)], _SEARCHED):
            words = view.read(pages).view(np.uint64)
            above = pages[:, None] * np.uint64(PAGE) + np.arange(0, PAGE, 8, dtype=np.uint64) >= stack
            if ((words == area) & above).any():
                raise RollbackRefusedError(
                    f"at epoch {view.epoch.epoch} thread {thread.tid} is in a function whose return is "
                    "probed (uretprobe): the kernel keeps where it returns to, and that is not rolled back"
                )
