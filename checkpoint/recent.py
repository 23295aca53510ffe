"""The last epochs of a target, in the memory of the session that takes them. They are never durable."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from checkpoint.arena import Arena, available
from checkpoint.epoch import Epoch, EpochRow
from checkpoint.kept_epoch import EVERYTHING, Index, Kept, view_of
from checkpoint.view import View
from uffdtrack import PAGE, Runs
from uffdtrack.closing import Closing
from uffdtrack.errors import InvalidInputError, StorageError
from uffdtrack.runs import Rows, latest, merge_runs, to_runs

_PART = 1 / 2
"""Of the memory that is available when a session begins so much may be taken for epochs."""
_LEAST = 64 << 20
"""Beside the whole memory, which the oldest one has, the others take as much again, or so many bytes."""


class RecentSink(Closing):
    """Keeps the last `most` epochs, the oldest with the whole memory.

    When one more comes, the two oldest become one. All of them together take up to half of the memory that
    is available when the session begins, and the later ones as much as the oldest. If that is not enough, it
    keeps fewer.

    Attributes:
        news: that it does, for the next row; said once.
    """

    at_once = True
    quick = False

    def __init__(self, most: int) -> None:
        self.most = most
        self.arena = Arena(int(available() * _PART))
        self.kept: deque[Kept] = deque()
        self.next = 0
        self.arrived: Callable[[], None] = lambda: None
        self.news = ""
        self._beside = 0
        self._told = False

    # -- Sink -------------------------------------------------------------------------------------

    def follows(self, drain: Callable[[], None]) -> bool:
        return True

    def begin(self, base: bool = False) -> RecentDraft:
        return RecentDraft(self)

    def fall_back(self) -> None:
        """Nothing is kept before it is committed."""

    # -- its drafts -------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes."""
        return self.arena.used + self._beside

    def put(self, contents: memoryview, base: bool) -> Rows:
        """Copy pages into the arena; of older epochs as many give way as have to.

        Args:
            base: nothing before this epoch has to stay.

        Raises:
            StorageError: there is no room.
        """
        count, before = len(contents) // PAGE, len(self.kept)
        while not self._has_room(count):
            if len(self.kept) > 1:
                self._merge()
            elif self.kept and base:
                self._forget(self.kept.popleft())
            else:
                raise StorageError(
                    f"an epoch of {count * PAGE / 1e6:.1f} MB does not fit into memory beside the "
                    f"{self.size / 1e6:.1f} MB that are kept, of at most {self.arena.limit / 1e6:.1f} MB: "
                    "write a chain (no --keep), or make memory available"
                )
        if len(self.kept) < before and not base:
            self._note_room(len(self.kept) + 1)
        return self.arena.put(contents)

    def _note_room(self, epochs: int) -> None:
        if epochs < self.most and not self._told:
            self._told = True
            self.news = (
                f"there is room for {epochs} of {self.most} epochs now: the later ones take as much memory "
                "as the oldest, or 64 MiB, and all together no more than can be spared (docs/keep.md)"
            )

    def _has_room(self, pages: int) -> bool:
        after = self.size + pages * PAGE
        if len(self.kept) > 1:
            whole = len(self.kept[0].pages) * PAGE + self.kept[0].size
            if after > whole + max(whole, _LEAST):
                return False
        return after <= self.arena.limit and self.arena.has_room(pages)

    def commit(self, kept: Kept) -> None:
        if not self.kept:
            kept.reset = EVERYTHING
        self._beside += kept.beside(self.kept[-1] if self.kept else None)
        self.kept.append(kept)
        self.next = kept.epoch + 1
        while len(self.kept) > self.most:
            self._merge()

    def _merge(self) -> None:
        """The two oldest epochs become one."""
        first, second = self.kept.popleft(), self.kept[0]
        self._beside -= first.size + second.size
        self.arena.give_back(first.index.cut(second.reset))
        self.arena.give_back(first.index.update(second.index))
        second.index, second.reset = first.index, EVERYTHING
        self._beside += second.beside(None)

    def _forget(self, kept: Kept) -> None:
        self._beside -= kept.size
        self.arena.give_back(kept.index.rows)

    # -- its readers, while no epoch is being taken -----------------------------------------------

    def view(self, number: int | None) -> View:
        """The memory of one epoch, or of the last. It is valid until the next epoch is begun.

        Raises:
            InvalidInputError: that epoch is not kept.
        """
        if not self.kept:
            raise InvalidInputError("the session has not taken an epoch yet")
        first, last = self.kept[0].epoch, self.kept[-1].epoch
        wanted = last if number is None else number
        if not first <= wanted <= last:
            raise InvalidInputError(f"the session keeps the epochs {first} to {last}, and not {wanted}")
        return view_of([kept for kept in self.kept if kept.epoch <= wanted], self.arena.fd)

    def written_since(self, number: int) -> Runs | None:
        """Where the last epoch may have other contents than one before it; None: anywhere."""
        later = [kept for kept in self.kept if kept.epoch > number]
        if any(kept.taken.row.base for kept in later):
            return None
        return merge_runs(*(part for kept in later for part in (to_runs(kept.pages), kept.reset)))

    def close(self) -> None:
        self.arena.close()


class RecentDraft:
    """An epoch that will be kept."""

    directory = None
    is_on_its_way = False

    def __init__(self, sink: RecentSink) -> None:
        self._sink = sink
        self._index: list[Index] = []
        self._kept: Kept | None = None

    def void(self, ranges: Runs) -> None:
        for index in self._index:
            self._sink.arena.give_back(index.cut(ranges))

    def add(self, data: Runs, zero: Runs, contents: memoryview, base: bool = True) -> None:
        self._index.append(Index.of(data, self._sink.put(contents, base), zero))

    def finish(self, epoch: Epoch) -> EpochRow:
        window, base, sink = epoch.window, epoch.row.base, self._sink
        if self._index:
            self.void(window.reset)
        self.add(window.data, window.zero, window.contents, base)
        index = self._together() if len(self._index) > 1 else self._index[0]
        kept = min(len(sink.kept) + 1, sink.most)
        size = int(np.count_nonzero(index.rows >= 0)) * PAGE
        row = epoch.counted(sink.next, len(index.pages), size)
        row.kept, row.kept_bytes = kept, sink.size
        if sink.news:
            row.warnings, sink.news = [*row.warnings, sink.news], ""
        self._kept = Kept.of(epoch, row, index)
        return row

    def _together(self) -> Index:
        pages = np.concatenate([index.pages for index in self._index])
        rows = np.concatenate([index.rows for index in self._index])
        found, at = latest(pages, np.arange(len(pages)))
        late = np.ones(len(pages), bool)
        late[at] = False
        self._sink.arena.give_back(rows[late])
        self._index = [Index(found, rows[at])]
        return self._index[0]

    def sync(self) -> None:
        """It is in memory."""

    def name(self) -> None:
        """It has none."""

    def committed(self, last: bool) -> None:
        assert self._kept
        self._sink.commit(self._kept)
        self._index = []

    def abort(self) -> None:
        for index in self._index:
            self._sink.arena.give_back(index.rows)
        self._index = []

    def withdraw(self) -> None:
        self.abort()
