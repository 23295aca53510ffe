"""A standby's chain: images that have come go to its directory, behind the acknowledgements."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoint.chain import epoch_name, epoch_numbers
from checkpoint.directory import lock_directory, write_beside
from checkpoint.files import sync_directory, translate, translated
from checkpoint.replication.incoming import Incoming
from uffdtrack.closing import Closing
from uffdtrack.errors import InvalidInputError, UffdtrackError

BYTES = 256 << 20
"""So much may wait for the disk before further epochs are not acknowledged."""
TOGETHER = 0.01
"""Seconds: what comes within them is written together, since the link needs the interpreter's lock. That is
right behind an acknowledgement, when there is least to do, or, if none follows, so many seconds later."""
MUCH = 1 << 20
"""So many bytes are written at once."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that has come whole.

    Attributes:
        base: it needs none of those before it.
        fresh: it does not follow them, and replaces them.
    """

    incoming: Incoming
    base: bool
    fresh: bool


class Store(Closing):
    """Writes images into a directory, in a thread, in order. A base that follows nothing there replaces it.

    If the disk fails, what was written stays a chain, `error` says why, and nothing is written until a base
    comes.

    Attributes:
        last: the number of the last epoch on disk, -1 for none.
        error: why nothing is written, or "".
    """

    def __init__(self, directory: Path, force: bool) -> None:
        """Args:
        force: an existing chain may go.

        Raises:
            InvalidInputError: the directory is in use, or has a chain and `force` is not given.
            PermissionDeniedError, StorageError: we cannot make or write it.
        """
        self.directory = directory
        self.last = -1
        self.error = ""
        self._lock = lock_directory(directory)
        try:
            self._look(force)
        except UffdtrackError:
            self._lock.close()
            raise
        lock = threading.RLock()
        self._changed, self._due = (threading.Condition(lock) for _ in range(2))
        self._waiting: deque[Image] = deque()
        self._bytes = self._drains = 0
        self._began = 0.0
        self._ends = self._is_asked = False
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def _look(self, force: bool) -> None:
        with translated(self.directory):
            for name in os.listdir(self.directory):
                if name.startswith(".epoch-") and name.endswith(".tmp"):
                    (self.directory / name).unlink()
        old = epoch_numbers(self.directory)
        if old and not force:
            raise InvalidInputError(
                f"{self.directory} holds a chain of {len(old)} epochs; give another directory, or --force to "
                "replace it when a base has come"
            )

    @property
    def has_room(self) -> bool:
        """Whether the disk keeps up."""
        return self._bytes <= BYTES

    def put(self, image: Image) -> None:
        """Take an image, which is written by `write`; its memory is given back then."""
        with self._changed:
            self._waiting.append(image)
            self._bytes += image.incoming.size

    def write(self, at_once: bool = False) -> None:
        """Have the thread write what was put, soon; it does not wait for that. An epoch was acknowledged."""
        with self._changed:
            if at_once or self._bytes > MUCH or time.monotonic() >= self._began + TOGETHER:
                self._is_asked = True
                self._due.notify()
            elif len(self._waiting) == 1:
                self._due.notify()

    def drain(self) -> None:
        """Wait until all is written, or dropped."""
        with self._changed:
            self._drains += 1
            self._due.notify()
            try:
                self._changed.wait_for(lambda: not self._bytes)
            finally:
                self._drains -= 1

    def close(self) -> None:
        with self._changed:
            self._ends = True
            self._due.notify()
        self._thread.join()
        self._lock.close()

    # -- the thread -------------------------------------------------------------------------------

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._due.wait_for(lambda: self._waiting or self._ends)
                self._due.wait_for(self._is_urgent, self._began + 2 * TOGETHER - time.monotonic())
                self._began, self._is_asked = time.monotonic(), False
                group = list(self._waiting)
                self._waiting.clear()
            if not group:
                return
            for part in _from_bases(group):
                self._write_group(part)
            with self._changed:
                for image in group:
                    self._bytes -= image.incoming.size
                    image.incoming.close()
                self._changed.notify_all()

    def _is_urgent(self) -> bool:
        return self._is_asked or self._ends or self._drains > 0

    def _write_group(self, group: Sequence[Image]) -> None:
        """Images that follow each other; the first may be a base."""
        if self.error and not group[0].base:
            return
        replaces = group[0].fresh or bool(self.error)
        temporary: list[tuple[Path, Path]] = []
        try:
            for image in group:
                path = self.directory / epoch_name(image.incoming.number)
                temporary.append((path.with_name(f".{path.name}.tmp"), path))
                _copy(image.incoming, temporary[-1][0])
            with translated(self.directory):
                self._name(replaces, temporary)
            self.last = group[-1].incoming.number
            self.error = ""
        except Exception as error:  # whoever waits for the disk must not wait for ever
            self.error = str(error) or type(error).__name__
            for path, _ in temporary:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def _name(self, replaces: bool, temporary: Sequence[tuple[Path, Path]]) -> None:
        old = epoch_numbers(self.directory) if replaces else []
        if replaces:
            (self.directory / "head").unlink(missing_ok=True)
        for path, named in temporary:
            path.replace(named)
            sync_directory(self.directory)
            for number in reversed(old):  # behind the new base: one of the two is always whole
                if epoch_name(number) != named.name:
                    (self.directory / epoch_name(number)).unlink()
            old = []
        last = temporary[-1][1].name
        head = write_beside(self.directory / "head", f"{int(last[6:-5])}\n".encode(), sync=True)
        head.replace(self.directory / "head")


def _from_bases(group: Sequence[Image]) -> list[list[Image]]:
    """Parts of a group that each begin with a base, but for the first."""
    parts: list[list[Image]] = [[]]
    for image in group:
        if image.base and parts[-1]:
            parts.append([])
        parts[-1].append(image)
    return parts


def _copy(incoming: Incoming, path: Path) -> None:
    """Write an image to a file and bring it to disk. Raises: StorageError, PermissionDeniedError."""
    try:
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            incoming.write_to(fd)
            os.fdatasync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise translate(error, path) from error
