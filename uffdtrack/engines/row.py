"""What an engine is to Python: a row. Its counterpart in C is `ut_engine_ops` (_native/guest/engine.h)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uffdtrack.features import Features
from uffdtrack.traits import Traits


@dataclass(frozen=True)
class Engine:
    """Attributes:
    traits: what it promises.
    number: the C core's.
    lacks: what of a host's keeps it from working, or None.
    attached: it works on processes that are attached to.
    waits: the kernel's own faults wait for us, so that its userfaultfd has to take them.
    """

    traits: Traits
    number: int
    lacks: Callable[[Features], str | None]
    attached: bool = True
    waits: bool = False
