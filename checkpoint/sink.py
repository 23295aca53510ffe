"""Where epochs go: a chain of files.

A sink gets an epoch in parts; the epoch becomes whole, and, at some time after that, safe.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from checkpoint.chain_writer import ChainWriter
from checkpoint.epoch import Epoch, EpochRow
from checkpoint.facts import ImageFacts
from checkpoint.image_writer import EpochWriter
from checkpoint.objects import ObjectFacts, Snapshot, increment
from checkpoint.once import Once
from uffdtrack import Region, Runs

T = TypeVar("T")
WRITERS = 4
"""How many epochs we write side by side: most of the work is waiting for the disk, and digests."""


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
    """An epoch on its way into a sink."""

    def finish(self, epoch: Epoch) -> EpochRow:
        """Make it whole, but not safe yet. Returns its row, with the digest.

        Raises:
            StorageError: we could not write it.
        """

    def steps(self) -> Sequence[Callable[[], None]]:
        """The steps that make it safe, in order; each may wait long and raise StorageError."""

    def committed(self) -> None:
        """Note that it is safe: the next epoch follows it."""

    def abort(self) -> None:
        """Drop it, before `steps`. Idempotent."""

    def withdraw(self) -> None:
        """Drop it, even if it may look safe to others already. Idempotent."""


class Sink(Protocol):
    """Takes the epochs of one source, one after the other."""

    def begin(self) -> Draft:
        """Begin an epoch. Raises: StorageError, PermissionDeniedError: the sink takes none."""


class ChainSink:
    """Writes epochs as files of a chain."""

    def __init__(self, chain: ChainWriter) -> None:
        self.chain = chain
        self.objects: Snapshot | None = None
        self.described = Once(_describe_regions)

    def begin(self) -> ChainDraft:
        return ChainDraft(self, self.chain.begin())


class ChainDraft:
    """One file of a chain, until it is safe."""

    def __init__(self, sink: ChainSink, file: EpochWriter) -> None:
        self.file = file
        self._sink = sink
        self._objects: Snapshot | None = None
        self._digest = ""

    def void(self, ranges: Runs) -> None:
        self.file.void(ranges)

    def add(self, data: Runs, zero: Runs, contents: memoryview) -> None:
        self.file.add(data, contents)
        self.file.add_zero(zero)

    def finish(self, epoch: Epoch) -> EpochRow:
        chain, window, target = self._sink.chain, epoch.window, epoch.facts
        before = None if epoch.row.base else self._sink.objects
        self._objects = target.objects
        rows: list[EpochRow] = []

        def describe(pages: int, content: int) -> ImageFacts:
            rows.append(epoch.counted(chain.next_epoch, pages, content))
            return ImageFacts(
                epoch=chain.next_epoch,
                base=epoch.row.base,
                parent=chain.parent,
                keyed=bool(chain.key),
                row=rows[0].to_json(),
                reset=window.reset.tolist(),
                threads=[t.tid for t in window.threads if not t.worker],
                kernel_threads=[t.tid for t in window.threads if t.worker],
                regions=self._sink.described(window.regions),
                process=target.process,
                files=target.files,
                heap_end=target.heap_end,
                attributes=target.attributes,
                attributes_unknown=target.attributes_unknown,
                objects=increment(before, target.objects) if target.objects else ObjectFacts([]),
                elsewhere=epoch.elsewhere,
                vm=target.vm,
            )

        self._digest = self.file.finish(describe, epoch.notes, window.regions, chain.key)
        return rows[0].sealed(self._digest)

    def steps(self) -> Sequence[Callable[[], None]]:
        return self.file.sync, self.file.rename, self.file.sync_name

    def committed(self) -> None:
        self._sink.chain.committed(self._digest)
        self._sink.objects = self._objects

    def abort(self) -> None:
        self.file.abort()

    def withdraw(self) -> None:
        self.file.withdraw()


def _describe_regions(regions: list[Region]) -> list[list[Any]]:
    """Regions as an image describes them."""
    return [[r.start, r.end, r.permissions, r.offset, r.device, r.inode, r.name, r.kind] for r in regions]


def make_safe(drafts: Iterable[Draft]) -> None:
    """Make all safe together: each step waits for the disk, which writes for several at once.

    Raises:
        StorageError: one is not safe; each may have its name already.
    """
    for steps in itertools.zip_longest(*(draft.steps() for draft in drafts)):
        side_by_side(lambda step: step(), [step for step in steps if step])


def side_by_side(function: Callable[[T], object], items: Iterable[T]) -> None:
    """Call it for each, `WRITERS` at a time, or as many as we may have threads (RLIMIT_NPROC, pids.max).

    Raises:
        BaseException: a call has raised it. No further call begins then.
    """
    waiting = list(enumerate(items))
    errors: list[BaseException | None] = [None] * len(waiting)
    lock = threading.Lock()

    def stop() -> None:
        with lock:
            waiting.clear()

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                n, item = waiting.pop(0)
            try:
                function(item)
            except BaseException as error:
                errors[n] = error
                stop()

    helpers: list[threading.Thread] = []
    try:
        with contextlib.suppress(RuntimeError):
            for _ in range(min(WRITERS, len(waiting)) - 1):
                helper = threading.Thread(target=work)
                helper.start()
                helpers.append(helper)
        work()
    finally:
        stop()
        for helper in helpers:
            helper.join()
    for error in errors:
        if error:
            raise error
