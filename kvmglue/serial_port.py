"""Where a VM's serial port leads to: a file, or a stream such as stdout or a FIFO."""

from __future__ import annotations

import errno
import os
import select
import stat
from pathlib import Path

from uffdtrack.errors import InvalidInputError, PermissionDeniedError, StorageError

_PART = 4096
"""So much can be written to a pipe that is ready without waiting (pipe(7): PIPE_BUF)."""


class SerialFile:
    """A regular file: each byte goes to its position in the stream, so that a repeat changes nothing.

    So another process can go on in the same file. What is there already stays until it is written over.
    """

    repeatable = True

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, at: int, data: bytes) -> int:
        return os.pwrite(self._fd, data, at)

    def close(self) -> None:
        os.close(self._fd)


class SerialStream:
    """A pipe, a terminal, a socket: in order, from what comes first on.

    Args:
        fd: it is closed with this if `owned`.
    """

    repeatable = False

    def __init__(self, fd: int, owned: bool = False) -> None:
        self._fd = fd
        self._owned = owned
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)

    def write(self, at: int, data: bytes) -> int:
        if self._is_file:
            return os.write(self._fd, data)
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not poll.poll(0):  # nor will it fail
            return 0
        try:
            return os.write(self._fd, data[:_PART])
        except BlockingIOError:
            return 0

    def close(self) -> None:
        if self._owned:
            os.close(self._fd)


class SerialFifo:
    """A FIFO: all waits for somebody who reads it, again if its reader goes away."""

    repeatable = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: SerialStream | None = None

    def write(self, at: int, data: bytes) -> int:
        self._stream = self._stream or self._open()
        try:
            return self._stream.write(at, data) if self._stream else 0
        except BrokenPipeError:
            self.close()
            return 0

    def _open(self) -> SerialStream | None:
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nobody reads
                return None
            raise
        return SerialStream(fd, owned=True)

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream:
            stream.close()


def open_serial(path: Path) -> SerialFile | SerialStream | SerialFifo:
    """Open what the serial port is to be written to; a regular file is made if nothing is there.

    Raises:
        PermissionDeniedError, StorageError, InvalidInputError: it cannot be written.
    """
    if path.is_fifo():
        return SerialFifo(path)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    except PermissionError as error:
        raise PermissionDeniedError(f"cannot write {path}: {error.strerror}") from error
    except (IsADirectoryError, FileNotFoundError, NotADirectoryError) as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror}") from error
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    return SerialFile(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else SerialStream(fd, owned=True)
