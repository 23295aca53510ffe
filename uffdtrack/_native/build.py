"""Compiles the C core. Run by setuptools, through cffi_modules in setup.py."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
SOURCES = [
    "attach.c",
    "backing.c",
    "compare.c",
    "calls.c",
    "exits.c",
    "files.c",
    "guard.c",
    "heads.c",
    "inject.c",
    "keep.c",
    "lists.c",
    "maps.c",
    "probe.c",
    "rearm.c",
    "remote.c",
    "restart.c",
    "ring.c",
    "rseq.c",
    "runs.c",
    "seccomp.c",
    "space.c",
    "sync.c",
    "tracee.c",
    "tracker.c",
    "tree.c",
    "watch.c",
]

ffi = FFI()
ffi.cdef((HERE / "cdef.h").read_text())
ffi.set_source(
    "uffdtrack._native._core",
    """
    #include "compare.h"
    #include "compat.h"
    #include "backing.h"
    #include "files.h"
    #include "keep.h"
    #include "guard.h"
    #include "probe.h"
    #include "space.h"
    #include "tracker.h"
    #include "tree.h"

    #include <errno.h>

    static int ut_uffd_api(int fd, uint64_t features)
    {
        struct uffdio_api api = {.api = UFFD_API, .features = features};

        return ioctl(fd, UFFDIO_API, &api) ? -errno : 0;
    }
    """,
    sources=[str((HERE / name).relative_to(HERE.parent.parent)) for name in SOURCES],
    include_dirs=[str(HERE)],
    extra_compile_args=["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Wno-unused-parameter"],
    py_limited_api=True,
)
