"""What a rollback did."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """What a rollback did.

    Attributes:
        pages: how many it has written, since they differed.
        mappings: how many it has made, removed or changed.
        ended: threads born since the epoch, which it has ended.
        warnings: text about what is not as it was.
    """

    epoch: int
    pages: int = 0
    mappings: int = 0
    ended: list[int] = field(default_factory=list)
    pause_us: float = 0.0
    warnings: list[str] = field(default_factory=list)
