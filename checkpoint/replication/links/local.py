"""Unix sockets: one listener for each path, and who is at the other end."""

from __future__ import annotations

import contextlib
import os
import secrets
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

    It gets its name when it listens already, so that a socket at which nobody listens is a dead one.

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
            with _translated(path), _directory(path) as (directory, name):
                draft = f".{secrets.token_hex(8)}"
                os.fchmod(self.socket.fileno(), 0o600)  # the mode of the file that bind(2) makes
                self.socket.bind(_short(directory, draft))
                try:
                    self.socket.listen(128)
                    self._made = _identity(directory, draft)
                    while not _named(directory, draft, name):
                        if not remove_dead(path):
                            raise InvalidInputError(f"{path} is in use, or no socket: choose another path")
                finally:
                    os.unlink(draft, dir_fd=directory)
        except BaseException:
            self.socket.close()
            raise
        self.socket.setblocking(False)

    def close(self) -> None:
        """Listen no more, and remove the file, if it is still ours."""
        with contextlib.suppress(OSError), _directory(self._path) as (directory, name):
            if _identity(directory, name) == self._made:
                os.unlink(name, dir_fd=directory)
        self.socket.close()


def _named(directory: int, draft: str, name: str) -> bool:
    """Give a file its name; False: something has that."""
    try:
        os.link(draft, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        return False
    return True


def remove_dead(path: Path) -> bool:
    """Remove a socket at which nobody listens. False: somebody does, or it is no socket.

    Raises:
        OSError: we may not look at it, or not remove it.
    """
    with _directory(path) as (directory, name):
        try:
            seen = _identity(directory, name)
            if not stat.S_ISSOCK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                return False
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
                probe.setblocking(False)
                probe.connect(_short(directory, name))
            return False
        except FileNotFoundError:
            return True
        except BlockingIOError:  # its queue is full
            return False
        except ConnectionRefusedError:
            pass
        # Another process may have come before us, and may listen there by now: then it is put back.
        aside = f".{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=directory)
            if _identity(directory, aside) != seen:
                _named(directory, aside, name)
            os.unlink(aside, dir_fd=directory)
    return True


def connect_local(path: Path) -> socket.socket:
    """A connection to who listens at a path.

    Raises:
        LinkError: nobody does, or another user's process.
        PermissionDeniedError: we may not connect.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.setblocking(False)
        with _translated(path), _directory(path) as (directory, name):
            connection.connect(_short(directory, name))
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
    """A descriptor of a path's directory, and the name in it."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd, path.name
    finally:
        os.close(fd)


def _short(directory: int, name: str) -> str:
    """A path that is short enough for an address (unix(7))."""
    return f"/proc/self/fd/{directory}/{name}"


def _identity(directory: int, name: str) -> tuple[int, int]:
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PermissionDeniedError(f"may not use the socket {path}: {error.strerror}") from error
    except ConnectionRefusedError as error:
        raise LinkError(f"nobody listens at {path} any more: start the other end first") from error
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            raise InvalidInputError(f"there is no directory {path.parent}") from error
        raise LinkError(f"there is no socket {path}: start the other end first") from error
    except BlockingIOError as error:
        raise LinkError(f"who listens at {path} takes no connections now: try again") from error
    except OSError as error:
        raise LinkError(f"cannot use the socket {path}: {error.strerror or error}") from error
