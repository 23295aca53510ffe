"""Frames of deltas that make no sense, from a peer or a damaged file: refused before anything changes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import zstandard

from checkpoint.deltas import _FRAME as FRAME
from checkpoint.deltas import Deltas, new_decompressor
from uffdtrack import PAGE, Extents, page_checks


@pytest.mark.parametrize(
    "table",
    [
        FRAME.pack(4096, 0, 0) + FRAME.pack(4096, 0, 1),  # no pages
        FRAME.pack(4096, 9, 0) + FRAME.pack(4096, 0, 1),
    ],
)
def test_frames_without_pages(table: bytes) -> None:
    with pytest.raises(ValueError, match="no sense"):
        Deltas(struct.pack("<II", 2, 1) + table + struct.pack("<QQ", 5, 0), 1 << 20)


def test_frame_that_is_empty() -> None:
    """It is no frame of pages that do not change, though it has nothing to XOR into them."""
    page = np.ones((1, PAGE), np.uint8)
    check = int(page_checks(page, np.array([0]))[0])
    data = np.frombuffer(zstandard.compress(b""), np.uint8)
    table = struct.pack("<II", 1, 1) + FRAME.pack(0, len(data), 1) + struct.pack("<QQ", 5, check)
    with pytest.raises(ValueError, match="damaged"):
        Deltas(table, len(data)).merge_into(Extents([(5, page)]), data, new_decompressor())
