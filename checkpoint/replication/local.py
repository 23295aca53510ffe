"""Unix sockets: one listener for each path, and who is at the other end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from checkpoint.errors import LinkError
from uffdtrack.errors import InvalidInputError, PermissionDeniedError

_UCRED = struct.Struct("3i")  # struct ucred (unix(7))
_SO_PEERPIDFD = 77  # asm-generic/socket.h; Linux 6.5


class LocalListener:
    """A socket that listens at a path, mode 0600. What a dead listener has left there is replaced.

    Attributes:
        socket: it does not block.
    """

    def __init__(self, path: Path) -> None:
        """Raises:
        InvalidInputError: somebody listens there, or something else has that name.
        LinkError, PermissionDeniedError: there can be no socket.
        """
        self._path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with _translated(path), _directory(path) as (directory, at):
                # Who replaces what is there has this lock: else it might be what another one has just made.
                fcntl.flock(directory, fcntl.LOCK_EX)
                self._remove_stale(at)
                os.fchmod(self.socket.fileno(), 0o600)  # the mode of the file that bind(2) makes
                self.socket.bind(at)
                self.socket.listen(128)
                self._made = _identity(at)
        except BaseException:
            self.socket.close()
            raise
        self.socket.setblocking(False)

    def _remove_stale(self, at: str) -> None:
        if not _is_socket(at):
            if os.path.lexists(at):
                raise InvalidInputError(f"{self._path} is there, and is no socket: choose another path")
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.setblocking(False)
            try:
                probe.connect(at)
            except ConnectionRefusedError:
                os.unlink(at)
                return
            except BlockingIOError:
                pass  # its queue is full
        raise InvalidInputError(f"a process listens at {self._path} already")

    def close(self) -> None:
        """Listen no more, and remove the file, if it is still ours."""
        with contextlib.suppress(OSError), _directory(self._path) as (directory, at):
            fcntl.flock(directory, fcntl.LOCK_EX)
            if _identity(at) == self._made:
                os.unlink(at)
        self.socket.close()


def connect_local(path: Path) -> socket.socket:
    """A connection to who listens at a path.

    Raises:
        LinkError: nobody does, or another user's process.
        PermissionDeniedError: we may not connect.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.setblocking(False)
        with _translated(path), _directory(path) as (_, at):
            connection.connect(at)
        check_user(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def credentials_of(connection: socket.socket) -> tuple[int, int]:
    """The process and the user that have connected, or listen (SO_PEERCRED)."""
    pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def check_user(connection: socket.socket) -> None:
    """Raises: PermissionDeniedError: at the other end is another user's process, and not root's."""
    pid, uid = credentials_of(connection)
    if uid not in (0, os.geteuid()):
        raise PermissionDeniedError(f"process {pid} at the other end is user {uid}'s. Run both as one user")


def pidfd_of(connection: socket.socket) -> int | None:
    """A pidfd of the process that has connected, or listens; None if there can be none (it is gone)."""
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return None
    os.set_inheritable(pidfd, False)
    return pidfd


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[tuple[int, str]]:
    """A descriptor of a path's directory, and a name of the path that is short enough for an address."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd, f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def _identity(at: str) -> tuple[int, int]:
    found = os.lstat(at)
    return found.st_dev, found.st_ino


def _is_socket(at: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(at).st_mode)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PermissionDeniedError(f"may not use the socket {path}: {error.strerror}") from error
    except ConnectionRefusedError as error:
        raise LinkError(f"nobody listens at {path} any more: start the other end first") from error
    except FileNotFoundError as error:
        raise LinkError(f"there is no socket {path}: start the other end first") from error
    except BlockingIOError as error:
        raise LinkError(f"who listens at {path} takes no connections now: try again") from error
    except OSError as error:
        raise LinkError(f"cannot use the socket {path}: {error.strerror or error}") from error
