"""Compiles the C core. Run by setuptools, through cffi_modules in setup.py."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PARTS = [HERE / name for name in ("leaves", "process", "follow", "guest")]
"""A part includes its own headers and those of parts before it; the last two do not include each other."""

ffi = FFI()
ffi.cdef((HERE / "cdef.h").read_text())
ffi.set_source(
    "uffdtrack._native._core",
    """
    #include "compat.h"
    #include "compare.h"
    #include "arm.h"
    #include "backing.h"
    #include "copies.h"
    #include "extents.h"
    #include "descriptors.h"
    #include "engine.h"
    #include "gate.h"
    #include "guard.h"
    #include "keep.h"
    #include "member.h"
    #include "methods.h"
    #include "mm.h"
    #include "probe.h"
    #include "pause.h"
    #include "places.h"
    #include "result.h"
    #include "sabotage.h"
    #include "series.h"
    #include "tree.h"
    """,
    sources=[str(source.relative_to(ROOT)) for part in PARTS for source in sorted(part.glob("*.c"))],
    include_dirs=[str(part) for part in (ROOT / "native_common", *PARTS)],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Wno-unused-parameter"],
    py_limited_api=True,
)
