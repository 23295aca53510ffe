"""The memory of a VM at its standby: each epoch is merged into it as it comes, so that it can run at once."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from checkpoint.deltas import FIRST, new_decompressor
from checkpoint.elf import ZERO
from checkpoint.errors import ImageError
from checkpoint.files import malformed
from checkpoint.image import EpochFile
from checkpoint.replication.tracking import engine_of, make_vm
from checkpoint.targets.vm_state import memory_of, put_vcpus, slots_of, vcpu_states, vm_facts
from checkpoint.view import Contents, read_full
from kvmglue import VcpuState, huge_for
from uffdtrack import PAGE, GuestRam
from uffdtrack.closing import Closing
from uffdtrack.runs import BATCH, Pages, Rows, slices


class Mirror(Closing):
    """A paused VM with the memory of the epoch that was merged last.

    Args:
        base: an epoch that has all of the memory.

    Attributes:
        vm, ram: the VM. Only `ready` makes it one that can run. engine: that notices its writes then.
        guest: its name, for people.

    Raises:
        ImageError: it is no epoch of a VM, or not whole.
        UnsupportedError, PermissionDeniedError: this host cannot run it.
    """

    def __init__(self, base: EpochFile) -> None:
        self._states = vcpu_states(base)
        self._placed: list[VcpuState] | None = None  # what the vCPUs have
        self._decompressor = new_decompressor()
        self.guest = str(vm_facts(base).guest)
        self.engine = engine_of(base)
        with ExitStack() as stack:
            huge = huge_for(self.engine)
            self.ram = stack.enter_context(GuestRam(slots=slots_of(base), shared=False, huge=huge))
            self.vm = stack.enter_context(make_vm(self.engine, self.ram, len(self._states)))
            if vm_facts(base).system_bytes != self.vm.system_state.size:
                raise ImageError(f"{base.path} was made by another version: its system memory is another")
            self.vm.system_state[:] = 0
            self._memory = memory_of(self.vm, self.vm.system_state)
            self._put(base)
            self.ready()  # now, while there is time to do without
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
        """Give the vCPUs their state: then the VM can be resumed. It costs nothing if they have it.

        Raises:
            ImageError, UnsupportedError: this VM cannot have it.
        """
        if self._placed is not self._states:
            self._placed = None
            put_vcpus(self.vm, self._states, "the epoch")
            self._placed = self._states

    def close(self) -> None:
        self._open.close()

    def _put(self, epoch: EpochFile) -> None:
        with malformed(epoch.path):
            if epoch.pages not in self._memory:
                raise ValueError("it has pages where the VM has no memory")
            if epoch.deltas:  # they may not fit: so before the others
                epoch.deltas.merge_into(self._memory, epoch.data(), self._decompressor)
        whole = (epoch.offsets > FIRST).nonzero()[0]
        for part in slices(len(whole), BATCH):
            self._write(epoch.pages[whole[part]], _contents(epoch, whole[part]))

    def _write(self, pages: Pages, contents: Contents) -> None:
        self._memory.put(pages, contents)


def _contents(epoch: EpochFile, rows: Rows) -> Contents:
    """The contents of pages that are no deltas, shape (n, 4096)."""
    out = np.zeros((len(rows), PAGE), np.uint8)
    places = epoch.offsets[rows]
    full = np.flatnonzero(places > ZERO)
    if len(full):
        order = full[np.argsort(places[full], kind="stable")]
        read_full(epoch, out, order, places[order])
    return out
