"""A directory of epochs: a base, and increments that each name their parent's digest."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from checkpoint.errors import ImageError
from checkpoint.files import malformed, open_regular, translate, translate_read
from checkpoint.image import ZERO, EpochFile, EpochWriter, Offsets
from uffdtrack import PAGE, Region
from uffdtrack.errors import InvalidInputError, UffdtrackError
from uffdtrack.runs import Pages, between, inside, latest

_NAME = re.compile(r"epoch-(\d{8,})\.core")
SETTLING = 1.0
"""Seconds that a chain may lack its `head`, while it gives way to another."""
MEMBER_NAME = re.compile(r"\d+(\.\d+)?")
"""Directories of the chains of a tree, see tree.py."""
_LEFT_OVER = re.compile(r"\.epoch-\d{8,}\.core\.tmp")


def epoch_name(epoch: int) -> str:
    return f"epoch-{epoch:08d}.core"


def parse_place(text: str) -> tuple[Path, int | None]:
    """DIR@N or DIR, which means the last epoch.

    Raises:
        InvalidInputError: N is not a number.
    """
    directory, at, number = text.rpartition("@")
    if not at:
        return Path(text), None
    if not number.isascii() or not number.isdigit():
        raise InvalidInputError(f"{text!r}: behind the @ comes the number of an epoch")
    return Path(directory), int(number)


@dataclass(frozen=True)
class View:
    """The whole memory of one epoch: for each page the newest file of the chain that has it.

    Attributes:
        pages: page numbers, sorted.
        files: index into `sources` for each page.
        offsets: place in that file, `ZERO` for zeros.
    """

    epoch: EpochFile
    sources: list[EpochFile]
    pages: Pages
    files: npt.NDArray[np.int64]
    offsets: Offsets

    def read(self, wanted: Pages) -> npt.NDArray[np.uint8]:
        """The contents of pages of this view, shape (n, 4096)."""
        out = np.zeros((len(wanted), PAGE), np.uint8)
        at = np.searchsorted(self.pages, wanted)
        for index in np.unique(self.files[at]):
            source = self.sources[int(index)]
            chosen = np.flatnonzero((self.files[at] == index) & (self.offsets[at] != ZERO))
            if not len(chosen):
                continue
            try:
                with source.open() as file:
                    data = np.memmap(file, np.uint8, "r")
                places = self.offsets[at[chosen]]
                if (
                    len(places)
                    and int(places[-1]) - int(places[0]) == (len(places) - 1) * PAGE
                    and (np.diff(places) == PAGE).all()
                ):
                    first = int(places[0])
                    block = data[first : first + len(places) * PAGE]
                    out[chosen] = block.reshape(-1, PAGE)
                else:
                    for row, place in zip(chosen.tolist(), places.tolist(), strict=True):
                        out[row] = data[place : place + PAGE]
            except (OSError, ValueError) as error:
                raise ImageError(f"{source.path} cannot be read: {error}") from error
        return out

    @property
    def own_sources(self) -> list[EpochFile]:
        """Without those of other processes of a tree."""
        return [file for file in self.sources if file.path.parent == self.epoch.path.parent]

    def of_region(self, region: Region) -> slice:
        """The part of `pages` in a mapping."""
        return between(self.pages, region.start, region.end)


class Chain:
    """A directory of epoch files.

    Raises:
        InvalidInputError: there is no such directory, or no epoch in it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Before the names: a session adds its epoch first, and its number here after.
        self._head = _head(directory)
        self.epochs = sorted(_numbers(directory))
        if not directory.is_dir():
            raise InvalidInputError(f"{directory} is not a directory")
        if not self.epochs:
            raise InvalidInputError(f"{directory} holds no checkpoint")

    def path(self, epoch: int) -> Path:
        return self.directory / epoch_name(epoch)

    def open(self, epoch: int | None) -> EpochFile:
        """One epoch, or the last."""
        number = self.epochs[-1] if epoch is None else epoch
        if number not in self.epochs:
            raise InvalidInputError(
                f"{self.directory} has no epoch {number}; it has {self.epochs[0]} to {self.epochs[-1]}"
            )
        return EpochFile(self.path(number))

    def files(self) -> list[EpochFile]:
        """All epochs, linked as their digests say, from the base on that holds what is older.

        Raises:
            ImageError: a file is damaged, missing or not the one that belongs there.
        """
        files: list[EpochFile] = []
        for number in range(self.epochs[-1], self.epochs[0] - 1, -1):
            path = self.path(number)
            if number not in self.epochs:
                raise ImageError(f"{path} is missing")
            file = EpochFile(path)
            if file.epoch != number:
                raise ImageError(f"{path} is epoch {file.epoch} under another name")
            files.insert(0, file)
            if file.compacted:
                break  # older ones are what a compaction that was killed did not come to remove
        for before, file in itertools.pairwise(files):
            if file.parent not in (before.digest, before.meta.get("replaces")):
                raise ImageError(
                    f"{file.path} does not follow {before.path.name}: one of the two was exchanged"
                )
        if not files[0].meta.get("base"):
            raise ImageError(f"{self.path(files[0].epoch - 1)} is missing: the chain has no base")
        self.check_head()
        return files

    def check_head(self) -> None:
        """Whether the last epoch is there that was written.

        Raises:
            ImageError: it is not, or that cannot be told.
            InvalidInputError: the chain gives way to another one just now (--force).
        """
        deadline = time.monotonic() + SETTLING
        # A session that was killed, or is about to, between its base and `head` leaves one epoch alone.
        while self._head < 0 and len(self.epochs) > 1:
            if sorted(_numbers(self.directory))[: len(self.epochs)] != self.epochs:
                raise InvalidInputError(f"{self.directory} was replaced while it was read; try again")
            if time.monotonic() > deadline:
                raise ImageError(
                    f"{self.directory / 'head'} is missing: it is not known whether the last epochs are there"
                )
            time.sleep(0.01)
            self._head = _head(self.directory)
        # And now: with --force a chain may have given way to a shorter one.
        head = min(self._head, _head(self.directory))
        if head > self.epochs[-1]:
            raise ImageError(f"{self.path(self.epochs[-1] + 1)} is missing: epoch {head} was written")

    def check_holes(self, first: int) -> None:
        """Raises: ImageError: an epoch from `first` on is missing, or one at the end."""
        for number in range(first, self.epochs[-1]):
            if number not in self.epochs:
                raise ImageError(f"{self.path(number)} is missing")
        self.check_head()

    def verify(self, key: bytes) -> list[EpochFile]:
        """Check every byte of the chain.

        Raises:
            ImageError: with the name of the file.
        """
        files = self.files()
        for file in files:
            file.verify(key)
        return files

    def view(
        self,
        epoch: int | None,
        files: list[EpochFile] | None = None,
        alone: bool = False,
        siblings: dict[str, tuple[int, str]] | None = None,
    ) -> View:
        """The memory of one epoch, out of all files up to it.

        Args:
            alone: without what other processes of a tree store for this one.
            siblings: which epoch of their chains, by directory, and its digest; else the one that was taken
                together with this one.
        """
        number = self.open(epoch).epoch
        files = files or self.files()
        if number < files[0].epoch:
            raise InvalidInputError(
                f"{self.path(number)} is left over: epoch {files[0].epoch} of {self.directory} is its base"
            )
        files = [f for f in files if f.epoch <= number]
        first = max(i for i, f in enumerate(files) if f.meta.get("base"))
        sources = files[first:]
        pages = np.concatenate([f.pages for f in sources])
        index = np.repeat(np.arange(len(sources)), [len(f.pages) for f in sources])
        offsets = np.concatenate([f.offsets for f in sources])
        pages, index, offsets = latest(pages, index, offsets)
        # A page is void where a later epoch has cut its history.
        cut = np.full(len(pages), -1)
        for i, file in enumerate(sources):
            for start, end in file.reset.tolist():
                cut[between(pages, start, end)] = i
        regions = np.array([(r.start, r.end) for r in sources[-1].regions if r.stored], np.uint64).reshape(
            -1, 2
        )
        keep = (cut <= index) & inside(pages, regions)
        view = View(sources[-1], sources, pages[keep], index[keep], offsets[keep])
        return view if alone else self._joined(view, siblings or {})

    def _joined(self, view: View, siblings: dict[str, tuple[int, str]]) -> View:
        """With the shared memory that other processes of the tree have stored, each in its own chain."""
        sources, pages = [*view.sources], [view.pages]
        files, offsets = [view.files], [view.offsets]
        others: dict[str, View] = {}
        for start, end, at, name, epoch, digest in view.epoch.meta.get("elsewhere", []):
            if name not in others:
                number, wanted = siblings.get(name, (epoch, digest))
                others[name] = self._of_sibling(name, number, wanted, view)
            other = others[name]
            part = between(other.pages, at, at + end - start)
            pages.append((other.pages[part].astype(np.int64) + (start - at) // PAGE).astype(np.uint64))
            files.append(other.files[part] + len(sources))
            offsets.append(other.offsets[part])
            sources += other.sources
        if len(pages) == 1:
            return view
        columns = latest(np.concatenate(pages), np.concatenate(files), np.concatenate(offsets))
        return View(view.epoch, sources, *columns)

    def _of_sibling(self, name: str, epoch: int, digest: str, view: View) -> View:
        if not MEMBER_NAME.fullmatch(name):
            raise ImageError(f"{view.epoch.path} is damaged: {name!r} is no chain of a tree")
        other = Chain(self.directory.absolute().parent / name).view(epoch, alone=True)
        if digest not in (other.epoch.digest, other.epoch.meta.get("replaces")):
            raise ImageError(
                f"{other.epoch.path} is not the epoch that {view.epoch.path} has its shared memory from"
            )
        return other


def _head(directory: Path) -> int:
    """The number of the last epoch that was written, -1 where nothing says it.

    Raises:
        ImageError: what says it is damaged.
    """
    path = directory / "head"
    try:
        with malformed(path), open_regular(path) as file:
            text = file.read(32).strip()
            if not text.isdigit():
                raise ValueError(f"{text[:16]!r} is no number of an epoch")
            return int(text)
    except ImageError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            return -1
        raise


def _numbers(directory: Path) -> list[int]:
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise translate_read(error, directory) from error
    return [int(found[1]) for name in names if (found := _NAME.fullmatch(name))]


class Lock:
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

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


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


class ChainWriter:
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
            old = _numbers(directory)
            for name in os.listdir(directory):
                if _LEFT_OVER.fullmatch(name):
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
        for number in sorted(_numbers(self.directory), reverse=True):
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

    def __enter__(self) -> ChainWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
