"""The memory of a VM at its standby: each epoch is merged into it as it comes, so that it can run at once."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from checkpoint.deltas import FIRST, new_decompressor
from checkpoint.elf import Offsets
from checkpoint.errors import ImageError
from checkpoint.files import malformed
from checkpoint.image import EpochFile
from checkpoint.replication.tracking import engine_of, make_vm
from checkpoint.targets.vm_state import memory_of, put_vcpus, slots_of, vcpu_states, vm_facts
from kvmglue import VcpuState, huge_for
from uffdtrack import GuestRam
from uffdtrack.closing import Closing
from uffdtrack.runs import Pages

FRESH = 0.1
"""So many seconds the vCPUs' state is what they were given: their clock goes on, even if they stand."""


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
        self._placed: list[VcpuState] | None = None  # what the vCPUs have, since `_placed_at`
        self._placed_at = 0.0
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
        """Give the vCPUs their state: then the VM can be resumed. It costs nothing if they have just got it.

        Raises:
            ImageError, UnsupportedError: this VM cannot have it.
        """
        if self._placed is self._states and time.monotonic() < self._placed_at + FRESH:
            return
        self._placed = None
        put_vcpus(self.vm, self._states, "the epoch")
        self._placed, self._placed_at = self._states, time.monotonic()

    def close(self) -> None:
        del self._memory  # it would keep the RAM mapped
        self._open.close()

    def _put(self, epoch: EpochFile) -> None:
        """What can fail comes before the first byte changes."""
        with malformed(epoch.path):
            if epoch.pages not in self._memory:
                raise ValueError("it has pages where the VM has no memory")
            data = epoch.data()
            if epoch.deltas:
                epoch.deltas.merge_into(self._memory, data, self._decompressor)
        whole = epoch.offsets > FIRST
        self._write(epoch.pages[whole], data, epoch.offsets[whole])

    def _write(self, pages: Pages, data: npt.NDArray[np.uint8], places: Offsets) -> None:
        self._memory.put(pages, data, places)
