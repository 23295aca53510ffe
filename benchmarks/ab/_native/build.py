"""Compiles the A/B's native guest. Run by setuptools, through cffi_modules in setup.py."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent

ffi = FFI()
ffi.cdef((HERE / "cdef.h").read_text())
ffi.set_source(
    "benchmarks.ab._native._core",
    '#include "native.h"',
    sources=[str((HERE / "native.c").relative_to(ROOT))],
    include_dirs=[str(ROOT / "native_common"), str(HERE)],
    extra_compile_args=["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra"],
    py_limited_api=True,
)
