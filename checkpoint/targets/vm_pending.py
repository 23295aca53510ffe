"""What was harvested of a VM, and is not stored yet."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kvmglue import Positions
from uffdtrack import Pending
from uffdtrack.runs import Pages, expand, to_runs


@dataclass(slots=True)
class VmPending(Pending):
    """Pages that were noted are pending from then on, whatever fails next.

    Attributes:
        output_from: it goes back to the VM with the output from there on; None: without output.
        noted: pages that are not in `pages` yet.
    """

    output_from: Positions | None = None
    noted: list[Pages] = field(default_factory=list)

    def note(self, gfn: Pages) -> Pages:
        """Note harvested pages, in any order; returns a copy of them."""
        pages = gfn.copy()
        if len(pages):
            self.noted.append(pages)
        return pages

    def settle(self) -> Pages:
        """Have all that was noted in `pages`; returns the numbers of all that are there."""
        if len(self.pages):
            self.noted.append(expand(self.pages))
        pages = np.concatenate(self.noted) if self.noted else np.empty(0, np.uint64)
        if len(pages) > 1 and not (pages[1:] > pages[:-1]).all():
            pages = np.unique(pages)
        self.pages, self.noted = to_runs(pages), []
        return pages
