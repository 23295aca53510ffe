"""The whole memory of one epoch, from the files of its chain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from checkpoint.elf import ZERO, Offsets
from checkpoint.errors import ImageError
from checkpoint.image import EpochFile
from uffdtrack import PAGE, Region
from uffdtrack.runs import Pages, between


@dataclass(frozen=True)
class View:
    """The whole memory of one epoch: for each page the newest file of the chain that has it.

    Attributes:
        pages: page numbers, sorted.
        files: index into `sources` for each page.
        offsets: place in that file, `ZERO` for zeros.
    """

    epoch: EpochFile
    sources: list[EpochFile]
    pages: Pages
    files: npt.NDArray[np.int64]
    offsets: Offsets

    def read(self, wanted: Pages) -> npt.NDArray[np.uint8]:
        """The contents of pages of this view, shape (n, 4096)."""
        out = np.zeros((len(wanted), PAGE), np.uint8)
        at = np.searchsorted(self.pages, wanted)
        for index in np.unique(self.files[at]):
            source = self.sources[int(index)]
            chosen = np.flatnonzero((self.files[at] == index) & (self.offsets[at] != ZERO))
            if not len(chosen):
                continue
            try:
                with source.open() as file:
                    data = np.memmap(file, np.uint8, "r")
                places = self.offsets[at[chosen]]
                if (
                    len(places)
                    and int(places[-1]) - int(places[0]) == (len(places) - 1) * PAGE
                    and (np.diff(places) == PAGE).all()
                ):
                    first = int(places[0])
                    block = data[first : first + len(places) * PAGE]
                    out[chosen] = block.reshape(-1, PAGE)
                else:
                    for row, place in zip(chosen.tolist(), places.tolist(), strict=True):
                        out[row] = data[place : place + PAGE]
            except (OSError, ValueError) as error:
                raise ImageError(f"{source.path} cannot be read: {error}") from error
        return out

    @property
    def own_sources(self) -> list[EpochFile]:
        """The sources without those of other processes of a tree."""
        return [file for file in self.sources if file.path.parent == self.epoch.path.parent]

    def of_region(self, region: Region) -> slice:
        """The part of `pages` in a mapping."""
        return between(self.pages, region.start, region.end)
