"""Fences: what tells a standby that the active can release nothing any more."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
from pathlib import Path

from uffdtrack.closing import Closing
from uffdtrack.errors import InvalidInputError, PermissionDeniedError, StorageError

SECONDS = 30.0
"""So long a command may take."""


class FileLock(Closing):
    """A lock on a file that both sides name: the active has it as long as it runs, to its death by kill -9.

    The kernel gives it up when the last descriptor closes, and nobody else can do that. On a file system of
    several hosts it is as good as that file system's locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def take(self) -> bool:
        """Take it if nobody has it. Idempotent.

        Raises:
            PermissionDeniedError, StorageError: we cannot open the file.
        """
        if self._fd >= 0:
            return True
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            raise PermissionDeniedError(f"cannot open {self.path}: {error.strerror}") from error
        except OSError as error:
            raise StorageError(f"cannot open {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    @property
    def is_held(self) -> bool:
        """Whether we have it, and the file of that name is still the one that we have locked."""
        if self._fd < 0:
            return False
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        return False

    def write(self, text: str) -> None:
        """Let the file say something, while we have it. Raises: StorageError: it cannot be written."""
        try:
            os.pwrite(self._fd, text.encode(), 0)
            os.ftruncate(self._fd, len(text))
            os.fsync(self._fd)
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error

    def take_if(self, text: str) -> bool:
        """Take it if nobody has it and the file says that. Raises: as `take`."""
        if self.take() and self.is_held and os.pread(self._fd, len(text) + 1, 0) == text.encode():
            return True
        self.close()
        return False

    def says(self, text: str) -> bool:
        """Whether the file says that, whoever has the lock."""
        with contextlib.suppress(OSError):
            return self.path.read_bytes() == text.encode()
        return False

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Command:
    """A command that makes sure that the active is dead, and then ends with 0 (STONITH)."""

    def __init__(self, command: str) -> None:
        self._command = command

    async def fence(self) -> bool:
        process = await asyncio.create_subprocess_shell(self._command, stdin=asyncio.subprocess.DEVNULL)
        try:
            return await asyncio.wait_for(process.wait(), SECONDS) == 0
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            return False


def parse_fence(text: str) -> FileLock | Command:
    """`lock:PATH`, or a command.

    Raises:
        InvalidInputError: it is neither.
    """
    kind, colon, rest = text.partition(":")
    if kind == "lock" and colon:
        if not rest:
            raise InvalidInputError("--fence lock:PATH needs the path of a file that both sides can open")
        return FileLock(Path(rest))
    if re.match(r"\w+:", text):
        raise InvalidInputError(f"--fence {text} is neither lock:PATH nor a command")
    if not text.strip():
        raise InvalidInputError("--fence is lock:PATH, or a command that ends with 0 when the active is dead")
    return Command(text)
