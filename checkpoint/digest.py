"""The digests of epochs' files."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable
from typing import Any, Protocol

from blake3 import blake3

DIGEST_SIZE = 32
NOTE_BLAKE3, NOTE_BLAKE2B = 0x75660006, 0x75660002
"""The notes with a file's digest; files of older versions have the second one."""
KINDS = (NOTE_BLAKE3, NOTE_BLAKE2B)
_CONTEXT = "uffdtrack 2026-11-29 key of the digests of a chain"


class _State(Protocol):
    def update(self, data: Any, /) -> Any: ...

    def digest(self) -> bytes: ...


def _new(kind: int, key: bytes) -> _State:
    if kind == NOTE_BLAKE2B:
        return hashlib.blake2b(key=key, digest_size=DIGEST_SIZE)
    # By this thread alone: a child of fork(2) would wait for ever for others that its parent had started.
    return blake3(key=blake3(key, derive_key_context=_CONTEXT).digest()) if key else blake3()


def digest_of(parts: Iterable[bytes | memoryview], key: bytes) -> bytes:
    """BLAKE3-256 of parts, one after the other; without a key if that is empty."""
    state = _new(NOTE_BLAKE3, key)
    for part in parts:
        state.update(part)
    return state.digest()


def file_digest(file: Any, digest_at: int, key: bytes, kind: int = NOTE_BLAKE3) -> bytes:
    """The digest of an open file with the 32 bytes at `digest_at` taken as zeros.

    Args:
        kind: of `KINDS`.
    """
    size = os.fstat(file.fileno()).st_size
    state = _new(kind, key)
    if size:
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole,
            memoryview(whole) as view,
        ):
            state.update(view[:digest_at])
            state.update(bytes(DIGEST_SIZE))
            state.update(view[digest_at + DIGEST_SIZE :])
    return state.digest()
