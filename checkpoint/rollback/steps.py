"""Calls in the name of a stopped process that can be taken back until they are committed."""

from __future__ import annotations

from uffdtrack import Injector
from uffdtrack.errors import TargetError
from uffdtrack.syscalls import BRK

Call = tuple[int, list[int], str]
"""Number, arguments, and what it does in words."""


def has_failed(injector: Injector, call: Call) -> bool:
    """Make a call. brk(2) says by its result alone that it has failed.

    Raises:
        TargetError: any other has.
    """
    number, arguments, doing = call
    return injector.call(number, arguments, doing) != arguments[0] and number == BRK


class Steps:
    """What was done, each with what takes it back, and what is to be done last, when there is no way back."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.undo: list[Call] = []
        self.last: list[Call] = []

    def do(self, injector: Injector, call: Call, undo: Call) -> None:
        """Raises: TargetError: it has failed; what was done before is for `take_back`."""
        injector.call(*call)
        self.undo.append(undo)

    def take_back(self, injector: Injector) -> None:
        """Raises: TargetError: that has failed; what is left is still in `undo`."""
        while self.undo:
            if has_failed(injector, self.undo[-1]):
                raise TargetError(f"cannot {self.undo[-1][2]} in process {self.pid}")
            self.undo.pop()

    def commit(self, injector: Injector) -> list[str]:
        """Give up what is no more; returns what has failed all the same, in words."""
        words = []
        for call in self.last:
            try:
                reason = f"cannot {call[2]}" if has_failed(injector, call) else ""
            except TargetError as error:
                reason = str(error)
            if reason:
                words.append(f"{reason}: that is left as it is")
        self.undo, self.last = [], []
        return words
