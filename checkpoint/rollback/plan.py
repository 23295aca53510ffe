"""Pages of which the contents are to change."""

from __future__ import annotations

from dataclasses import dataclass, field

from checkpoint.rollback.stored import Contents
from uffdtrack.runs import (
    Pages,
)


@dataclass(slots=True)
class Plan:
    """Pages of which the contents are to change, each list with what is there now.

    Attributes:
        write: pages that hold something else.
        exact: pages that are given these contents, which are not quite those of the image.
        drop: pages that hold something where the mapping itself gave the contents then; `anonymous`:
            that was zeros.
        skipped: pages that cannot be written through their mapping.
    """

    write: list[tuple[Pages, Contents]] = field(default_factory=list)
    exact: list[tuple[Pages, Contents, Contents]] = field(default_factory=list)
    drop: list[tuple[Pages, Contents, bool]] = field(default_factory=list)
    skipped: list[tuple[str, Pages]] = field(default_factory=list)

    @property
    def pages(self) -> int:
        return sum(len(pages) for pages, *_ in (*self.write, *self.exact))

    def add(self, other: Plan) -> None:
        self.write += other.write
        self.exact += other.exact
        self.drop += other.drop
        self.skipped += other.skipped
