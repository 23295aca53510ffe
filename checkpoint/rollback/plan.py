"""The plan of a rollback: the pages whose contents it will change, and who knows which these may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from checkpoint.rollback.ready import Ready
from checkpoint.rollback.stored import Contents, Image
from uffdtrack import Runs
from uffdtrack.runs import Pages


@dataclass(slots=True)
class Plan:
    """Pages whose contents will change, each list with their contents of now.

    Attributes:
        write: pages that have other contents now.
        exact: pages that get these contents: not quite those of the image, or compared before the stop.
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


class Changes(Protocol):
    """Knows what of a target's memory is as it was at the epoch.

    Attributes:
        is_alone: after a look: no other process shares its pages; None: not known.
        ready: pages that were compared before the stop.
        found: where they are no longer what they were then, by all looks in the stop.
        maps: /proc/PID/maps of the last look; None: there was none.
    """

    is_alone: bool | None
    ready: Ready
    found: Runs
    maps: bytes | None

    def before(self, image: Image) -> Runs | None:
        """The target runs: where its memory may differ from the epoch's, apart from what is `ready`, and from
        what it writes from now on. None: nothing is known.
        """

    def look(self) -> Runs | None:
        """The target stands: where its memory may differ, apart from what is `ready`. None: everywhere."""

    def untrap(self, pages: Pages) -> None:
        """The target stands: let pages be read and written."""
