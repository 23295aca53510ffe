"""The comparison of a rollback by itself, done before the stop: the process runs, under traps of our own.

It is made as a base is: traps are set, calls under way come to an end, memory is copied. But the copies are
compared with an epoch instead of being stored. What is written after that, the look in the stop finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from checkpoint.errors import ImageError
from checkpoint.rollback.ready import compare_ahead, nothing_ready
from checkpoint.rollback.stored import Image
from uffdtrack import PAGE, AddressSpace, Pending, Runs, Standing, Tracee, standing, stat_fields
from uffdtrack.closing import Closing
from uffdtrack.errors import NewMemoryError, TargetGoneError, UffdtrackError
from uffdtrack.runs import Mask, Pages, chunks, expand, indices_within, merge_runs, no_runs, subtract, to_runs

ROUNDS = 3
LITTLE = 1024
"""Pages: if so few were written since the last round, the stop compares them as fast as a round stops."""
CHUNK = 32 << 20
"""How many bytes we copy at a time."""
_FAULTS = 7  # field 10 of proc_pid_stat(5), counted from the state on


class Ahead(Closing):
    """Compares the memory of a process that runs, as far as that is possible; see `Changes`.

    Closing it takes the traps away; so does our death.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.is_alone: bool | None = None
        self.tracee = Tracee(pid)
        self._space: AddressSpace | None = None
        self._standing: Standing | None = None
        self._known: Runs | None = None
        self.ready = nothing_ready()
        self.found = no_runs()
        self.maps: bytes | None = None
        with suppress(UffdtrackError):  # then all is compared in the stop
            self._space = AddressSpace.attach(pid)

    @contextmanager
    def stopped(self) -> Iterator[Tracee]:
        """Stop the process for the block. Raises: as `Tracee.stop`."""
        if self._space:
            with standing(self._space, self.tracee, Pending()) as self._standing:
                yield self.tracee
            return
        self.tracee.stop()
        try:
            yield self.tracee
        finally:
            self.tracee.resume()

    @property
    def stood_us(self) -> float:
        """How long the process has stood while it was compared; known from the stop on."""
        return self._standing.stood_us if self._standing else 0.0

    def before(self, image: Image) -> Runs | None:
        if not self._space:
            return None
        try:
            unsure = self._compare(image, self._space)
            self.ready = compare_ahead(self._space, image, unsure)
        except ImageError:
            raise  # nor could the stop
        except UffdtrackError:
            self._detach()
            return None
        self._known = subtract(unsure, self.ready.compared)
        return self._known

    def look(self) -> Runs | None:
        if self._known is None or not self._standing:
            return None
        try:
            self.found = merge_runs(self.found, self._standing.look())
        except (NewMemoryError, TargetGoneError):
            self._known = None
            return None
        self.is_alone, self.maps = self._standing.is_alone, self._standing.maps
        return merge_runs(self._known, self.found)

    def untrap(self, pages: Pages) -> None:
        pass  # traps of "scan" hold nobody back

    def _compare(self, image: Image, space: AddressSpace) -> Runs:
        """Where memory may not be what the image has, apart from what is written from now on."""
        same = np.zeros(len(image.pages), bool)
        surplus, before = no_runs(), 0
        for number in range(ROUNDS):
            want, void = space.harvest(self.tracee, everything=not number)
            faults = self._faults()
            same[indices_within(image.pages, merge_runs(want, void))] = False
            surplus = merge_runs(surplus, subtract(want, image.runs))
            self._compare_copies(image, space, want, same)
            written = self._faults() - faults
            if written < LITTLE or (number and written > before // 2):
                break
            before = written
        return merge_runs(surplus, to_runs(image.pages[~same]))

    def _compare_copies(self, image: Image, space: AddressSpace, runs: Runs, same: Mask) -> None:
        for part in chunks(runs, CHUNK):
            contents = np.frombuffer(space.copy(part), np.uint8).reshape(-1, PAGE)
            same[image.same(expand(part), contents)] = True

    def _faults(self) -> int:
        return int(stat_fields(self.pid)[_FAULTS])

    def _detach(self) -> None:
        if self._space:
            self._space.close()
            self._space = None

    def close(self) -> None:
        self.tracee.close()
        self._detach()
