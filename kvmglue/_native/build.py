"""Compiles the C core of kvmglue. Run by setuptools, through cffi_modules in setup.py."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

ffi = FFI()
ffi.cdef((HERE / "cdef.h").read_text())
ffi.set_source(
    "kvmglue._native._core",
    '#include "dirty.h"\n#include "gate.h"\n#include "sabotage.h"',
    sources=[str(source.relative_to(ROOT)) for source in sorted(HERE.glob("[!_]*.c"))],
    include_dirs=[str(ROOT / "native_common"), str(HERE)],
    extra_compile_args=[
        *("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g"),
        *("-Wall", "-Wextra", "-Wno-unused-parameter"),
    ],
    py_limited_api=True,
)
