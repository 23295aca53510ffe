"""A directory that epochs are written into: its lock, its epochs, how files get their names."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from checkpoint.errors import ImageError
from checkpoint.files import translate, translate_read
from uffdtrack.closing import Closing
from uffdtrack.errors import InvalidInputError, UffdtrackError


def numbers(directory: Path, name: re.Pattern[str]) -> list[int]:
    """The numbers of its epochs, in order; `name` has the number as its group.

    Raises:
        ImageError, PermissionDeniedError: we cannot read the directory.
    """
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise translate_read(error, directory) from error
    return sorted(int(found[1]) for text in names if (found := name.fullmatch(text)))


def choose(directory: Path, epochs: list[int], epoch: int | None) -> int:
    """One of the existing epochs, or the last.

    Raises:
        InvalidInputError: there is none of that number.
    """
    number = epochs[-1] if epoch is None else epoch
    if number not in epochs:
        raise InvalidInputError(f"{directory} has no epoch {number}; it has {listed(epochs)}")
    return number


def stretches(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of numbers, first and last, in order, and as one where they follow each other."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and found[-1][1] >= first - 1:
            first, last = found[-1][0], max(found.pop()[1], last)
        found.append((first, last))
    return found


def listed(epochs: Sequence[int]) -> str:
    """0, 1, 2, 5 -> "0 to 2, 5"."""
    ranges = stretches((number, number) for number in epochs)
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in ranges)


def not_as_written(path: Path, keyed: bool, key: bytes) -> ImageError:
    """Why a file's digest, taken with `key`, is not the one that it has."""
    if keyed != bool(key):
        hint = "has no key" if key else "was written with a key: give it by --key-file"
        return ImageError(f"{path} {hint}")
    return ImageError(
        f"{path} is damaged: its contents do not match its digest"
        + (" (or the key is another)" if key else "")
    )


def write_beside(path: Path, data: bytes, sync: bool = False) -> Path:
    """Write a file that can take the name of `path`, mode 0600.

    Args:
        sync: bring it to disk.

    Raises:
        OSError: as open(2), write(2), fsync(2).
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(fd)
    return temporary


class Lock(Closing):
    """Locks a directory for one session, until `close` or the death of the process."""

    def __init__(self, directory: Path) -> None:
        try:
            self._fd = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise translate(error, directory) from error
        # A session that was killed lets go when its epoch is finished.
        deadline = time.monotonic() + 1
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    os.close(self._fd)
                    raise InvalidInputError(
                        f"{directory} is in use by another uffdtrack; end that one first"
                    ) from error
                time.sleep(0.01)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def lock_directory(directory: Path) -> Lock:
    """Lock a directory, and make it if it is missing.

    Raises:
        InvalidInputError, PermissionDeniedError, StorageError: as they say.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InvalidInputError(f"{directory} is not a directory") from error
    except OSError as error:
        raise translate(error, directory) from error
    return Lock(directory)


class DirectoryWriter(Closing):
    """A locked directory that takes epochs, from 0 on.

    Args:
        key: of the digests; empty for none.
        force: existing checkpoints may go.

    Raises:
        InvalidInputError: the directory is in use, or has checkpoints and `force` is not given.
        PermissionDeniedError, StorageError: we cannot make or write it.
    """

    def __init__(self, directory: Path, key: bytes, force: bool) -> None:
        self.directory = directory
        self.key = key
        self.next_epoch = 0
        self.parent = ""
        self._lock = lock_directory(directory)
        try:
            what, it = self._look()
            if what and not force:
                raise InvalidInputError(
                    f"{directory} holds {what}; give another directory, or --force to delete {it}"
                )
        except OSError as error:
            self._lock.close()
            raise translate(error, directory) from error
        except UffdtrackError:
            self._lock.close()
            raise

    def _look(self) -> tuple[str, str]:
        """A text that says what the directory has already ("": nothing), and a pronoun for it."""
        raise NotImplementedError

    def close(self) -> None:
        self._lock.close()
