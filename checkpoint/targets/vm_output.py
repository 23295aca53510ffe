"""What a guest has sent, put together from several epochs."""

from __future__ import annotations

from collections.abc import Sequence

from checkpoint.errors import ImageError
from checkpoint.image import EpochFile
from checkpoint.targets.vm_state import output_of
from kvmglue import Output

MOST = 2 << 20
"""No more bytes are held than that, so what is before them has been seen."""


def joined(held: Output, new: Output) -> Output:
    """What is held, and a new epoch's; that begins at its end, or before it if an epoch was dropped there.

    Raises:
        ImageError: there is a gap.
    """
    serial, packets = new.serial_at - held.serial_at, new.packet_at - held.packet_at
    if not (0 <= serial <= len(held.serial) and 0 <= packets <= len(held.packets)):
        raise ImageError(f"an epoch has the output from {new.start} on, and that up to {held.end} was here")
    before = Output(held.serial_at, held.serial[:serial], held.packet_at, held.packets[:packets])
    return before.then(new)


def output_up_to(line: Sequence[EpochFile]) -> Output | None:
    """What a guest had sent at the last of some epochs, each the parent of the next: as much as may be held.

    Who stores epochs may have let out nothing of it yet.

    Raises:
        ImageError: an epoch is damaged.
    """
    found: Output | None = None
    for file in reversed(line):
        part = output_of(file)
        if part is None or (found and (part.end[0] < found.serial_at or part.end[1] < found.packet_at)):
            break
        found = joined(part, found) if found else part
        if len(found.serial) > MOST:
            break
    return found
