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
from checkpoint.targets.vm_state import put_vcpus, slots_of, vcpu_states, vm_facts
from checkpoint.view import Contents, read_full
from kvmglue import VcpuState, huge_for
from uffdtrack import PAGE, GuestRam
from uffdtrack.closing import Closing
from uffdtrack.errors import InvalidInputError
from uffdtrack.runs import BATCH, Pages, Rows, slices

Places = tuple[Rows, Rows]
"""Where pages of a VM are: rows of its RAM, then those of the memory beside it."""


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
            places = self._places(epoch.pages)
        is_delta = epoch.offsets <= FIRST
        self._put_deltas(epoch, is_delta.nonzero()[0], places)  # they may not fit: so before the others
        whole = (~is_delta).nonzero()[0]
        for part in slices(len(whole), BATCH):
            self._write(places, whole[part], _contents(epoch, whole[part]))

    def _put_deltas(self, epoch: EpochFile, rows: Rows, places: Places) -> None:
        """XOR deltas into the memory: they leave most of it alone. If they do not fit, all is as before."""
        if not len(rows):
            return
        assert epoch.deltas
        ram, system = _parts(rows, places)
        of_ram, of_system = np.split(FIRST - epoch.offsets[rows], [len(ram)])
        beside = self.vm.system_state.reshape(-1, PAGE)
        done: list[tuple[Contents, Rows]] = []
        with malformed(epoch.path):
            prepared = epoch.deltas.prepared(epoch.data(), self._decompressor)
            try:
                for memory, at, of in ((self.ram.pages(), ram, of_ram), (beside, system, of_system)):
                    where = np.full(len(rows), -1)
                    where[of] = at
                    prepared.xor_into(memory, where)
                    done.append((memory, where))
                    epoch.deltas.check(memory, at, of)
            except BaseException:
                for memory, where in done:
                    prepared.xor_into(memory, where)
                raise

    def _places(self, pages: Pages) -> Places:
        """Raises: ValueError: the VM has no memory there."""
        system = self.vm.system_address // PAGE
        split = int(np.searchsorted(pages, system))
        try:
            ram = self.ram.index(pages[:split])
        except InvalidInputError as error:
            raise ValueError(str(error)) from error
        beside = (pages[split:] - np.uint64(system)).astype(np.int64)
        if len(beside) and int(beside[-1]) >= len(self.vm.system_state) // PAGE:
            raise ValueError("it has pages where the VM has no memory")
        return ram, beside

    def _write(self, places: Places, rows: Rows, contents: Contents) -> None:
        ram, system = _parts(rows, places)
        self.ram.pages()[ram] = contents[: len(ram)]
        self.vm.system_state.reshape(-1, PAGE)[system] = contents[len(ram) :]


def _parts(rows: Rows, places: Places) -> Places:
    """The places of some of an epoch's pages."""
    ram, system = places
    split = int(np.searchsorted(rows, len(ram)))
    return ram[rows[:split]], system[rows[split:] - len(ram)]


def _contents(epoch: EpochFile, rows: Rows) -> Contents:
    """The contents of pages that are no deltas, shape (n, 4096)."""
    out = np.zeros((len(rows), PAGE), np.uint8)
    places = epoch.offsets[rows]
    full = np.flatnonzero(places > ZERO)
    if len(full):
        order = full[np.argsort(places[full], kind="stable")]
        read_full(epoch, out, order, places[order])
    return out
