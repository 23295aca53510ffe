"""The plan of a rollback: the pages whose contents it will change."""

from __future__ import annotations

from dataclasses import dataclass, field

from checkpoint.rollback.stored import Contents
from uffdtrack.runs import (
    Pages,
)


@dataclass(slots=True)
class Plan:
    """Pages whose contents will change, each list with their contents of now.

    Attributes:
        write: pages that have other contents now.
        exact: pages that get these contents, which are not quite those of the image.
        drop: pages that have contents now, where then the mapping itself gave them; `anonymous`:
            those were zeros.
        skipped: pages that we cannot write through their mapping.
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
