"""Engines: what each promises, and the choice among them."""

from __future__ import annotations

from uffdtrack.engines import scan
from uffdtrack.errors import InvalidInputError, UnsupportedError
from uffdtrack.features import Features
from uffdtrack.traits import Traits

ENGINES = {"scan": scan.TRAITS}


def choose_engine(name: str, features: Features) -> Traits:
    """The traits of the named engine, or of the best one here for "auto".

    Raises:
        InvalidInputError: no such engine.
        UnsupportedError: it does not work on this host.
    """
    if name != "auto" and name not in ENGINES:
        raise InvalidInputError(f"no engine {name!r}; there are auto, {', '.join(ENGINES)}")
    traits = ENGINES["scan" if name == "auto" else name]
    if not features.scan:
        raise UnsupportedError(
            f"engine {traits.name} needs userfaultfd WP_ASYNC and PAGEMAP_SCAN (Linux 6.7), "
            "which this kernel lacks; see uffdtrack doctor"
        )
    return traits
