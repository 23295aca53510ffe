"""A guest's output that is held until the epoch that has it is acknowledged."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from kvmglue import Outbox, Positions
from uffdtrack.errors import CycleError, OutputError, UffdtrackError


class HeldOutput:
    """Releases what an outbox holds, as far as it is acknowledged, and as long as that is allowed.

    Attributes:
        may_release: asked right before each release, with the lock that `stop` takes.
        error: why a backend has not taken what it should have (a full disk); it is tried again.
    """

    def __init__(self, outbox: Outbox) -> None:
        self.may_release: Callable[[], bool] = lambda: True
        self._outbox = outbox
        self._upto: Positions = outbox.released
        self.error = ""
        self._stopped = False
        self._lock = threading.Lock()

    @property
    def released(self) -> Positions:
        return self._outbox.released

    @property
    def held(self) -> int:
        """Bytes and packets that were collected and are not released."""
        return sum(self._outbox.collected) - sum(self._outbox.released)

    @property
    def is_all_out(self) -> bool:
        """Whether all that was acknowledged has been released."""
        return self._outbox.released == self._upto

    def packets_acknowledged(self, upto: Positions) -> None:
        """Release packets at once, as far as that waits for nobody; `acknowledged` follows."""
        if self._lock.acquire(blocking=False):
            try:
                if not self._stopped and self.may_release():
                    with contextlib.suppress(OutputError, CycleError):
                        self._outbox.release_packets(upto)
            finally:
                self._lock.release()

    def acknowledged(self, upto: Positions) -> None:
        """The epochs that have the output up to there are acknowledged. In any thread."""
        self._upto = upto
        with contextlib.suppress(OutputError):  # the session's thread tries again
            self._release()

    def release(self, everything: bool = False) -> bool:
        """Release what a slow backend, or one that has failed, has not taken yet; `error` says why.

        Args:
            everything: also what no epoch has: nobody else can run the guest from one.

        Returns:
            Whether all is out that may be.

        Raises:
            OutputError: its reader has gone. What it has not taken stays held.
        """
        try:
            is_out = self._release(everything)
            self.error = ""
            return is_out
        except OutputError as error:
            if isinstance(error.__cause__, BrokenPipeError):
                raise
            self.error = str(error)
            return False

    def _release(self, everything: bool = False) -> bool:
        with self._lock:
            if not everything and self.is_all_out:
                return True
            if self._stopped or not self.may_release():
                return False
            if everything:
                self._outbox.collect()
                self._upto = self._outbox.collected
            return self._outbox.release(self._upto)

    def resign(self) -> None:
        """`stop`, and give up what the devices lead to: on one host a standby needs it. The guest stands."""
        self.stop()
        with contextlib.suppress(UffdtrackError, OSError):  # the standby says what it waits for
            self._outbox.close()
            self._outbox.vm.disconnect()

    def stop(self) -> None:
        """Release nothing any more. A release that is under way is finished first."""
        with self._lock:
            self._stopped = True
