"""What kind of file a descriptor leads to, without asking a file system that may not answer."""

from __future__ import annotations

from uffdtrack._sys import ffi, lib


def file_mode(directory: int, name: str) -> tuple[int, int]:
    """Type and mode (inode(7)), and size, of what `name` in an open directory leads to; (0, 0) if not known.

    The size may be an old one: what has to be fetched from elsewhere (a network, FUSE) is not.
    """
    size = ffi.new("uint64_t *")
    mode = lib.ut_file_mode(directory, name.encode(errors="surrogateescape"), size)
    return (int(mode), int(size[0])) if mode > 0 else (0, 0)
