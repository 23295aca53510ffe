"""One guest, every tracker, side by side: `uffdtrack bench ab`."""

from benchmarks.ab.compare import Setup, check_equal, crossover, emulated, run
from benchmarks.ab.guests import AB_ENGINES

__all__ = ["AB_ENGINES", "Setup", "check_equal", "crossover", "emulated", "run"]
