"""What of the protocol an end may leave out, and says so in its HELLO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DELTAS, ZSTD = "deltas", "zstd"
"""Pages as deltas to the epoch before; compressed parts of images."""
FEATURES = (DELTAS, ZSTD)


def agreed(hello: Mapping[str, Any]) -> frozenset[str]:
    """What both ends have, by the other end's HELLO."""
    named = hello.get("features")
    return frozenset(one for one in FEATURES if isinstance(named, list) and one in named)
