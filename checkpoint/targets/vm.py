"""A virtual machine of this process as a source of epochs, and its way back to one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from checkpoint.elf import Notes
from checkpoint.errors import RollbackRefusedError
from checkpoint.facts import ProcessFacts, TargetFacts, VmFacts
from checkpoint.source import Handed
from checkpoint.targets.vm_pending import VmPending
from checkpoint.targets.vm_state import (
    memory_of,
    output_note,
    read_memory,
    slots_of,
    vcpu_notes,
    vcpu_states,
    vcpu_thread,
)
from checkpoint.targets.vm_stop import Taken, exchange_running, leave_own_gate, stopping
from checkpoint.view import View
from kvmglue import KvmTracker, Outbox, Output, Positions, VcpuState, Vm
from uffdtrack import PAGE, Pending, Region, Rhythm, Runs, UffdTracker, Window, copy_changed
from uffdtrack.runs import Mask, Pages, expand, no_runs, to_runs

T = TypeVar("T")
_NONE = no_runs()


class VmTarget:
    """A VM that is being checkpointed. Addresses of its images are guest-physical.

    Args:
        vm: it may run.
        tracker: an active one, on its RAM.
        guest: the name of its guest, for people.
        outbox: of the VM; each epoch then has what the guest has sent since the one before.
        safe: called in any thread when epochs are safe, with up to where they have what the guest has sent.

    Attributes:
        pending: what was harvested and not handed over.
        states: of the vCPUs, at the last window.
        output: what the guest had sent at the last window, and was not handed over.
        stands: it stands after a window, until `vm.resume()`; after one that fails it runs.
    """

    ahead = 0

    def __init__(
        self,
        vm: Vm,
        tracker: KvmTracker | UffdTracker,
        guest: str,
        outbox: Outbox | None = None,
        safe: Callable[[Positions], None] = lambda upto: None,
    ) -> None:
        self.pid = os.getpid()
        self.vm, self.tracker = vm, tracker
        self.outbox = outbox
        self.output: Output | None = None
        self.stands = False
        self._safe = safe
        self.engine = tracker.traits.name
        self.max_dirty = tracker.max_dirty_pages
        self.behind = False
        self.rhythm = Rhythm()
        self._buffer = np.empty((0, PAGE), np.uint8)
        self._spare: list[npt.NDArray[np.uint8]] = []
        state = vm.system_state
        self._system_at = vm.system_address // PAGE
        self._system = np.zeros((len(state) // PAGE, PAGE), np.uint8)
        self._whole_system = True
        self.pending = VmPending()
        self.states: list[VcpuState] = []
        slots = [[slot.gfn, slot.pages] for slot in vm.ram.slots]
        self.regions = [_region(gfn, pages, f"[ram{i}]") for i, (gfn, pages) in enumerate(slots)] + [
            _region(self._system_at, len(self._system), "[system]")
        ]
        self._process = ProcessFacts(
            pid=self.pid, ppid=os.getppid(), pgrp=os.getpgrp(), sid=os.getsid(0), uid=os.getuid(),
            gid=os.getgid(), comm="vm", cmdline=f"vm {guest}", exe="", start_time=time.time_ns(), boot_id="",
        )  # fmt: skip
        self._facts = VmFacts(guest, len(vm.vcpus), slots, self._system.size)
        self._memory = memory_of(vm, self._system)

    # -- Source -----------------------------------------------------------------------------------

    def harvest(self, everything: bool) -> tuple[Runs, Runs]:
        """Harvest; a guest that stands at a threshold goes on."""
        with stopping():
            pages = exchange_running(self.tracker)
        if not everything:
            return to_runs(pages), _NONE
        self.pending = VmPending()
        self._whole_system = True
        if self.outbox:  # who gets a base has nothing of what came before
            self.outbox.take_back(self.outbox.released)
        return np.array([(r.start, r.end) for r in self.regions[:-1]], np.uint64), _NONE

    def postpone(self, runs: Runs, reset: Runs) -> None:
        self.pending.add(runs, reset)

    def copy(self, runs: Runs) -> tuple[Runs, Runs, memoryview]:
        pages = expand(runs)
        full, contents = self._copy(pages)
        return to_runs(pages[full]), to_runs(pages[~full]), contents

    def window(self) -> Window:
        with stopping(self.stands):
            try:
                taken = self._take()
            except BaseException:
                self.vm.resume()
                raise
            if not self.stands:
                self.vm.resume()
        return self._window(taken)

    def last_window(self) -> Window:
        """As `window`, but the VM stands after it, until `vm.resume()`, even if this fails."""
        with stopping(for_good=True):
            taken = self._take()
        return self._window(taken)

    def hand_over(self, at_once: bool = False) -> Handed:
        lent = self._buffer
        self._buffer = self._spare.pop() if self._spare else np.empty_like(lent)
        pending = self.pending
        output = self.output
        pending.output_from = output.start if output else None
        self.pending, self.output = VmPending(), None

        def safe() -> None:
            if output:
                self._safe(output.end)

        return Handed(pending, lambda: self._spare.append(lent), safe)

    def take_back(self, pending: Pending) -> None:
        self.pending.merge(pending)
        if self.outbox and isinstance(pending, VmPending) and pending.output_from:
            self.outbox.take_back(pending.output_from)

    def describe(self, window: Window) -> tuple[Notes, TargetFacts]:
        notes = vcpu_notes(self.states) + (output_note(self.output) if self.output else b"")
        facts = TargetFacts(self._process, vm=self._facts, output=self.output)
        return Notes(window.threads, self._process, notes), facts

    def persist(self, attempt: Callable[[], T], again: Callable[[], None]) -> T:
        """Do the work once: a VM keeps its memory."""
        return attempt()

    def settle(self, timeout: float) -> bool:
        """Does nothing: after a failed window all vCPUs run."""
        return True

    # -- parts of a window ------------------------------------------------------------------------

    def _take(self) -> Taken:
        """Stop it, harvest and copy."""
        started = time.perf_counter()
        full = self._stop()
        stopped = time.perf_counter()
        found = self.pending.note(self.tracker.exchange().gfn)
        self.states = [vcpu.state() for vcpu in self.vm.vcpus]
        self._collect()
        self.pending.note(self._system_changed())
        harvested = time.perf_counter()
        pages = self.pending.settle()
        times = started, stopped, harvested
        return Taken(pages, *self._copy(pages), (full, found), (*times, time.perf_counter()))

    def _window(self, taken: Taken) -> Window:
        data, pages, zero = self.pending.pages, taken.pages, _NONE
        if not taken.full.all():
            pages, zero = pages[taken.full], to_runs(pages[~taken.full])
            data = to_runs(pages)
        started, stopped, harvested, done = taken.times
        full, found = taken.touched
        return Window(
            regions=self.regions,
            threads=[vcpu_thread(i, state) for i, state in enumerate(self.states)],
            data=data,
            data_pages=pages,
            zero=zero,
            reset=_NONE,
            contents=taken.contents,
            unreadable=0,
            compared=1,
            scanned=self.tracker.traits.cost == "O(size)",
            touched=len(np.union1d(full, found)) if len(full) else len(found),
            stop_us=(stopped - started) * 1e6,
            harvest_us=(harvested - stopped) * 1e6,
            copy_us=(done - harvested) * 1e6,
            rearm_us=0.0,  # in the harvest: exchange()
            pause_us=(done - started) * 1e6,
        )

    def _stop(self) -> npt.NDArray[np.uint64]:
        """Bring every vCPU to the VM's gate, where its state is whole.

        At a threshold of `sync` they stand at the tracker's gate, anywhere in their own code: then harvest
        the full lists first, and return the pages.
        """
        self.vm.gate.close()
        full = self.pending.note(leave_own_gate(self.vm, self.tracker))
        self.vm.pause()
        return full

    def _collect(self) -> None:
        """Note what the guest has sent, with that of a window that was not handed over."""
        if self.outbox:
            if self.output:
                self.outbox.take_back(self.output.start)
            self.output = self.outbox.collect()

    def _system_changed(self) -> npt.NDArray[np.uint64]:
        changed = copy_changed(self.vm.system_state.reshape(-1, PAGE), self._system)
        if self._whole_system:
            changed = np.arange(len(self._system))
        self._whole_system = False
        return (changed + self._system_at).astype(np.uint64)

    def _copy(self, pages: Pages) -> tuple[Mask, memoryview]:
        """Which pages are not zeros, and the contents of those, in the buffer."""
        if len(self._buffer) < len(pages):
            self._buffer = np.empty((len(pages), PAGE), np.uint8)
        full, count = self._memory.take(pages, self._buffer)
        return full, self._buffer[:count].reshape(-1).data

    # -- the way back -----------------------------------------------------------------------------

    def rollback(self, view: View) -> int:
        """Put memory and vCPUs back to an epoch of this VM; returns how many pages it wrote.

        Everything is read before the first byte changes. The pages count as written by the host. A VM that
        was paused stays so.

        Raises:
            RollbackRefusedError: the epoch is of another machine; or its output is held: the guest would send
                some of it again.
            ImageError: the chain does not have all of it.
        """
        if self.outbox:
            raise RollbackRefusedError("a VM with an outbox is not put back: resume the epoch")
        states = vcpu_states(view.epoch)
        if slots_of(view.epoch) != list(self.vm.ram.slots) or len(states) != len(self.vm.vcpus):
            raise RollbackRefusedError(f"{view.epoch.path} is of a VM with other memory or other vCPUs")
        if any(vcpu.exit for vcpu in self.vm.vcpus):
            raise RollbackRefusedError("a vCPU of the VM has ended: resume the epoch in a fresh process")
        ram, system = np.zeros_like(self.vm.ram.pages()), np.zeros_like(self.vm.system_state)
        read_memory(view, self.vm, ram, system)
        was_paused = self.vm.is_paused
        self._stop()
        try:
            pages = self.vm.ram.pages()
            rows = np.flatnonzero((pages != ram).any(axis=1))
            for first, end in to_runs(rows.astype(np.uint64)).tolist():
                self.vm.ram.host_write(first, ram.reshape(-1)[first:end].data)
            self.vm.system_state[:] = system
            for vcpu, state in zip(self.vm.vcpus, states, strict=True):
                vcpu.set_state(state)
        finally:
            if not was_paused:
                self.vm.resume()
        return len(rows)


def _region(gfn: int, pages: int, name: str) -> Region:
    return Region(gfn * PAGE, (gfn + pages) * PAGE, "rwxp", 0, "0:0", 0, name)
