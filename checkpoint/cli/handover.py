"""A switchover at the active: a thread asks for it, the session's thread does it between two epochs."""

from __future__ import annotations

import threading
import time

from checkpoint.cli.common import say
from checkpoint.cli.replicate import ReplicationError, check_stopped
from checkpoint.replication.active import ActiveEdge
from checkpoint.replication.control import Progress
from checkpoint.replication.status import SwitchoverRow
from checkpoint.session import Session
from checkpoint.targets.vm import VmTarget
from uffdtrack.errors import StopTimeoutError, TargetBusyError

ANSWER = 10.0
"""So many seconds the guest may stand for the standby's answer."""
PATIENCE = 60.0
"""So many seconds who asks for a switchover waits for it."""


class Handover:
    """Attributes: verdict: of the switchover that was done last, for people."""

    def __init__(self, edge: ActiveEdge, session: Session, target: VmTarget) -> None:
        self.verdict = ""
        self._edge = edge
        self._session = session
        self._target = target
        self._done = threading.Event()
        self._row: SwitchoverRow | None = None

    def request(self, progress: Progress) -> SwitchoverRow:
        """Ask for one, and wait for it. In any thread but the session's.

        Raises:
            ReplicationError: it was not done, or no answer has come.
        """
        self._done.clear()
        why = self._edge.ask()
        if why:
            raise ReplicationError(f"there can be no switchover: {why}")
        progress("the last epochs are on their way")
        if not self._done.wait(PATIENCE):
            raise ReplicationError("the switchover has not ended yet: `uffdtrack status` says how it stands")
        if not self._row:
            raise ReplicationError(self.verdict)
        return self._row

    def done(self) -> bool:
        """Do one, in the session's thread. False: the guest goes on here."""
        try:
            return self._hand_over()
        finally:
            self._done.set()

    def _hand_over(self) -> bool:
        edge = self._edge
        edge.asked = False
        started, epoch = time.perf_counter(), -1
        why = "the standby has not answered"
        try:
            self._session.take()  # while it runs on: the last one is small then
            edge.why = ""
            edge.final()
            self._target.stands = True
            started = time.perf_counter()
            epoch = self._session.take().epoch
            edge.await_handover(ANSWER)
            why = edge.why or why
        except (TargetBusyError, StopTimeoutError) as error:
            why = str(error)
        finally:
            self._target.stands = False
        stood_us = (time.perf_counter() - started) * 1e6
        edge.take_back()  # from now on it is ours, unless it has been given away by now
        if edge.is_resigned:
            to = edge.far_name
            if edge.is_taken:
                self._row = SwitchoverRow(str(edge.about["name"]), epoch, round(stood_us, 1), to)
                ms = f"{stood_us / 1e3:.1f} ms"
                self.verdict = f"the guest runs at {to}, from epoch {epoch} on; it stood for {ms}"
            else:
                self.verdict = f"the guest was handed over to {to}, and no answer has come: look there"
            return True
        check_stopped(edge)
        self._target.vm.resume()
        self.verdict = f"no switchover, the guest goes on here: {why}"
        say(self.verdict)
        return False
