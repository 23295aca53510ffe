"""A directory of epochs: a base, and increments that each name their parent, see branches.py."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path

from checkpoint.branches import from_base, line_to
from checkpoint.directory import choose, numbers
from checkpoint.errors import ImageError
from checkpoint.files import malformed, open_regular
from checkpoint.image import EpochFile
from checkpoint.kept_in_memory import check_in_files
from checkpoint.view import Shared, View, join
from uffdtrack.errors import InvalidInputError

_NAME = re.compile(r"epoch-(\d{8,})\.core")
SETTLING = 1.0
"""Seconds that a chain may lack its `head` while another one replaces it."""
MEMBER_NAME = re.compile(r"\d+(\.\d+)?")
"""The names of the chains' directories in a tree, see tree.py."""
LEFT_OVER = re.compile(r"\.epoch-\d{8,}\.core\.tmp")


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
        hint = f"; for the directory of that name: {text}@0" if Path(text).is_dir() else ""
        raise InvalidInputError(f"{text!r}: behind the @ comes the number of an epoch{hint}")
    return Path(directory), int(number)


class Chain:
    """A directory of epoch files.

    Raises:
        InvalidInputError: there is no such directory, or no epoch in it; a session keeps them in memory.
    """

    def __init__(self, directory: Path, parse: Callable[[Path], EpochFile] = EpochFile) -> None:
        """Args:
        parse: opens a file; one that knows some files already need not parse them again.
        """
        self.directory = directory
        self._parse = parse
        check_in_files(directory)
        # Before the names: a session adds its epoch first, and its number here after.
        self._head = _head(directory)
        self.epochs = epoch_numbers(directory)
        if not directory.is_dir():
            within, at, number = str(directory).rpartition("@")
            hint = f": give {within}, without an epoch" if at and number.isdigit() else ""
            raise InvalidInputError(f"{directory} is not a directory{hint}")
        if not self.epochs:
            raise InvalidInputError(f"{directory} holds no checkpoint")

    def path(self, epoch: int) -> Path:
        return self.directory / epoch_name(epoch)

    def open(self, epoch: int | None) -> EpochFile:
        """One epoch, or the last."""
        return self._parse(self.path(choose(self.directory, self.epochs, epoch)))

    def files(self) -> list[EpochFile]:
        """All epochs in the order of their numbers, linked as their digests say.

        Raises:
            ImageError: a file is damaged, missing or not the one that belongs there.
        """
        files = self.present()
        for file in files:
            if epoch_name(file.epoch) != file.path.name:
                raise ImageError(f"{file.path} is epoch {file.epoch} under another name")
        self._check_numbers(files)
        self._check_links(files)
        self.check_head()
        return files

    def present(self) -> list[EpochFile]:
        """The epochs that are there, in the order of their numbers, however they are linked.

        Those that a compaction that was killed did not come to remove are none of them.

        Raises:
            ImageError: a file is damaged.
        """
        files: list[EpochFile] = []
        bases: list[EpochFile] = []
        for number in reversed(self.epochs):
            if any(base.is_made_of(number) for base in bases):
                continue
            files.append(self._parse(self.path(number)))
            if files[-1].compacted:
                if files[-1].facts.merged is None:
                    break  # it was made of all that are older
                bases.append(files[-1])
        return files[::-1]

    def _check_numbers(self, files: list[EpochFile]) -> None:
        there = {file.epoch for file in files}
        bases = [file for file in files if file.facts.merged]
        # The oldest stands for all numbers below its own, unless it says which.
        first = files[0].epoch if files[0].facts.merged is None else -1
        for number in range(self.epochs[-1], first, -1):
            if number not in there and not any(base.is_made_of(number) for base in bases):
                raise ImageError(f"{self.path(number)} is missing")

    def _check_links(self, files: list[EpochFile]) -> None:
        there = {file.epoch: file for file in files}
        for file in files:
            if file.compacted or (file is files[0] and file.facts.base):
                continue
            if file is files[0]:
                raise ImageError(f"{self.path(file.epoch - 1)} is missing: the chain has no base")
            number = file.epoch - 1 if file.parent_epoch is None else file.parent_epoch
            if number not in there:
                raise ImageError(f"{self.path(number)} is missing")
            before = there[number]
            if file.parent not in (before.digest, before.facts.replaces):
                raise ImageError(
                    f"{file.path} does not follow {before.path.name}: one of the two was exchanged"
                )

    def check_head(self) -> None:
        """Check that the chain has the last epoch that was written.

        Raises:
            ImageError: it has not, or we cannot tell.
            InvalidInputError: another chain replaces this one just now (--force).
        """
        deadline = time.monotonic() + SETTLING
        # A session that was killed, or is about to, between its base and `head` leaves one epoch alone.
        while self._head < 0 and len(self.epochs) > 1:
            if epoch_numbers(self.directory)[: len(self.epochs)] != self.epochs:
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

    def check_holes(self, files: list[EpochFile]) -> None:
        """Raises: ImageError: an epoch between those that are present is missing, or one at the end."""
        self._check_numbers(files)
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
        """The memory of one epoch, from the files of all that it comes from.

        Args:
            alone: leave out what other processes of a tree store for this one.
            siblings: the epochs of the others' chains, by directory, with digests; by default those that were
                taken together with this one.
        """
        number = self.open(epoch).epoch
        files = files or self.files()
        line = line_to(files, number)
        if not line:
            base = next((file for file in files if file.is_made_of(number)), files[0])
            raise InvalidInputError(
                f"{self.path(number)} is left over: it was merged into epoch {base.epoch} of {self.directory}"
            )
        view = View.of(from_base(line))
        return view if alone else self._joined(view, siblings or {})

    def _joined(self, view: View, siblings: dict[str, tuple[int, str]]) -> View:
        """Add the shared memory that other processes of the tree have stored, each in its own chain."""
        shared: list[Shared] = []
        others: dict[str, View] = {}
        for start, end, at, name, epoch, digest in view.epoch.facts.elsewhere or ():
            if name not in others:
                number, wanted = siblings.get(name, (epoch, digest))
                others[name] = self._of_sibling(name, number, wanted, view)
            shared.append(Shared(others[name], at, at + end - start, start - at))
        return join(view, shared)

    def _of_sibling(self, name: str, epoch: int, digest: str, view: View) -> View:
        if not MEMBER_NAME.fullmatch(name):
            raise ImageError(f"{view.epoch.path} is damaged: {name!r} is no chain of a tree")
        other = Chain(self.directory.absolute().parent / name).view(epoch, alone=True)
        if digest not in (other.epoch.digest, other.epoch.facts.replaces):
            raise ImageError(
                f"{other.epoch.path} is not the epoch that {view.epoch.path} has its shared memory from"
            )
        return other


def _head(directory: Path) -> int:
    """The number of the last epoch that was written, -1 if there is no `head`.

    Raises:
        ImageError: `head` is damaged.
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


def on_disk(directory: Path) -> int:
    """The bytes of all files of epochs in a directory and those below it."""
    sizes = 0
    for path in directory.rglob("epoch-*.*"):
        with contextlib.suppress(OSError):
            sizes += path.stat().st_size
    return sizes


def epoch_numbers(directory: Path) -> list[int]:
    return numbers(directory, _NAME)
