"""A chain of epochs that is being written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from checkpoint.chain import LEFT_OVER, epoch_name, epoch_numbers
from checkpoint.files import translate
from checkpoint.image_writer import EpochWriter
from uffdtrack.closing import Closing
from uffdtrack.errors import InvalidInputError, UffdtrackError


class Lock(Closing):
    """Holds a directory for one session; let go by close or by the death of the process."""

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
    """Hold a directory, which is made where it is missing.

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


class ChainWriter(Closing):
    """A locked directory that epochs are added to, from 0 on.

    Raises:
        InvalidInputError: the directory is in use, or holds a chain and `force` is not given.
        PermissionDeniedError, StorageError: it cannot be made or written.
    """

    def __init__(self, directory: Path, key: bytes, force: bool) -> None:
        self.directory = directory
        self.key = key
        self.next_epoch = 0
        self.parent = ""
        self._lock = lock_directory(directory)
        try:
            old = epoch_numbers(directory)
            for name in os.listdir(directory):
                if LEFT_OVER.fullmatch(name):
                    (directory / name).unlink()
        except OSError as error:
            self._lock.close()
            raise translate(error, directory) from error
        except UffdtrackError:
            self._lock.close()
            raise
        if old and not force:
            self._lock.close()
            raise InvalidInputError(
                f"{directory} holds a chain of {len(old)} epochs; give another directory, or --force "
                "to delete that chain"
            )

    def _clear(self) -> None:
        """A new base is on disk: what was here before goes, its own base last."""
        if self.next_epoch:
            return
        (self.directory / "head").unlink(missing_ok=True)
        for number in sorted(epoch_numbers(self.directory), reverse=True):
            (self.directory / epoch_name(number)).unlink()

    def begin(self) -> EpochWriter:
        return EpochWriter(self.directory / epoch_name(self.next_epoch), self._clear)

    def committed(self, digest: str) -> None:
        """The epoch that `begin` named is safe."""
        self.parent = digest
        with contextlib.suppress(OSError):  # a hint for verify; the epochs are what counts
            temporary = self.directory / ".head.tmp"
            temporary.unlink(missing_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w") as file:
                file.write(f"{self.next_epoch}\n")
            temporary.replace(self.directory / "head")
        self.next_epoch += 1

    def close(self) -> None:
        self._lock.close()
