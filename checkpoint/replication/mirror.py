"""The memory of a VM at its standby: each epoch is merged into it as it comes, so that it can run at once."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from checkpoint.deltas import FIRST
from checkpoint.elf import ZERO
from checkpoint.errors import ImageError
from checkpoint.files import malformed
from checkpoint.image import EpochFile
from checkpoint.targets.vm_state import get_pages, put_pages, put_vcpus, slots_of, vcpu_states, vm_facts
from checkpoint.view import Contents, add_deltas, check_deltas, read_full
from kvmglue import VcpuState, Vm
from uffdtrack import PAGE, GuestRam
from uffdtrack.closing import Closing
from uffdtrack.errors import InvalidInputError
from uffdtrack.runs import BATCH, Pages, Rows, slices


class Mirror(Closing):
    """A paused VM with the memory of the epoch that was merged last.

    Args:
        base: an epoch that has all of the memory.

    Attributes:
        vm, ram: the VM. Only `ready` makes it one that can run.
        guest: its name, for people.

    Raises:
        ImageError: it is no epoch of a VM, or not whole.
        UnsupportedError, PermissionDeniedError: this host cannot run it.
    """

    def __init__(self, base: EpochFile) -> None:
        self._states = vcpu_states(base)
        self.guest = str(vm_facts(base).guest)
        with ExitStack() as stack:
            self.ram = stack.enter_context(GuestRam(slots=slots_of(base), shared=False))
            self.vm = stack.enter_context(Vm(self.ram, len(self._states)))
            if vm_facts(base).system_bytes != self.vm.system_state.size:
                raise ImageError(f"{base.path} was made by another version: its system memory is another")
            self.vm.system_state[:] = 0
            self._put(base)
            put_vcpus(self.vm, self._states, "the epoch")  # now, while there is time to do without
            self._open = stack.pop_all()

    def merge(self, epoch: EpochFile) -> None:
        """Make the memory that of an epoch whose parent was merged last.

        Raises:
            ImageError: it does not fit; then nothing has changed.
        """
        states = vcpu_states(epoch)
        if len(states) != len(self._states) or slots_of(epoch) != list(self.ram.slots):
            raise ImageError(f"{epoch.path} is of a VM with other memory or other vCPUs")
        self._put(epoch)
        self._states = states

    @property
    def states(self) -> list[VcpuState]:
        """Of the vCPUs, at the last epoch."""
        return self._states

    def ready(self) -> None:
        """Give the vCPUs their state: then the VM can be resumed.

        Raises:
            ImageError, UnsupportedError: this VM cannot have it.
        """
        put_vcpus(self.vm, self._states, "the epoch")

    def close(self) -> None:
        self._open.close()

    def _put(self, epoch: EpochFile) -> None:
        with malformed(epoch.path):
            self._check_places(epoch.pages)
        delta = np.flatnonzero(epoch.offsets <= FIRST)
        whole = np.flatnonzero(epoch.offsets > FIRST)
        changed = self._with_deltas(epoch, delta)  # they may not fit, so before anything is written
        for part in slices(len(whole), BATCH):
            self._write(epoch, whole[part], _contents(epoch, whole[part]))
        if len(delta):
            self._write(epoch, delta, changed)

    def _check_places(self, pages: Pages) -> None:
        system = self.vm.system_address // PAGE
        split = int(np.searchsorted(pages, system))
        try:
            self.ram.index(pages[:split])
        except InvalidInputError as error:
            raise ValueError(str(error)) from error
        if len(pages) > split and int(pages[-1]) - system >= len(self.vm.system_state) // PAGE:
            raise ValueError("it has pages where the VM has no memory")

    def _with_deltas(self, epoch: EpochFile, rows: Rows) -> Contents:
        if not len(rows):
            return np.empty((0, PAGE), np.uint8)
        out = get_pages(self.vm, epoch.pages[rows])
        for do in (add_deltas, check_deltas):
            do(epoch, out, np.arange(len(rows)), epoch.offsets[rows])
        return out

    def _write(self, epoch: EpochFile, rows: Rows, contents: Contents) -> None:
        put_pages(self.vm, self.ram.pages(), self.vm.system_state, epoch.pages[rows], contents)


def _contents(epoch: EpochFile, rows: Rows) -> Contents:
    """The contents of pages that are no deltas, shape (n, 4096)."""
    out = np.zeros((len(rows), PAGE), np.uint8)
    places = epoch.offsets[rows]
    full = np.flatnonzero(places > ZERO)
    if len(full):
        order = full[np.argsort(places[full], kind="stable")]
        read_full(epoch, out, order, places[order])
    return out
