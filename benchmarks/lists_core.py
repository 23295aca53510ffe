"""What benchmarks/lists.py measures with: helpers in C (lists.c), the core's own functions, rows."""

from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import uffdtrack._native._core as core

from uffdtrack import GuestRam, UffdTracker
from uffdtrack._sys import ffi

HERE = Path(__file__).parent
Pages = npt.NDArray[np.uint64]


def build(directory: Path) -> Any:
    out = directory / "lists.so"
    flags = ["-O2", "-Wall", "-Wextra", "-pthread", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", out, HERE / "lists.c"], check=True)
    library = ctypes.CDLL(str(out))
    p, n = ctypes.c_void_p, ctypes.c_uint64
    for name, result, arguments in (
        ("now", ctypes.c_int64, []),
        ("write", ctypes.c_int64, [p, p, n]),
        ("call", ctypes.c_int64, [p, p]),
        ("rearm", ctypes.c_int64, [p, p, p, n]),
        ("uffd", ctypes.c_int, [p, n, ctypes.c_int]),
        ("protect", ctypes.c_int64, [ctypes.c_int, p, p, n]),
        ("protect_all", ctypes.c_int64, [ctypes.c_int, p, n]),
        ("poll", ctypes.c_int, [ctypes.c_int]),
        ("segv", ctypes.c_int, [p, n]),
        ("writer", p, [p, n, n]),
        ("writer_tid", ctypes.c_int, [p]),
        ("writer_go", None, [p]),
        ("writer_last", ctypes.c_int64, [p]),
        ("writer_end", None, [p]),
        ("lister", p, [p]),
        ("lister_tid", ctypes.c_int, [p]),
        ("lister_go", None, [p, p, n]),
        ("lister_wait", ctypes.c_int64, [p]),
        ("lister_end", None, [p]),
    ):
        function = getattr(library, f"bench_{name}")
        function.restype, function.argtypes = result, arguments
    return library


class Bench:
    """One run: C helpers, the core's functions, the rows so far."""

    def __init__(self, directory: Path) -> None:
        self.c = build(directory)
        self.core = ctypes.CDLL(core.__file__)
        self.out = (directory / "lists.jsonl").open("w")
        self.rows: list[dict[str, Any]] = []

    def row(self, series: str, us: float, **parameters: Any) -> None:
        self.rows.append({"series": series, "us": round(us, 3), **parameters})
        self.out.write(json.dumps(self.rows[-1]) + "\n")

    def write(self, ram: GuestRam, pages: Pages) -> float:
        return float(self.c.bench_write(ram.address, pages.ctypes.data, len(pages))) / 1e3

    def call(self, name: str, tracker: UffdTracker) -> float:
        """A function of the C core, without Python."""
        function = ctypes.cast(getattr(self.core, name), ctypes.c_void_p)
        return float(self.c.bench_call(function, int(ffi.cast("uintptr_t", tracker._c)))) / 1e3

    def rearm(self, tracker: UffdTracker) -> float:
        """All pages of the ended cycle, in C."""
        function = ctypes.cast(self.core.ut_rearm, ctypes.c_void_p)
        log = tracker._c.cycle.log[1 - tracker._c.cycle.open]
        gfn = int(ffi.cast("uintptr_t", log.gfn))
        native = int(ffi.cast("uintptr_t", tracker._c))
        return float(self.c.bench_rearm(function, native, gfn, log.n)) / 1e3
