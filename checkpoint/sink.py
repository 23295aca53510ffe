"""Where epochs go: a chain of images.

A sink gets an epoch in parts; the epoch becomes whole, and, at some time after that, safe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from checkpoint.epoch import Epoch, EpochRow, image_facts
from checkpoint.facts import ImageFacts
from checkpoint.files import sync_directory, translated
from checkpoint.image_writer import ImageWriter
from checkpoint.last_copies import LastCopies
from checkpoint.objects import ObjectFacts, Snapshot, increment
from checkpoint.once import Once
from checkpoint.side_by_side import side_by_side
from uffdtrack import Region, Runs


class PageSink(Protocol):
    """Takes memory, in parts: later contents of a page replace earlier ones."""

    def void(self, ranges: Runs) -> None:
        """Forget what was added so far in these ranges."""

    def add(self, data: Runs, zero: Runs, contents: memoryview) -> None:
        """Args:
        data: ranges whose contents are back to back in `contents`; that is valid in this call
            alone.
        zero: ranges of zeros.
        """


class Draft(PageSink, Protocol):
    """An epoch on its way into a sink.

    Attributes:
        directory: where its name is; None: it has none.
        is_on_its_way: `sync` has to wait until another host has it, which its sink tells.
    """

    @property
    def directory(self) -> Path | None: ...
    @property
    def is_on_its_way(self) -> bool: ...

    def finish(self, epoch: Epoch) -> EpochRow:
        """Add the pages of its window and make it whole, but not safe yet. Returns its row, with the digest.

        Raises:
            StorageError: we could not write it.
        """

    def sync(self) -> None:
        """Bring it to disk. Raises: StorageError: that failed."""

    def name(self) -> None:
        """Give it its name; it is safe when the directory is on disk. Raises: StorageError: that failed."""

    def committed(self, last: bool) -> None:
        """Note that it is safe. `last`: it is the last one of its group."""

    def abort(self) -> None:
        """Drop it, before `sync`. Idempotent."""

    def withdraw(self) -> None:
        """Drop it, even if it may look safe to others already. Idempotent."""


class Sink(Protocol):
    """Takes the epochs of one source, one after the other.

    Attributes:
        at_once: an epoch is written faster than it is handed over to another thread.
        quick: so is a small one: no disk is waited for while it is written.
        arrived: it calls this, in any thread, when something is not on its way any more.
    """

    at_once: bool
    quick: bool
    arrived: Callable[[], None]

    def follows(self, drain: Callable[[], None]) -> bool:
        """Whether the next epoch may follow the last one; False: it has to be a base.

        Args:
            drain: waits until nothing is on its way into the sink.

        Raises:
            StandbyAwayError: nothing can be sent now.
            Others: as `drain`.
        """

    def begin(self, base: bool = False) -> Draft:
        """Begin the epoch after the last one that was begun. `base`: it is to be one.

        Raises:
            StorageError, PermissionDeniedError: the sink takes none.
        """

    def fall_back(self) -> None:
        """All that was begun and not committed has been dropped."""


@dataclass(frozen=True, slots=True)
class Tip:
    """Where the next epoch of a chain goes.

    Attributes:
        parent, digest: of the epoch that it follows; -1 and "" for none.
        objects: the state in the kernel that the parent has.
    """

    number: int
    parent: int
    digest: str
    objects: Snapshot | None


class Images(Protocol):
    """Takes the images of a chain: a directory, the other end of a link.

    Attributes:
        next_epoch, parent: the number of the next one, and the digest of the one before, "" for none.
    """

    next_epoch: int
    parent: str

    def begin(self, number: int, parent: str = "") -> ImageWriter:
        """Args: parent: the digest of the epoch that it follows, "" for a base."""

    def committed(self, number: int, digest: str, last: bool) -> None:
        """Note that an epoch is safe, and all before it. `last`: none behind it is safe, too."""


class ChainSink:
    """Makes each epoch an image of a chain.

    Attributes:
        deltas: whether pages may be stored as deltas to the epoch before.
    """

    at_once = quick = False
    deltas = True

    def __init__(self, chain: Images) -> None:
        self.chain = chain
        self.described = Once(_describe_regions)
        self.copies = LastCopies()
        self.arrived: Callable[[], None] = lambda: None
        self.tip = self._safe = Tip(chain.next_epoch, chain.next_epoch - 1, chain.parent, None)

    def follows(self, drain: Callable[[], None]) -> bool:
        return True

    def begin(self, base: bool = False) -> ChainDraft:
        return ChainDraft(self, self.chain.begin(self.tip.number))

    def fall_back(self) -> None:
        self.tip = self._safe

    def follow(self, epoch: int, digest: str, objects: Snapshot) -> None:
        """The next epoch is the child of that one. No other may be on its way."""
        self.tip = self._safe = Tip(self._safe.number, epoch, digest, objects)

    def committed(self, tip: Tip, last: bool) -> None:
        """Note that an epoch is safe; `tip` is what follows it."""
        self._safe = tip
        self.chain.committed(tip.number - 1, tip.digest, last)


class ChainDraft:
    """One image of a chain, until it is safe."""

    def __init__(self, sink: ChainSink, file: ImageWriter) -> None:
        self.file = file
        self._sink = sink
        self._tip = sink.tip

    @property
    def directory(self) -> Path | None:
        return self.file.directory

    @property
    def is_on_its_way(self) -> bool:
        return False

    def void(self, ranges: Runs) -> None:
        self.file.void(ranges)

    def add(self, data: Runs, zero: Runs, contents: memoryview) -> None:
        self.file.add(data, contents)
        self.file.add_zero(zero)

    def finish(self, epoch: Epoch) -> EpochRow:
        window, target, last = epoch.window, epoch.facts, self._sink.tip
        before = None if epoch.row.base else last.objects
        rows: list[EpochRow] = []

        def describe(pages: int, content: int) -> ImageFacts:
            rows.append(epoch.counted(last.number, pages, content))
            objects = increment(before, target.objects) if target.objects else ObjectFacts([])
            regions = self._sink.described(window.regions)
            parent = None if last.parent == last.number - 1 else last.parent
            return image_facts(epoch, rows[0], (last.digest, parent), self.file.keyed, regions, objects)

        self.void(window.reset)
        copies = self._sink.copies
        if epoch.row.base or not self._sink.deltas:
            copies.forget()
            self.add(window.data, window.zero, window.contents)
        else:
            split = copies.split(last.digest, window)
            self.file.add(window.data, window.contents, split.whole)
            self.file.add_zero(window.zero)
            self.file.add_deltas(split.deltas)
        digest = self.file.finish(describe, epoch.notes.encode(), window.regions)
        copies.became(digest)
        self._sink.tip = self._tip = Tip(last.number + 1, last.number, digest, target.objects)
        rows[0].digest = digest
        return rows[0]

    def sync(self) -> None:
        self.file.sync()

    def name(self) -> None:
        self.file.rename()

    def committed(self, last: bool) -> None:
        self._sink.committed(self._tip, last)

    def abort(self) -> None:
        self.file.abort()

    def withdraw(self) -> None:
        self.file.withdraw()


def _describe_regions(regions: list[Region]) -> list[list[Any]]:
    """Regions as an image describes them."""
    return [[r.start, r.end, r.permissions, r.offset, r.device, r.inode, r.name, r.kind] for r in regions]


def make_safe(drafts: Sequence[Draft]) -> None:
    """Make all safe together, in their order: the disk writes for several at once.

    Raises:
        StorageError: one is not safe; each may have its name already.
    """
    side_by_side(lambda draft: draft.sync(), drafts)
    for draft in drafts:
        draft.name()
    for directory in {draft.directory: None for draft in drafts if draft.directory}:
        with translated(directory):
            sync_directory(directory)
