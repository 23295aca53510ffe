"""A rollback puts back what threads have registered with rseq(2).

Registering twice is an error, and the C library ends a process for it when it starts a thread. It is the
one registration of a thread's that cannot be repeated: set_robust_list(2), set_tid_address(2), sigaltstack(2)
and prctl(2) can.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from uffdtrack import Injector, Rseq, ThreadState, Tracee
from uffdtrack.syscalls import RSEQ

_UNREGISTER = 1  # RSEQ_FLAG_UNREGISTER
_SECTION_AT, _SECTION = 8, 8  # rseq_cs of struct rseq


class Registrations:
    """The registrations of one process; its threads stand."""

    def __init__(
        self, tracee: Tracee, then: Sequence[ThreadState], now: Mapping[int, ThreadState], memory: int
    ) -> None:
        """Args:
        then, now: the threads of the epoch, and of the process by their ids.
        memory: /proc/PID/mem, open for reading and writing.
        """
        self._tracee = tracee
        self._memory = memory
        self._taken: list[tuple[ThreadState, Rseq, bytes]] = []
        pairs = [(state, now[state.tid]) for state in then if state.tid in now]
        # An image of an earlier version does not say.
        self._changed = [(t, t.rseq, n, n.rseq) for t, n in pairs if t.rseq and n.rseq and t.rseq != n.rseq]

    @property
    def areas(self) -> list[int]:
        """The areas that the kernel writes when registrations change."""
        return [r.area for _, then, _, now in self._changed for r in (then, now) if r.area]

    def take(self) -> None:
        """Take the registrations of now away, while their areas exist: the kernel writes to them for that.

        Raises:
            TargetError, PermissionDeniedError: we cannot make a call in the name of a thread.
        """
        for _, _, state, now in self._changed:
            # In the name of each, so that none is refused later.
            with self._tracee.injector(state.tid) as injector:
                if now.area:
                    section = os.pread(self._memory, _SECTION, now.area + _SECTION_AT)
                    _call(injector, now, _UNREGISTER, "take back")
                    self._taken.append((state, now, section))

    def restore(self) -> None:
        """Undo `take`: register again, and restore the memory that this changes.

        A thread may have been inside a critical section, which the kernel forgets at the registration.
        """
        for state, now, section in self._taken:
            self._register(state.tid, now)
            os.pwrite(self._memory, section, now.area + _SECTION_AT)
            self._tracee.set_state(state)

    def put(self) -> None:
        """Register what the epoch has."""
        for state, then, _, _ in self._changed:
            self._register(state.tid, then)

    def settled(self) -> None:
        """Memory is the epoch's, to the last byte: restore the sections that threads were in."""
        for state, _, _, _ in self._changed:
            self._tracee.set_state(state)

    def _register(self, tid: int, rseq: Rseq) -> None:
        if rseq.area:
            with self._tracee.injector(tid) as injector:
                _call(injector, rseq, 0, "register")


def _call(injector: Injector, rseq: Rseq, flags: int, doing: str) -> None:
    injector.call(RSEQ, [rseq.area, rseq.size, flags, rseq.signature], f"{doing} an area of rseq(2)")
