"""Breakpoints of uprobes in the code of a process: they are no part of the program, nor of an epoch.

A probe replaces the first byte of an instruction, in a private copy of the page, and the kernel keeps its own
account of that. If we put such a byte back, or took it away, the process would have a breakpoint that the
kernel does not know, or the probe would miss its hits.
"""

from __future__ import annotations

import os
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from checkpoint.errors import RollbackRefusedError
from checkpoint.rollback.layout import Change, Stretches, protection
from checkpoint.rollback.plan import Plan
from checkpoint.rollback.stored import Image
from checkpoint.view import View
from uffdtrack import PAGE, Region, task_directory
from uffdtrack.runs import Mask, Pages, batches, between

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
            then = change.then
            if not then or not then.file_backed or protection(then) & 2:
                continue  # as `Stretches.code`
            key = then.device, then.inode
            if self._files.get(key, -1) < 0:
                self._files[key] = self._open((change.kept and change.now) or then)

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

    def read(self, pages: Pages, where: Stretches) -> tuple[Contents, Mask]:
        """Pages as their files have them, and which of them we could read."""
        out, known = np.zeros((len(pages), PAGE), np.uint8), np.zeros(len(pages), bool)
        rows = where.rows(pages).tolist()
        for i, (page, row) in enumerate(zip(pages.tolist(), rows, strict=True)):
            region = where.changes[row].then
            fd = self._files.get((region.device, region.inode), -1) if region else -1
            if fd >= 0 and region:
                with suppress(OSError):
                    at = region.offset + page * PAGE - region.start
                    known[i] = os.preadv(fd, [out[i].data], at) > 0
        return out, known

    def keep_breakpoints(self, plan: Plan, where: Stretches, image: Image) -> list[str]:
        """Leave the breakpoints of uprobes as they are: the kernel keeps its account of them.

        Args:
            plan: changed; `where` has its pages.

        Returns: warnings, since a program may have written such bytes itself.
        """
        writes, drops, between, left = [], [], [], []
        for pages, held in plan.write:
            plain, exact = self._sort(pages, held, where, image)
            writes.append(_chosen(plain, pages, held))
            between.append(exact)
            left.append(pages[~plain])
        for pages, held, anonymous in plan.drop:
            plain, exact = self._sort(pages, held, where, None)
            drops.append((*_chosen(plain, pages, held), anonymous))
            between.append(exact)
            left.append(pages[~plain])
        plan.write = [part for part in writes if len(part[0])]
        plan.drop = [part for part in drops if len(part[0])]
        plan.exact = [part for part in (*plan.exact, *between) if len(part[0])]
        left = [pages for pages in left if len(pages)]
        return _left_alone(np.concatenate(left), where) if left else []

    def _sort(
        self, pages: Pages, now: Contents, where: Stretches, image: Image | None
    ) -> tuple[Mask, tuple[Pages, Contents, Contents]]:
        """Which pages get their contents of then, and those of the others that get something between.

        Args:
            image: None: they get what their files have.
        """
        plain = np.ones(len(pages), bool)
        code = np.flatnonzero(where.code[where.rows(pages)])
        if not len(code):
            return plain, (pages[:0], now[:0], now[:0])
        files, known = self.read(pages[code], where)
        code, files = code[known], files[known]
        then = image.read(pages[code]) if image else files
        wanted = np.where(uprobes(now[code], then, files), now[code], then)
        plain[code] = (wanted == then).all(axis=1)
        differs = ~plain[code] & (wanted != now[code]).any(axis=1)
        at = code[differs]
        return plain, (pages[at], now[at], wanted[differs])


def _chosen(rows: Mask, pages: Pages, held: Contents) -> tuple[Pages, Contents]:
    """Some of the rows, without a copy if that is all of them."""
    return (pages, held) if rows.all() else (pages[rows], held[rows])


def _left_alone(pages: Pages, where: Stretches) -> list[str]:
    names = {where.changes[row].then: None for row in np.unique(where.rows(pages)).tolist()}
    return [f"breakpoints in {region.name} are left as they are" for region in names if region]


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
