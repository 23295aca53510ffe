"""Write a chain of epochs."""

from __future__ import annotations

import contextlib
import os

from checkpoint.chain import LEFT_OVER, epoch_name, epoch_numbers
from checkpoint.directory import DirectoryWriter, write_beside
from checkpoint.epoch_writer import EpochWriter


class ChainWriter(DirectoryWriter):
    """Writes a chain, see `DirectoryWriter`."""

    def _look(self) -> tuple[str, str]:
        old = epoch_numbers(self.directory)
        for name in os.listdir(self.directory):
            if LEFT_OVER.fullmatch(name):
                (self.directory / name).unlink()
        return f"a chain of {len(old)} epoch{'s' * (len(old) != 1)}" if old else "", "that chain"

    def _clear(self) -> bool:
        """A new base is on disk: remove the old chain, its own base last. Returns whether there was one."""
        if self.next_epoch:
            return False
        (self.directory / "head").unlink(missing_ok=True)
        old = epoch_numbers(self.directory)
        for number in reversed(old):
            (self.directory / epoch_name(number)).unlink()
        return bool(old)

    def begin(self, number: int, parent: str = "") -> EpochWriter:
        return EpochWriter(self.directory / epoch_name(number), self.key, self._clear)

    def committed(self, number: int, digest: str, last: bool) -> None:
        """Note that an epoch is safe, and all before it.

        Args:
            last: there is none behind it that is safe, too.
        """
        self.parent = digest
        self.next_epoch = number + 1
        if last:
            with contextlib.suppress(OSError):  # a hint for verify; the epochs are what counts
                head = self.directory / "head"
                write_beside(head, f"{number}\n".encode(), sync=True).replace(head)
