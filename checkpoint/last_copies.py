"""The last stored copies of a chain's pages, and what of a new epoch is stored as deltas to them."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import zstandard

from checkpoint.deltas import NO_DELTAS, Coded
from checkpoint.room import Room
from checkpoint.view import stored_ranges
from uffdtrack import (
    BITS,
    DIFFERENCE,
    NOT_CLOSE,
    PAGE,
    STRETCH,
    Region,
    Runs,
    Window,
    differences_to,
    places_of,
)
from uffdtrack.runs import (
    Mask,
    Pages,
    Rows,
    expand,
    index_of,
    indices_within,
    merge_runs,
    rows_of,
    slices,
)

DEPTH = 16
"""After so many deltas a page is stored whole."""
CLOSE = PAGE // STRETCH // 2
"""A page is worth a delta if at most so many stretches of it differ."""
FRAME = 128
"""So many pages are in a frame."""
TOGETHER = 1024
"""So many pages are compared with one call."""
LEVELS = 4
"""Of 2 ** level pages that have no copy one gets one: more where copies are of use."""
_TRIED, _EPOCHS = 2048, 16
"""So many pages in so many epochs say of how much use copies are."""
_TOP = np.uint64(-PAGE % (1 << 64))


_room = Room()


class _Tools:
    """What one thread needs while it makes deltas."""

    def __init__(self) -> None:
        self.room = np.empty(TOGETHER * DIFFERENCE, np.uint8)
        self.compressor = zstandard.ZstdCompressor(level=-1)


_spare: list[_Tools] = []


def _tools() -> _Tools:
    try:
        return _spare.pop()  # another thread may just have taken the last one
    except IndexError:
        return _Tools()


@dataclass(frozen=True, slots=True)
class Split:
    """The contents of an epoch.

    Attributes:
        whole: which of its pages are stored whole.
        deltas: the others.
    """

    whole: Mask
    deltas: Coded


class LastCopies:
    """The copies that one chain's newest epoch has of some pages.

    Attributes:
        held, wants, level: as of a `Holder`.
    """

    def __init__(self) -> None:
        self._stored: tuple[list[Region], Runs] | None = None
        self.forget()
        _room.join(self)

    def forget(self) -> None:
        """Give all memory back."""
        self._of: str | None = None
        self._memory: mmap.mmap | None = None
        self.held, self.wants, self.level = 0, False, 0
        self._pages: Pages = np.empty(0, np.uint64)
        self._places: Rows = np.empty(0, np.int64)
        # By place: how many deltas a page is made of, when it was stored last. Places that are free again.
        self._depth = np.zeros(0, np.uint8)
        self._last = np.zeros(0, np.int64)
        self._free: Rows = np.empty(0, np.int64)
        self._epoch = self._since = self._kept = self._useful = 0

    def split(self, parent: str, window: Window) -> Split:
        """Find which contents of an epoch are stored as deltas; they are the last copies from now on, if
        `became` is called. If it is not, there are none.

        Args:
            parent: the digest of the epoch before: deltas are to what that has.
        """
        if self._of != parent:
            self.forget()
        self._shrink(_room.share(self))
        self._of = None
        self._epoch += 1
        stored = self._stored_ranges(window.regions)
        for void in (window.reset, window.zero, [e[:2] for e in window.elsewhere]):
            if len(void):
                self._drop(indices_within(self._pages, np.asarray(void, np.uint64).reshape(-1, 2)))
        pages = expand(window.data) if window.data_pages is None else window.data_pages
        if not len(pages):
            return Split(np.zeros(0, bool), NO_DELTAS)
        known = places_of(self._pages, self._places, pages)
        if known is None:
            self.forget()
            return Split(np.ones(len(pages), bool), NO_DELTAS)
        keep, count = known
        contents = np.frombuffer(window.contents, np.uint8).reshape(-1, PAGE)
        had = keep >= 0
        self._last[keep[had]] = self._epoch
        old = np.where(self._depth[keep] < DEPTH, keep, -1) if count else keep.copy()
        new = places = np.empty(0, np.int64)
        if count < len(pages):
            new = np.flatnonzero(~had & self._is_sampled(pages))
            new = new[rows_of(pages[new] * np.uint64(PAGE), stored) >= 0]
            places = self._places_for(len(new))
            new = new[: len(places)]
            keep[new] = places
        whole, deltas = self._code(pages, contents, old, keep)
        if len(deltas.pages) < len(pages):
            self._depth[keep[whole & (keep >= 0)]] = 0
        if len(new):
            self._last[places] = self._epoch
            self._insert(pages[new], places)
        self._learn(count + len(new), len(deltas.pages))
        if self.level:
            self._drop(index_of(self._pages, pages[whole & had & ~self._is_sampled(pages)]))
        return Split(whole, deltas)

    def became(self, digest: str) -> None:
        """The epoch of the last `split` is in the chain, with that digest."""
        self._of = digest

    # -- deltas -----------------------------------------------------------------------------------

    def _code(
        self, pages: Pages, contents: npt.NDArray[np.uint8], old: Rows, keep: Rows
    ) -> tuple[Mask, Coded]:
        whole = np.ones(len(pages), bool)
        frames: list[tuple[bytes, int]] = []
        order: list[Rows] = []
        if self._memory is None:
            return whole, NO_DELTAS
        copies = np.frombuffer(self._memory, np.uint8).reshape(-1, PAGE)
        checks = np.empty(len(pages), np.uint64)
        same: list[Rows] = []
        tools = _tools()
        for part in slices(len(pages), TOGETHER):
            if (keep[part] < 0).all():
                continue
            _, differing, checks[part] = differences_to(
                contents[part], copies, old[part], keep[part], CLOSE, tools.room
            )
            same.append((differing == 0).nonzero()[0] + part.start)
            close = ((differing != 0) & (differing != NOT_CLOSE)).nonzero()[0]
            ends = np.cumsum(differing[close].astype(np.int64) * STRETCH + BITS).tolist()
            begin = 0
            for some in slices(len(close), FRAME):
                end = ends[some.stop - 1]
                frames.append((tools.compressor.compress(tools.room[begin:end].data), some.stop - some.start))
                begin = end
            order.append(close + part.start)
        _spare.append(tools)
        for rows in order:
            self._depth[keep[rows]] += 1
        unchanged = sum(map(len, same))
        if unchanged:
            frames.append((b"", unchanged))
        chosen = np.concatenate((*order, *same, np.empty(0, np.int64)))
        whole[chosen] = False
        return whole, Coded(frames, pages[chosen], checks[chosen])

    def _is_sampled(self, pages: Pages) -> Mask:
        scattered = pages * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(60)
        sampled: Mask = scattered < 16 >> self.level
        return sampled

    def _learn(self, kept: int, useful: int) -> None:
        """Note of how much use the copies were: where they are of little, fewer pages get one."""
        self._kept += kept
        self._useful += useful
        self._since += 1
        if self._since < _EPOCHS or self._kept < _TRIED >> self.level:
            return
        if self._useful < self._kept // 8:
            self.level = min(self.level + 1, LEVELS)
        elif self._useful > self._kept // 4:
            self.level = max(self.level - 1, 0)
        self._since = self._kept = self._useful = 0

    # -- which pages have a copy ------------------------------------------------------------------

    def _stored_ranges(self, regions: list[Region]) -> Runs:
        """Where an epoch can have pages; copies of others are dropped."""
        if self._stored is None or self._stored[0] is not regions:
            runs = merge_runs(stored_ranges(regions))
            self._stored = regions, runs
            gaps = np.concatenate(([np.uint64(0)], runs.reshape(-1), [_TOP])).reshape(-1, 2)
            self._drop(indices_within(self._pages, gaps))
        return self._stored[1]

    def _drop(self, rows: Rows) -> None:
        if len(rows):
            rows = np.unique(rows)
            self._free = np.append(self._free, self._places[rows])
            self._pages, self._places = np.delete(self._pages, rows), np.delete(self._places, rows)

    def _insert(self, pages: Pages, places: Rows) -> None:
        at = np.searchsorted(self._pages, pages)
        self._pages, self._places = np.insert(self._pages, at, pages), np.insert(self._places, at, places)

    def _places_for(self, count: int) -> Rows:
        """Places for up to so many pages; those that were stored longest ago give way."""
        short = count - len(self._free)
        if short > 0:
            short -= self._grow(short)
        if short > 0:
            old = np.flatnonzero(self._last[self._places] < self._epoch)
            some = min(len(old), max(short, self.held // 16))
            if some:
                age = self._last[self._places[old]]
                self._drop(old[np.argpartition(age, some - 1)[:some]])
        places, self._free = self._free[:count], self._free[count:]
        return places

    def _grow(self, count: int) -> int:
        before = self.held
        _room.take(self, before + count)
        if self.held > before and not self._resize():
            self.held = before
        more = self.held - before
        self._free = np.append(self._free, np.arange(before, self.held))
        self._depth = np.append(self._depth, np.zeros(more, np.uint8))
        self._last = np.append(self._last, np.zeros(more, np.int64))
        return more

    def _shrink(self, count: int) -> None:
        """Hold no more pages than that."""
        if self.held <= count:
            return
        self._drop(np.flatnonzero(self._places >= count))
        self._free = self._free[self._free < count]
        self._depth, self._last = self._depth[:count].copy(), self._last[:count].copy()
        self.held = count
        if not self._resize():
            self.forget()

    def _resize(self) -> bool:
        """Have memory for as many pages as are held: what is not in use is not charged to us."""
        size = self.held * PAGE
        try:
            if not size:
                self._memory = None
            elif self._memory is None:
                self._memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            else:
                self._memory.resize(size)
        except (OSError, ValueError, MemoryError, BufferError):
            return False
        return True
