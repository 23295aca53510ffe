"""Compiles the C core of kvmglue. Run by setuptools, through cffi_modules in setup.py."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
SOURCES = ["dirty.c", "guest.c", "native.c", "state.c", "vm.c"]

ffi = FFI()
ffi.cdef((HERE / "cdef.h").read_text())
ffi.set_source(
    "kvmglue._native._core",
    '#include "dirty.h"',
    sources=[str((HERE / name).relative_to(HERE.parent.parent)) for name in SOURCES],
    include_dirs=[str(HERE)],
    extra_compile_args=["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Wno-unused-parameter"],
    py_limited_api=True,
)
