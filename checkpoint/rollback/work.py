"""One rollback of a live process that stands, whole or not at all.

We read, verify and plan everything before the target changes; if a step fails after that, we undo it and
those before it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from checkpoint.errors import RollbackRefusedError
from checkpoint.objects import resolve
from checkpoint.rollback.breakpoints import Programs, check_return_probes
from checkpoint.rollback.contents import Memory
from checkpoint.rollback.differences import differences
from checkpoint.rollback.layout import SMAPS_SECONDS, Layout, Stretches
from checkpoint.rollback.mappings import Mappings
from checkpoint.rollback.outcome import Outcome
from checkpoint.rollback.own_process import PARTLY
from checkpoint.rollback.plan import Changes, Plan
from checkpoint.rollback.registrations import Registrations
from checkpoint.rollback.sharers import Mappers, Sharing
from checkpoint.rollback.stored import Image
from checkpoint.rollback.threads import born_since, check_shadow_stacks
from checkpoint.rollback.torn import at_risk, torn
from checkpoint.targets.kernel_state import is_device, kernel_mappings, read_state, snapshot
from checkpoint.view import View
from uffdtrack import PAGE, Runs, Tracee
from uffdtrack.closing import Closing
from uffdtrack.errors import MaxStopError, TargetError, TargetGoneError, UffdtrackError
from uffdtrack.runs import Pages, merge_runs

QUICK = 0.0005
"""Seconds that a stop may take longer for attributes that were set just before it."""


def _nothing_to_do(pages: Pages) -> None:
    """There are no traps."""


class ProcessRollback(Closing):
    """One rollback of a target: `check`, `map_back`, `apply`, and then `commit` or `taken_back`.

    The constructor finds out what it can before the target stops.

    Attributes:
        most: the target may stand for so many seconds, if that is less than what the watchdog gives it.
    """

    def __init__(
        self,
        pid: int,
        view: View,
        anyway: bool,
        others: Sequence[tuple[int, int]] = (),
        changes: Changes | None = None,
        mappers: Mappers | None = None,
    ) -> None:
        """Args:
        anyway: see `rollback`.
        others: address ranges that another process shares; the contents are put back through that one.
        changes: None: all of the memory is compared.
        mappers: who maps what it shares; None: of this process, rolled back alone.
        """
        self.pid = pid
        self.changes = changes
        self.most: float | None = None
        self._memory = -1
        self.view = view
        self.anyway = anyway
        self.others = others
        self.outcome = Outcome(view.epoch.epoch)
        self.set: list[int] = []
        self.written = Plan()
        self.then = resolve(file.facts.objects for file in view.own_sources)
        # First: what is compared before the stop is not to grow old.
        self.sharing = Sharing(pid, view.epoch.regions, mappers or Mappers([pid]))
        self.image = Image(view)
        try:
            self._plan(mappers)
        except BaseException:
            self.image.close()
            raise

    def _plan(self, mappers: Mappers | None) -> None:
        pid, view, changes = self.pid, self.view, self.changes
        known = changes.before(self.image) if changes else None
        self.mappings = Mappings(pid, view, SMAPS_SECONDS if known is None else QUICK)
        # What only differences need, and takes longer to read than the rest of a stop.
        self._state = None if known is None else read_state(pid, kernel_mappings(self.mappings.layout.text))
        self._at_risk = at_risk(view.epoch.regions)
        check_shadow_stacks(pid)
        check_return_probes(view)
        self._sort(self.mappings.layout)
        if known is None:
            self.image.within(self.kept)
        else:
            self.image.stage(merge_runs(known, self.made.ranges))
        if not mappers:  # else who has them looks once for all
            self.sharing.mappers.look_anew()
        self.programs = Programs(pid, self.mappings.layout.changes)  # last: nothing else closes its files

    def close(self) -> None:
        """Close all files. Idempotent."""
        self.image.close()
        self.programs.close()
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def _sort(self, layout: Layout) -> None:
        self.layout = layout
        own = [c for c in layout.changes if not any(a <= c.start and c.end <= b for a, b in self.others)]
        self.kept = Stretches([c for c in own if c.kept])
        self.made = Stretches([c for c in own if not c.kept])

    def check(self, tracee: Tracee) -> None:
        """Make the plan, before anything changes. The target stands.

        Raises:
            RollbackRefusedError: we cannot do it.
        """
        self.tracee = tracee
        self._started = time.monotonic()
        # Before anything changes, and while it stands: what it does after is no difference.
        states = tracee.threads
        self.before = {t.tid: t for t in states}
        task = f"/proc/{self.pid}/task/{states[0].tid}"
        self._memory = memory = os.open(f"{task}/mem", os.O_RDWR | os.O_CLOEXEC)
        epoch, untrap = self.view.epoch.epoch, self.changes.untrap if self.changes else _nothing_to_do
        self.memory = Memory(self.pid, self.image, self.programs, epoch, task, memory, untrap)
        self.registrations = Registrations(tracee, self.view.epoch.threads, self.before, memory)
        try:
            among = self.changes.look() if self.changes else None
        except Exception as error:
            raise self.taken_back(error) from error
        self.mappings.stopped(tracee, memory, untrap, self.changes.maps if self.changes else None)
        mappings = kernel_mappings(self.mappings.layout.text)
        self.now = snapshot(self.pid, mappings, self.then, self._state, Path(task))
        self.torn = torn((self.then, self._at_risk), (self.now, mappings), lambda r: is_device(self.pid, r))
        if self.torn and not self.anyway:
            raise RollbackRefusedError(
                f"process {self.pid} has, or had at that epoch, what does not go back with its memory: "
                f"{'; '.join(self.torn)}. Nothing was touched; --anyway does it all the same"
            )
        tracee.keep_processor_numbers()
        try:
            self.born = born_since(self.view.epoch, self.before)
            self.mappings.check()
            self.memory.check_time = self._check_time
            if self.layout.changes is not self.mappings.layout.changes:
                self._sort(self.mappings.layout)
            self.plan = self._compare(among)
            self.sharing.check(self.plan, self.layout.changes, self.anyway)
        except Exception as error:
            raise self.taken_back(error) from error

    def map_back(self) -> None:
        """Put the mappings back, and see what that changes: the last that may be refused.

        Raises: as `apply`.
        """
        try:
            self.registrations.take()
            if self.mappings.needed:
                self._map(self.plan)
                self.sharing.check(self.plan, self.layout.changes, self.anyway)
        except Exception as error:
            raise self.taken_back(error) from error

    def apply(self) -> None:
        """Put all back, in a way that `taken_back` can undo, but for threads that were born since: they end.

        Raises:
            RollbackRefusedError: we cannot do it, and have undone it.
            TargetError: we could not undo it either, or not all of it.
        """
        try:
            plan = self.plan
            if self.born:
                # They need the memory that they have until they have ended. All that was just done to the
                # mappings is done again after, so nothing is left then that may be refused.
                self._take_mappings_back()
                for tid in self.born:
                    self.tracee.end_thread(tid)
                    self.outcome.ended.append(tid)
                plan = self._compare(self.changes.look() if self.changes else None)
                if self.mappings.needed:
                    self._map(plan)
            self.written = plan
            self.memory.write(plan)
            if plan.drop:
                with self.tracee.injector() as injector:
                    self.memory.drop(plan, injector)
            for state in self.view.epoch.threads:
                self.set.append(state.tid)
                self.tracee.set_state(state)
        except Exception as error:
            raise self.taken_back(error) from error

    def commit(self) -> Outcome:
        """Do what can no longer fail, or cannot be undone."""
        self.memory.check_time = lambda: None  # from here on there is no way back
        try:
            if self.mappings.needed:
                with self.tracee.injector() as injector:
                    self.mappings.commit(injector)
            self.registrations.put()
            self._settle(self.written)
            self.registrations.settled()
            self.tracee.put_processor_numbers()
        except UffdtrackError as error:
            raise TargetError(f"{error}; {PARTLY}") from error
        self.outcome.pages = self.written.pages
        self.outcome.mappings = self.mappings.changed
        self.outcome.warnings = sorted({*self.mappings.warnings, *self.memory.warnings})
        return self.outcome

    def differences(self) -> list[str]:
        """Text about what has gone back for others, too, and about state in the kernel, which has not."""
        torn = [f"not rolled back: {text}" for text in self.torn]
        since = differences(self.then, self.now, self.view.epoch.facts.row["time_ns"])
        return [*self.sharing.gone_back(), *torn, *since]

    def _check_time(self) -> None:
        self.tracee.check_time()
        if self.most and time.monotonic() > self._started + self.most / 2:
            raise MaxStopError(
                f"it would take longer than half of the time that process {self.pid} may stand "
                f"(--max-stop {self.most:g}s): give it more"
            )

    def _compare(self, among: Runs | None) -> Plan:
        """The plan for the contents of mappings that stay; another one is due after threads have ended.

        Args:
            among: where they may differ, by a look just now.
        """
        if not self.changes or self.torn:  # some of it tears since it writes memory without a fault
            return self.memory.plan(self.kept)
        self.memory.is_alone = self.changes.is_alone
        plan = self.memory.plan(self.kept, among)
        if among is not None:
            plan.exact += self.changes.ready.valid(self.changes.found, self.kept)
        return plan

    def _map(self, plan: Plan) -> None:
        """Put the mappings back, and add their contents to the plan."""
        with self.tracee.injector() as injector:
            self.mappings.make(injector)
        plan.add(self.memory.plan(self.made))

    def _settle(self, plan: Plan) -> None:
        """Correct the rseq areas of threads that have run system calls for us: the kernel writes there."""
        if not (self.tracee.has_run or plan.skipped):
            return
        areas = [t.rseq.area for t in self.before.values() if t.rseq] + self.registrations.areas
        touched = np.array(sorted({area // PAGE for area in areas if area}), np.uint64)
        for where in (self.kept, self.made):
            if len(where):
                self.memory.settle(plan, where, touched)

    def _take_mappings_back(self) -> None:
        if not self.mappings.begun:
            return
        with self.tracee.injector() as injector:
            self.mappings.take_back(injector)

    def taken_back(self, error: Exception) -> UffdtrackError:
        """Undo what was done before `error`; returns what to raise, which says how that went."""
        if isinstance(error, TargetGoneError):
            return error
        text = str(error) if isinstance(error, UffdtrackError) else f"{type(error).__name__}: {error}"
        self.memory.check_time = lambda: None
        try:
            whole = self.memory.restore(self.written)
            for tid in self.set:
                self.tracee.set_state(self.before[tid])
            self._take_mappings_back()
            self.registrations.restore()
        except (UffdtrackError, OSError):
            whole = False
        if not whole:
            return TargetError(f"{text}; {PARTLY}")
        if self.outcome.ended:
            ended = ", ".join(map(str, self.outcome.ended))
            return TargetError(
                f"{text}; memory and mappings are as they were, but threads born since the epoch were "
                f"ended: {ended}"
            )
        kind: type[UffdtrackError] = RollbackRefusedError
        if isinstance(error, UffdtrackError) and not isinstance(error, TargetError):
            kind = type(error)
        return kind(f"{text}; the process is as it was")
