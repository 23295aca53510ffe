"""An epoch of a tree on its way to the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from checkpoint.epoch import LeftOut, Times, TreeRow, since
from checkpoint.session import TakenEpoch, Taker
from checkpoint.side_by_side import side_by_side
from checkpoint.sink import Draft
from checkpoint.stream import Circumstances, Part
from checkpoint.tree import TreeWriter
from checkpoint.tree_member import Member
from checkpoint.tree_roster import Roster
from uffdtrack import Window


class TakenTree(TakenEpoch[TreeRow]):
    """An epoch of a tree.

    Attributes:
        whole: no process is missing that stores memory for others; only then it can be written.
    """

    def __init__(
        self,
        session: Taker[TreeRow],
        writer: TreeWriter,
        roster: Roster,
        circumstances: Circumstances,
        inside: list[tuple[Member, Window]],
        parts: dict[int, Part],
        left_out: list[LeftOut],
        times: Times,
    ) -> None:
        """Args:
        inside: the processes with their windows; `parts` by their numbers.
        left_out: processes that lived and are not inside.
        """
        super().__init__(session, circumstances, times)
        self._writer, self._roster = writer, roster
        # By the numbers that they have now: who calls exec meanwhile gets another one.
        self._inside = [(member.number, window.elsewhere) for member, window in inside]
        self._members = [member for member, _ in inside]
        self._parts = parts
        self._left_out = left_out
        self._row: TreeRow | None = None
        # They come first, in the order in which they joined: the others name their epochs.
        self._storing = {number for _, places in self._inside for *_, number in places}
        self.whole = bool(parts) and self._storing <= parts.keys()
        self.size = sum(part.size for part in parts.values())
        self.base = any(part.row.base for part in parts.values())

    @property
    def row(self) -> TreeRow:
        assert self._row
        return self._row

    def write(self) -> Sequence[Draft]:
        for number, places in self._inside:
            if number in self._storing:
                self._write(number, places)
        others = [pair for pair in self._inside if pair[0] not in self._storing]
        side_by_side(lambda pair: self._write(*pair), others)
        return [part.draft for part in self._parts.values() if part.draft]

    def _write(self, number: int, places: list[tuple[int, int, int, int]]) -> None:
        parts = self._parts
        elsewhere = [(start, end, at, *parts[n].row.place) for start, end, at, n in places]
        parts[number].write(elsewhere)

    def commit(self, last: bool) -> None:
        for part in self._parts.values():
            part.keep(last=True)  # the next epoch of the tree may lack this process
        rows = [self._parts[number].row for number, _ in self._inside]
        late = self._circumstances
        row = TreeRow(
            epoch=self._writer.next_epoch,
            pid=self._roster.root,
            engine=self._roster.engine,
            base=all(r.base for r in rows),
            pages=sum(r.pages for r in rows),
            bytes=sum(r.bytes for r in rows),
            threads=sum(r.threads for r in rows),
            regions=sum(r.regions for r in rows),
            compared=sum(r.compared for r in rows),
            times=self.times,
            left_out=self._left_out,
            waited_us=late.waited_us,
            skipped=late.skipped,
            skip_reason=late.skip_reason,
            late=late.late,
            time_ns=self.time_ns,
            max_dirty=self._roster.max_dirty or None,
            overshoot=max(r.overshoot or 0 for r in rows) if self._roster.max_dirty else None,
        )
        digest = self._writer.commit(rows, row)
        self._row = replace(row, write_us=since(self.taken), digest=digest, processes=rows)

    def drop(self) -> None:
        for part in reversed(self._parts.values()):
            part.drop()

    def take_back(self) -> None:
        super().take_back()
        for part in self._parts.values():
            part.take_back()
        for member in self._members:
            member.forget()
