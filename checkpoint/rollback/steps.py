"""Calls in the name of a stopped process that can be undone until they are committed."""

from __future__ import annotations

from uffdtrack import Injector
from uffdtrack.errors import TargetError
from uffdtrack.syscalls import BRK

Call = tuple[int, list[int], str]
"""Number, arguments, and a text that says what it does."""


def has_failed(injector: Injector, call: Call) -> bool:
    """Make a call; returns whether brk(2) has failed, which only its result tells.

    Raises:
        TargetError: any other call has failed.
    """
    number, arguments, doing = call
    return injector.call(number, arguments, doing) != arguments[0] and number == BRK


class Steps:
    """The calls that undo what was done, and the calls for the end, which cannot be undone."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.undo: list[Call] = []
        self.last: list[Call] = []

    def do(self, injector: Injector, call: Call, undo: Call) -> None:
        """Make a call. Raises: TargetError: it has failed; `take_back` undoes those before it."""
        injector.call(*call)
        self.undo.append(undo)

    def take_back(self, injector: Injector) -> None:
        """Undo all. Raises: TargetError: one call has failed; it and the rest are still in `undo`."""
        while self.undo:
            if has_failed(injector, self.undo[-1]):
                raise TargetError(f"cannot {self.undo[-1][2]} in process {self.pid}")
            self.undo.pop()

    def commit(self, injector: Injector) -> list[str]:
        """Make the calls for the end; returns text about those that have failed all the same."""
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
