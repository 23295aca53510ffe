"""A guest's output that is held until the epoch that has it is acknowledged."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kvmglue import Outbox, Positions


class HeldOutput:
    """Releases what an outbox holds, as far as it is acknowledged, and as long as that is allowed.

    Attributes:
        may_release: asked right before each release, with the lock that `stop` takes.
    """

    def __init__(self, outbox: Outbox) -> None:
        self.may_release: Callable[[], bool] = lambda: True
        self._outbox = outbox
        self._upto: Positions = outbox.released
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

    def acknowledged(self, upto: Positions) -> None:
        """The epochs that have the output up to there are acknowledged. In any thread.

        Raises:
            OutputError: a backend has failed; what it has not taken stays held.
        """
        self._upto = upto
        self.release()

    def release(self) -> None:
        """Release what a slow backend has not taken yet. Raises: as `acknowledged`."""
        with self._lock:
            if not self._stopped and not self.is_all_out and self.may_release():
                self._outbox.release(self._upto)

    def stop(self) -> None:
        """Release nothing any more. A release that is under way is finished first."""
        with self._lock:
            self._stopped = True
