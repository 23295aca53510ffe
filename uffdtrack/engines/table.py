"""All engines, by name."""

from uffdtrack.engines import inline, ring, scan, sync
from uffdtrack.engines.row import Engine

TABLE: dict[str, Engine] = {module.ENGINE.traits.name: module.ENGINE for module in (ring, scan, sync, inline)}
