"""The guest's memory that is not RAM: its program, page tables, mailboxes, stacks."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvmglue._sys import check, ffi, lib
from uffdtrack import PAGE, Memslot

HUGE = 512
"""Pages of 2 MiB."""
_TABLE = 512 * 8
_PRESENT, _LARGE = 0x67, 0x80
"""Flags: writable, for ring 3, accessed and dirty already, so that the processor never writes to a table."""


class SystemMemory:
    """One piece of memory at guest address `KG_SYSTEM_AT`, which is not tracked.

    Its first `state_bytes` are part of a checkpoint: code, then a mailbox and a stack of a page each for
    every vCPU, then page tables. Behind them, if there are lists, are the logs and the lists of orders.

    Args:
        slots: of the RAM; the tables map them back to back.
        vcpus: how many.
        list_rows: how many rows fit into a vCPU's list.
    """

    def __init__(self, slots: Sequence[Memslot], vcpus: int, list_rows: int) -> None:
        rows = sum(slot.pages for slot in slots)
        self._mailboxes = int(lib.KG_PROGRAM_BYTES)
        self._stacks = self._mailboxes + vcpus * PAGE
        self._tables = self._stacks + vcpus * PAGE
        tables = _Tables(slots, self._tables)
        self.state_bytes = self._tables + len(tables.pages) * PAGE
        self._log_bytes = -(-rows // 64) * 8 if list_rows else 0
        self._list_bytes = list_rows * 8
        self._logs = self.state_bytes
        self._lists = self._logs + vcpus * self._log_bytes
        size = self._lists + vcpus * self._list_bytes
        self._map = mmap.mmap(-1, -(-size // PAGE) * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.array: npt.NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        check(lib.kg_load_program(ffi.from_buffer("uint8_t[]", self._map)), "load the guest program")
        self.array[self._tables : self.state_bytes] = np.concatenate(tables.pages).view(np.uint8)
        for vcpu in range(vcpus):
            mailbox = self.mailbox(vcpu)
            mailbox.vcpu = vcpu
            mailbox.list, mailbox.log = self.list_at(vcpu), self.log_at(vcpu)

    @property
    def tables_at(self) -> int:
        return int(lib.KG_SYSTEM_AT) + self._tables

    def mailbox_at(self, vcpu: int) -> int:
        return int(lib.KG_SYSTEM_AT) + self._mailboxes + vcpu * PAGE

    def stack_at(self, vcpu: int) -> int:
        """The top of a vCPU's stack, aligned as after a call."""
        return int(lib.KG_SYSTEM_AT) + self._stacks + (vcpu + 1) * PAGE - 64

    def list_at(self, vcpu: int) -> int:
        return int(lib.KG_SYSTEM_AT) + self._lists + vcpu * self._list_bytes if self._list_bytes else 0

    def log_at(self, vcpu: int) -> int:
        return int(lib.KG_SYSTEM_AT) + self._logs + vcpu * self._log_bytes if self._log_bytes else 0

    def mailbox(self, vcpu: int) -> ffi.CData:
        return ffi.cast("kg_mailbox *", ffi.from_buffer(self._map) + self._mailboxes + vcpu * PAGE)

    def rows(self, vcpu: int) -> npt.NDArray[np.uint64]:
        """The list of an order: shape (list_rows,)."""
        first = self._lists + vcpu * self._list_bytes
        return self.array[first : first + self._list_bytes].view(np.uint64)

    def log(self, vcpu: int) -> npt.NDArray[np.uint64]:
        """One bit for each row that the vCPU has written."""
        first = self._logs + vcpu * self._log_bytes
        return self.array[first : first + self._log_bytes].view(np.uint64)


class _Tables:
    """x86-64 page tables: RAM at KG_RAM_AT, system memory at its physical address."""

    def __init__(self, slots: Sequence[Memslot], at: int) -> None:
        self._at = int(lib.KG_SYSTEM_AT) + at
        self.pages: list[npt.NDArray[np.uint64]] = []
        self._top = self._new()
        system = int(lib.KG_SYSTEM_AT)
        for i in range(64):  # 128 MiB; what is not in the slot is never touched
            self._set(system + i * HUGE * PAGE, system + i * HUGE * PAGE, large=True)
        row = 0
        for slot in slots:
            self._map_slot(slot, row)
            row += slot.pages

    def _new(self) -> int:
        self.pages.append(np.zeros(512, np.uint64))
        return len(self.pages) - 1

    def _map_slot(self, slot: Memslot, first: int) -> None:
        row = 0
        while row < slot.pages:
            at, gfn = int(lib.KG_RAM_AT) // PAGE + first + row, slot.gfn + row
            large = not at % HUGE and not gfn % HUGE and slot.pages - row >= HUGE
            self._set(at * PAGE, gfn * PAGE, large)
            row += HUGE if large else 1

    def _set(self, virtual: int, physical: int, large: bool) -> None:
        table = self._top
        for shift in (39, 30) if large else (39, 30, 21):
            entry = virtual >> shift & 511
            if not self.pages[table][entry]:
                below = self._new()
                self.pages[table][entry] = self._at + below * _TABLE | _PRESENT
            table = (int(self.pages[table][entry]) - self._at) // _TABLE
        self.pages[table][virtual >> (21 if large else 12) & 511] = (
            physical | _PRESENT | (_LARGE if large else 0)
        )
