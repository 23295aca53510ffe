"""Write one epoch's image to a file of its own."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from checkpoint.files import sync_directory, translate, translated, write_all
from checkpoint.image_writer import ImageWriter
from uffdtrack.errors import UffdtrackError


class EpochWriter(ImageWriter):
    """Writes one epoch to a temporary file; the file gets its name when it is whole and on disk.

    Contents that are aligned go to the disk without a copy in the page cache (O_DIRECT), where the file
    system can do that.

    Args:
        path: the name that the file gets.
        key: of the digest; empty for none.
        give_way: called when the file is on disk, right before it gets its name; returns whether it has
            removed an older chain.
    """

    def __init__(self, path: Path, key: bytes, give_way: Callable[[], bool] = lambda: False) -> None:
        super().__init__(key)
        self.path = path
        self._give_way = give_way
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._named = self._is_all = False
        with translated(path):
            self._temporary.unlink(missing_ok=True)
            self._fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                self._direct = os.open(self._temporary, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
            except OSError:
                self._direct = -1

    @property
    def directory(self) -> Path:
        return self.path.parent

    def _write_pages(self, contents: Sequence[memoryview], aligned: bool) -> None:
        if self._direct >= 0 and aligned:
            try:
                write_all(self._direct, contents, self._end)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise translate(error, self.path) from error
            self._close_direct()
        self._write(contents, self._end)

    def _write(self, parts: Sequence[bytes | memoryview], offset: int) -> None:
        with translated(self.path):
            write_all(self._fd, parts, offset)

    def _written(self) -> None:
        self._close_direct()

    def sync(self) -> None:
        """Bring the contents to disk. Raises: StorageError: that failed."""
        with translated(self.path):
            os.fdatasync(self._fd)
        self._close()

    def rename(self) -> None:
        """Give the file its name. Raises: StorageError: that failed."""
        with translated(self.path):
            self._is_all = self._give_way()
            self._temporary.replace(self.path)
            self._named = True

    def make_safe(self) -> None:
        """`sync`, `rename`, and bring the name to disk. Raises: StorageError: one of them failed."""
        self.sync()
        self.rename()
        with translated(self.path):
            sync_directory(self.path.parent)

    def abort(self) -> None:
        """Drop everything that has no name yet. Idempotent."""
        for _ in range(2):  # the first may fail for the descriptor of O_DIRECT
            with contextlib.suppress(UffdtrackError):
                self._close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Drop everything, even the file that has its name already, unless that is all there is."""
        self.abort()
        if self._named and not self._is_all:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        self._close_direct()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with translated(self.path):
                os.close(fd)

    def _close_direct(self) -> None:
        fd, self._direct = self._direct, -1
        if fd >= 0:
            with translated(self.path):
                os.close(fd)
