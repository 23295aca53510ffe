"""Make, move and protect mappings of a stopped process, by calls that can be undone."""

from __future__ import annotations

from checkpoint.rollback.attributes import (
    Flags,
    given_by_mmap,
    given_to_all,
    keeps_advice,
    mmap_flags,
    steps,
)
from checkpoint.rollback.layout import Change, Layout, protection
from checkpoint.rollback.opening import Files, Text
from checkpoint.rollback.steps import Call, Steps
from uffdtrack import Injector, Region
from uffdtrack.syscalls import MMAP, MPROTECT, MREMAP, MUNMAP

_MAP_SHARED, _MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 1, 2, 0x20, 0x100
_MAP_NORESERVE, _MAP_FIXED_NOREPLACE = 0x4000, 0x100000
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_HUGE = 2 << 20

Names = list[tuple[int, int, str]]
"""Address, size, and the name that a mapping gets at the end."""


class Maker:
    """Makes one call after the other, in one thread's name.

    Args:
        steps: gets the calls that were made, and those that are due at the end.
        warnings: gets text about what is not as it was.

    Attributes:
        names: the mappings that get a name at the end.
        changed: how many mappings were made, replaced or protected.
    """

    def __init__(
        self, injector: Injector, layout: Layout, files: Files, text: Text, steps: Steps, warnings: list[str]
    ) -> None:
        self._injector = injector
        self._layout = layout
        self._files = files
        self._text = text
        self._steps = steps
        self._warnings = warnings
        self.names: Names = []
        self.changed = 0

    def forbid(self, change: Change, now: Region) -> None:
        """Make a mapping that goes inaccessible: the kernel refuses that if it would refuse munmap(2), for a
        seal (mseal(2)) or too many mappings once it is cut off from its neighbours."""
        arguments = [change.start, change.size]
        what = f"remove the mapping at {change.start:#x}"
        undo = (MPROTECT, [*arguments, protection(now)], "give access back")
        self._steps.do(self._injector, (MPROTECT, [*arguments, 0], what), undo)

    def protect(self, change: Change, now: Region, then: Region) -> None:
        arguments = [change.start, change.size]
        what = f"protect the memory at {change.start:#x}"
        has, wanted = protection(now), protection(then)
        self.changed += 1
        if has != wanted:
            given = wanted
            if now.shared and not wanted & 2 and has & 2:
                # It has to be written first; that it is not sealed shows now.
                self._steps.last.append((MPROTECT, [*arguments, wanted], what))
                given = has
            undo = (MPROTECT, [*arguments, has], "give access back")
            self._steps.do(self._injector, (MPROTECT, [*arguments, given], what), undo)
            wanted = given
        if change.has is not None and change.had is not None:
            self._adjust(change, wanted, change.has, change.had)
        if change.renamed:
            self._name(change)

    def _adjust(self, change: Change, access: int, has: Flags, wanted: Flags) -> None:
        """Give a mapping its attributes of then."""
        what = f"give the memory at {change.start:#x} the attributes that it had"
        if keeps_advice(has, wanted):
            self._warnings.append(f"the advice on huge pages for the memory at {change.start:#x} stays")
        for forth, back in steps(change.start, change.size, access, has, wanted):
            if back is None:
                self._steps.last.append((*forth, what))
            else:
                self._steps.do(self._injector, (*forth, what), (*back, "take attributes back"))

    def set_aside(self, change: Change) -> None:
        """Move a mapping that is in the way to a place from which it can come back."""
        size, what = change.size, f"move the mapping at {change.start:#x} aside"
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
        # With room to begin where a huge page may.
        room = self._injector.call(MMAP, [0, size + _HUGE, 0, flags, -1, 0], what)
        remove: Call = (MUNMAP, [room, size + _HUGE], "remove what was set aside")
        self._steps.undo.append(remove)
        place = -(-room // _HUGE) * _HUGE
        how = _MREMAP_MAYMOVE | _MREMAP_FIXED
        self._steps.do(
            self._injector,
            (MREMAP, [change.start, size, size, how, place], what),
            (MREMAP, [place, size, size, how, change.start], "move a mapping back"),
        )
        self._steps.last.append(remove)

    def map(self, change: Change) -> None:
        then = change.then
        assert then is not None
        where = f"map {then.name or 'memory'} at {change.start:#x}"
        undo: Call = (MUNMAP, [change.start, change.size], "remove a mapping")
        access = protection(then)
        self.changed += 1
        if then.anonymous:
            flags = _MAP_FIXED_NOREPLACE | _MAP_ANONYMOUS | mmap_flags(change.had)
            flags |= _MAP_GROWSDOWN if then.name == "[stack]" else 0
            arguments = [change.start, change.size, access, flags, -1, 0]
            self._steps.do(self._injector, (MMAP, arguments, where), undo)
        else:
            self._map_file(change, then, where, undo)
        if change.had is not None:
            self._adjust(change, access, given_by_mmap(change.had), change.had)
            for given in given_to_all(self._layout.has, change.had) if self._layout.has else []:
                self._adjust(change, access, given, frozenset())
        self._name(change)

    def _map_file(self, change: Change, then: Region, where: str, undo: Call) -> None:
        flags = _MAP_FIXED_NOREPLACE | (_MAP_SHARED if then.shared else _MAP_PRIVATE)
        offset = then.offset + change.start - then.start
        number = self._files.descriptor_of(then)
        opened = number is None
        if number is None:
            number = self._files.open(self._injector, self._text, then)
        try:
            arguments = [change.start, change.size, protection(then), flags, number, offset]
            self._steps.do(self._injector, (MMAP, arguments, where), undo)
        finally:
            if opened:
                self._files.close(self._injector, number)

    def _name(self, change: Change) -> None:
        """Note the name of PR_SET_VMA_ANON_NAME (prctl(2)): in maps "[anon:NAME]" or "[anon_shmem:NAME]"."""
        name = change.then.name if change.then else ""
        given = name[name.index(":") + 1 : -1] if name.startswith("[anon") else ""
        if given or change.renamed:
            self.names.append((change.start, change.size, given))
