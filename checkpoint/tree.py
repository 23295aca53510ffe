"""A directory of a tree of processes: a chain for each, and an index that says which epochs belong together.

An epoch of the tree is a file `epoch-N.tree`. It is written when the epochs of all processes are safe, so the
tree has an epoch when it has that file.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from checkpoint.chain import MEMBER_NAME, Chain
from checkpoint.directory import DirectoryWriter, choose, not_as_written, numbers, write_beside
from checkpoint.epoch import EpochRow, LeftOut, MemberEpoch, TreeRow
from checkpoint.errors import ImageError
from checkpoint.facts import TreeFacts
from checkpoint.files import malformed, open_regular, sync_directory, translate
from checkpoint.image import EpochFile
from checkpoint.view import View, check_all_deltas
from uffdtrack.errors import InvalidInputError

_NAME = re.compile(r"epoch-(\d{8,})\.tree")
_OF_A_CHAIN = re.compile(r"(epoch-\d{8,}\.core|\.epoch-\d{8,}\.core\.tmp|head|\.head\.tmp|\.lock)")
_DIGEST_SIZE = 32


def entry_name(epoch: int) -> str:
    return f"epoch-{epoch:08d}.tree"


def tree_numbers(directory: Path) -> list[int]:
    """The epochs of the tree in a directory; empty if there is none."""
    return numbers(directory, _NAME)


def is_tree(directory: Path) -> bool:
    return bool(tree_numbers(directory))


def _digest(body: bytes, key: bytes) -> str:
    return hashlib.blake2b(body, key=key, digest_size=_DIGEST_SIZE).hexdigest()


class TreeEpoch:
    """One epoch of a tree: which epoch of which chain.

    Attributes:
        facts: what its file says.
        parent_epoch: the number of the epoch that it follows.
        processes: those that are in it.
        left_out: those that lived and are not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with malformed(path):
            with open_regular(path) as file:
                digest, _, self._body = file.read().partition(b"\n")
            self.digest = digest.decode("ascii")
            stored = json.loads(self._body)
            if not isinstance(stored, dict) or stored.get("schema") != TreeFacts.schema_of(stored):
                raise ValueError(f"its schema is not {TreeFacts.schema}")
            self.facts = TreeFacts.of_json(stored)
            self.epoch = int(self.facts.epoch)
            self.parent = str(self.facts.parent)
            given = self.facts.parent_epoch
            self.parent_epoch = self.epoch - 1 if given is None else int(given)
            self.processes = [MemberEpoch.of_json(one) for one in self.facts.processes]
            self.left_out = [LeftOut.of_json(one) for one in self.facts.left_out]
            if not all(MEMBER_NAME.fullmatch(p.directory) for p in self.processes):
                raise ValueError("a process's directory is none of a tree's")

    def verify(self, key: bytes) -> None:
        """Raises: ImageError: the file is not what was written, or the key is another."""
        if hmac.compare_digest(_digest(self._body, key), self.digest):
            return
        raise not_as_written(self.path, bool(self.facts.keyed), key)

    def view(self, process: MemberEpoch, alone: bool = False) -> View:
        """The memory of one of its processes."""
        siblings = {p.directory: (p.epoch, p.digest) for p in self.processes}
        chain = Chain(self.path.parent / process.directory)
        return chain.view(process.epoch, alone=alone, siblings=siblings)

    def views(self) -> dict[int, View]:
        """The memory of each of its processes, by pid, without what others store for it."""
        return {process.pid: self.view(process, alone=True) for process in self.processes}


class Tree:
    """A directory of a tree of processes.

    Raises:
        InvalidInputError: there is no epoch of a tree in it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.epochs = tree_numbers(directory)
        if not self.epochs:
            raise InvalidInputError(f"{directory} holds no checkpoint of a tree of processes")

    def open(self, epoch: int | None) -> TreeEpoch:
        """One epoch, or the last."""
        return TreeEpoch(self.directory / entry_name(choose(self.directory, self.epochs, epoch)))

    def entries(self) -> list[TreeEpoch]:
        """All epochs, linked as their digests say.

        Raises:
            ImageError: one is damaged, missing, or not the one that belongs there.
        """
        entries: list[TreeEpoch] = []
        for number in range(self.epochs[0], self.epochs[-1] + 1):
            if number not in self.epochs:
                raise ImageError(f"{self.directory / entry_name(number)} is missing")
            entry = self.open(number)
            at = entry.parent_epoch - self.epochs[0]
            parent = entries[at].digest if 0 <= at < len(entries) else ""
            if entry.epoch != number or entry.parent != parent or (entries and not parent):
                raise ImageError(f"{entry.path} does not belong there: one of the files was exchanged")
            entries.append(entry)
        return entries

    def verify(self, key: bytes) -> tuple[list[TreeEpoch], int]:
        """Check every byte of the tree; returns its epochs, and the number of files of its chains.

        Raises:
            ImageError: with the name of the file.
        """
        entries = self.entries()
        for entry in entries:
            entry.verify(key)
        directories = sorted({p.directory for entry in entries for p in entry.processes})
        files = {name: Chain(self.directory / name).verify(key) for name in directories}
        for chain in files.values():
            check_all_deltas(chain)
        for entry in entries:
            for process in entry.processes:
                _check_member(entry, process, files[process.directory])
        return entries, sum(map(len, files.values()))


def _check_member(entry: TreeEpoch, process: MemberEpoch, files: Iterable[EpochFile]) -> None:
    for file in files:
        if file.epoch == process.epoch and process.digest in (file.digest, file.facts.replaces):
            return
    raise ImageError(
        f"{entry.path} names epoch {process.epoch} of {process.directory}, which is another, or missing"
    )


class TreeWriter(DirectoryWriter):
    """Writes a tree's directory, see `DirectoryWriter`."""

    _follows = -1

    def _look(self) -> tuple[str, str]:
        self._old = [name for name in os.listdir(self.directory) if self._is_old(name)]
        return "checkpoints" if tree_numbers(self.directory) or self._old else "", "them"

    def _is_old(self, name: str) -> bool:
        """Whether it is a chain of a tree, or a part of a chain that belongs to no tree."""
        if MEMBER_NAME.fullmatch(name):
            return (self.directory / name).is_dir()
        return bool(_OF_A_CHAIN.fullmatch(name)) and name != ".lock"

    def place(self, pid: int) -> Path:
        """A new directory for the chain of a process; pids are used again."""
        path = self.directory / str(pid)
        used = 1
        while path.exists():
            used += 1
            path = self.directory / f"{pid}.{used}"
        return path

    def follow(self, entry: TreeEpoch) -> None:
        """The next epoch is the child of that one. No other may be on its way."""
        self.parent, self._follows = entry.digest, entry.epoch

    def commit(self, rows: list[EpochRow], row: TreeRow) -> str:
        """The epochs of all processes are safe: make them one of the tree. Returns its digest.

        Args:
            rows: of those epochs.

        Raises:
            StorageError, PermissionDeniedError: we could not write it.
        """
        facts = TreeFacts(
            epoch=self.next_epoch,
            parent=self.parent,
            parent_epoch=None if self._follows == self.next_epoch - 1 else self._follows,
            keyed=bool(self.key),
            processes=[MemberEpoch.of(one).to_json() for one in rows],
            left_out=[one.to_json() for one in row.left_out],
            row=row.to_json(),
        )
        stored = facts.to_json()
        body = json.dumps({**stored, "schema": TreeFacts.schema_of(stored)}).encode()
        digest = _digest(body, self.key)
        path = self.directory / entry_name(self.next_epoch)
        try:
            temporary = write_beside(path, digest.encode() + b"\n" + body, sync=True)
            if not self.next_epoch:
                # What was here before goes, its first epoch last.
                for number in reversed(tree_numbers(self.directory)[1:]):
                    (self.directory / entry_name(number)).unlink()
            temporary.replace(path)
            try:
                sync_directory(self.directory)
            except OSError:
                if self.next_epoch:  # the first one has taken the place of another tree
                    path.unlink()
                raise
            if not self.next_epoch:
                self._clear()
        except OSError as error:
            raise translate(error, path) from error
        self.parent, self._follows = digest, self.next_epoch
        self.next_epoch += 1
        return digest

    def _clear(self) -> None:
        """Remove the chains that were here before, and touch no file that is not of a chain."""
        for name in self._old:
            path = self.directory / name
            if not path.is_dir():
                path.unlink(missing_ok=True)
                continue
            for part in os.listdir(path):
                if _OF_A_CHAIN.fullmatch(part):
                    (path / part).unlink(missing_ok=True)
            if not os.listdir(path):
                path.rmdir()
        self._old = []
