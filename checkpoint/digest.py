"""The digests of epochs' files."""

from __future__ import annotations

import hashlib
import mmap
import os
from typing import Any, Protocol

from blake3 import blake3

DIGEST_SIZE = 32
NOTE_BLAKE3, NOTE_BLAKE2B = 0x75660006, 0x75660002
"""The notes with a file's digest; files of older versions have the second one."""
KINDS = (NOTE_BLAKE3, NOTE_BLAKE2B)
_CONTEXT = "uffdtrack 2026-11-29 key of the digests of a chain"


HEAD = 4096
"""BLAKE3 has so many bytes from the beginning of a file last: they are known when all else is written."""


class State(Protocol):
    def update(self, data: Any, /) -> Any: ...

    def digest(self) -> bytes: ...


def new_digest(key: bytes, kind: int = NOTE_BLAKE3) -> State:
    """Args: key: empty for none. kind: of `KINDS`."""
    if kind == NOTE_BLAKE2B:
        return hashlib.blake2b(key=key, digest_size=DIGEST_SIZE)
    # By this thread alone: a child of fork(2) would wait for ever for others that its parent had started.
    return blake3(key=blake3(key, derive_key_context=_CONTEXT).digest()) if key else blake3()


def file_digest(file: Any, digest_at: int, key: bytes, kind: int = NOTE_BLAKE3) -> bytes:
    """The digest of an open file with the 32 bytes at `digest_at` taken as zeros."""
    if not os.fstat(file.fileno()).st_size:
        return new_digest(key, kind).digest()
    with (
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole,
        memoryview(whole) as view,
    ):
        return image_digest(view, digest_at, key, kind)


def image_digest(image: memoryview, digest_at: int, key: bytes, kind: int = NOTE_BLAKE3) -> bytes:
    """As `file_digest`, of a file's contents."""
    state = new_digest(key, kind)
    first = HEAD if kind == NOTE_BLAKE3 else 0
    state.update(image[first:digest_at])
    state.update(bytes(DIGEST_SIZE))
    state.update(image[digest_at + DIGEST_SIZE :])
    state.update(image[:first])
    return state.digest()
