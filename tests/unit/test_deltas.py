"""Pages that are stored as deltas: what a chain gives back, whatever is written, fails, or is merged."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.compare import differences
from checkpoint.deltas import FIRST, NOTE_DELTAS, _unpack, new_decompressor
from checkpoint.elf import NOTE_META, NOTE_NAME
from checkpoint.errors import ImageError
from checkpoint.export import compact, kept_notes
from checkpoint.image import EpochFile
from checkpoint.last_copies import LastCopies
from checkpoint.rollback import stored
from checkpoint.rollback.stored import Image
from checkpoint.sink import ChainSink
from checkpoint.view import Shared, check_all_deltas, join
from tests.unit.histories import (
    FIRST_PAGE,
    PAGES,
    chance_of,
    contents_of,
    first_byte,
    history,
    regions_of,
    store,
    two_epochs,
    window,
)
from tests.unit.images import BASE
from uffdtrack import DIFFERENCE, PAGE, Window, page_checks
from uffdtrack.errors import StorageError

pytestmark = pytest.mark.usefixtures("little_room")


@pytest.mark.parametrize("seed", range(8))
def test_every_epoch_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Before and after merging, by views, by comparison, as a rollback reads it, and one by one."""
    states = history(tmp_path, seed, monkeypatch)
    chain = Chain(tmp_path)
    rng = random.Random(seed)
    files = chain.verify(b"")
    assert len(files) == len(states) > 30
    assert sum(bool(file.deltas) for file in files) > 10
    for merged in (0, rng.randrange(len(states)), rng.randrange(len(states))):
        if merged >= files[0].epoch:
            compact(chain, merged, b"")
        chain = Chain(tmp_path)
        files = chain.verify(b"")
        check_all_deltas(files)
        for n in range(files[0].epoch, len(states)):
            assert contents_of(chain, n, files) == states[n]
    last = chain.view(None)
    image = Image(last)
    assert image.read(last.pages).tobytes() == last.read(last.pages).tobytes()
    image.close()
    first = chain.view(files[0].epoch)
    found = {int(p) - FIRST_PAGE for d in differences(first, last) for p in d.changed}
    a, b = states[files[0].epoch], states[-1]
    assert found == {p for p in a.keys() | b.keys() if a.get(p, bytes(PAGE)) != b.get(p, bytes(PAGE))}


def test_memory_that_another_process_stores(tmp_path: Path) -> None:
    """A view with a part of another's, both with deltas: that part counts, here at another address."""
    rng, views, held = random.Random(9), [], []
    for name in ("own", "other"):
        with ChainWriter(tmp_path / name, b"", force=False) as writer:
            sink, regions, pages = ChainSink(writer), regions_of(PAGES), list(range(0, 20, 2))
            memory = bytearray(rng.randbytes(len(pages) * PAGE))
            for epoch in range(5):
                store(sink, window(regions, pages, [], bytes(memory)), base=not epoch)
                memory[rng.randrange(9) * PAGE] ^= 1
        views.append(Chain(tmp_path / name).view(None))
        held.append(contents_of(Chain(tmp_path / name), 4))
    assert all(len(view.layers.pages) for view in views)
    # Its pages 6 to 13 are 3 pages further up here: 9, 11, 13, 15, and what is here at 10, 12, 14 stays.
    place = Shared(views[1], BASE + 6 * PAGE, BASE + 14 * PAGE, 3 * PAGE)
    again = Shared(views[1], BASE + 2 * PAGE, BASE + 6 * PAGE, 10 * PAGE)  # 2 and 4, at 12 and 14
    view = join(views[0], [place, again])
    found = {int(p) - FIRST_PAGE: c.tobytes() for p, c in zip(view.pages, view.read(view.pages), strict=True)}
    more = {9: 6, 11: 8, 13: 10, 15: 12, 12: 2, 14: 4}
    assert found == {**held[0], **{here: held[1][there] for here, there in more.items()}}


def break_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are taken for those of the epoch before, whatever that is."""
    split = LastCopies.split

    def wrong(self: LastCopies, parent: str, window: Window) -> Any:
        self._of = parent
        return split(self, parent, window)

    monkeypatch.setattr(LastCopies, "split", wrong)


def break_void(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy is kept though its page has become zero, or void."""
    monkeypatch.setattr("checkpoint.last_copies.indices_within", lambda pages, ranges: np.empty(0, np.int64))


def break_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place is given to a page while another one has it."""
    monkeypatch.setattr(LastCopies, "_insert", lambda self, pages, places: insert(self, pages, places[::-1]))


insert = LastCopies._insert


@pytest.mark.parametrize("broken", [break_parent, break_void, break_places])
def test_negative_controls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """A delta to another base is found: by its check, or since the page has none."""
    broken(monkeypatch)
    history(tmp_path, 3, monkeypatch)
    with pytest.raises(ImageError, match=r"a delta"):
        check_all_deltas(Chain(tmp_path).verify(b""))


def test_a_small_change_takes_few_bytes(tmp_path: Path) -> None:
    two_epochs(tmp_path, first_byte, lambda page: None)
    files = Chain(tmp_path).files()
    assert [file.facts.row["bytes"] for file in files[:2]] == [2 * PAGE, PAGE]
    assert 0 < files[2].facts.row["bytes"] < 64
    assert files[3].facts.row["bytes"] == 0 and len(files[3].pages) == 1


def test_versions(tmp_path: Path) -> None:
    """Images without deltas are what older versions read; those with some say that they are not."""
    two_epochs(tmp_path, first_byte)
    schemas = []
    for file in Chain(tmp_path).files():
        meta = next(data for name, kind, data in file.notes if (name, kind) == (NOTE_NAME, NOTE_META))
        schemas.append(meta.split(b'"')[3].decode())
        assert (NOTE_DELTAS.to_bytes(4, "little") in kept_notes(file)) is False
    assert schemas == ["uffdtrack/image/1", "uffdtrack/image/1", "uffdtrack/image/2"]


def test_a_page_is_stored_whole_at_times(tmp_path: Path) -> None:
    two_epochs(tmp_path, *[first_byte] * 11)
    files = Chain(tmp_path).files()
    assert [bool(file.deltas) for file in files] == [False, False, *([True] * 4 + [False]) * 2, True]


def test_a_page_whose_mapping_was_away_is_stored_whole(tmp_path: Path) -> None:
    """The epoch in between may become the base, and does not have it."""
    with ChainWriter(tmp_path, b"", force=False) as chain:
        sink, page = ChainSink(chain), bytes([1]) * PAGE
        wide, narrow = regions_of(PAGES), regions_of(1)
        store(sink, window(wide, [0, 5], [], page * 2), base=True)
        store(sink, window(wide, [5], [], page))
        store(sink, window(wide, [5], [], page))
        store(sink, window(narrow, [0], [], page))
        store(sink, window(wide, [5], [], page))
    files = Chain(tmp_path).files()
    assert [bool(file.deltas) for file in files] == [False, False, True, False, False]
    compact(Chain(tmp_path), 3, b"")
    assert contents_of(Chain(tmp_path), 4)[5] == page


def table_at(path: Path) -> tuple[int, int]:
    """Where the first frame of a file with deltas is, and its table."""
    file = EpochFile(path)
    table = next(data for _, kind, data in file.notes if kind == NOTE_DELTAS)
    return int.from_bytes(table[8:16], "little"), path.read_bytes().index(table)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("frame", b"\0\0\0\0"),  # no magic number
        ("frame+4", b"\xff\xff\xff\xff"),
        ("frame+12", b"\xff\xff\xff\xff"),
        ("table", (1 << 20).to_bytes(4, "little")),  # more frames than there are
        ("table+4", (2).to_bytes(4, "little")),  # more pages
        ("table+8", (1 << 50).to_bytes(8, "little")),  # an offset behind the end
        ("table+8", (1 << 63).to_bytes(8, "little")),
        ("table+16", (1 << 31).to_bytes(4, "little")),  # a size behind the end
        ("table+20", (5).to_bytes(4, "little")),  # pages in the frame
        ("table+24", (BASE // PAGE + 9).to_bytes(8, "little")),  # a page that no epoch has
        ("table+24", (1 << 60).to_bytes(8, "little")),  # a page that cannot be
        ("table+32", bytes(8)),  # the check
    ],
)
def test_damaged_deltas(tmp_path: Path, where: str, value: bytes) -> None:
    """Found by the digest; and without it, when they are read."""
    two_epochs(tmp_path, first_byte)
    path = tmp_path / "epoch-00000002.core"
    frame, table = table_at(path)
    what, _, more = where.partition("+")
    at = {"frame": frame, "table": table}[what] + int(more or 0)
    data = bytearray(path.read_bytes())
    assert data[at : at + len(value)] != value
    data[at : at + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"epoch-00000002\.core"):
        Chain(tmp_path).verify(b"")
    with pytest.raises(ImageError, match=r"epoch-00000002\.core"):
        contents_of(Chain(tmp_path), 2)
    with pytest.raises(ImageError, match=r"epoch-00000002\.core"):
        check_all_deltas(Chain(tmp_path).files())


def test_checks() -> None:
    """XXH64 of 4096 bytes, seed 0, as the xxhash package computes it."""
    pages = np.stack([np.zeros(PAGE, np.uint8), np.arange(PAGE, dtype=np.uint64).astype(np.uint8)])
    assert [f"{c:016x}" for c in page_checks(pages, np.array([1, 0]))] == [
        "0f6e64be186af6a4",
        "ac869b6f32d8bbdb",
    ]


def test_places_of_deltas(tmp_path: Path) -> None:
    two_epochs(tmp_path, first_byte)
    assert EpochFile(tmp_path / "epoch-00000002.core").offsets.tolist() == [FIRST]


def test_pages_that_did_not_change_cost_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is written again with what it has is read from where it is stored, however long ago."""
    two_epochs(tmp_path, first_byte, *[lambda page: None] * 30)
    files = Chain(tmp_path).files()
    assert all(file.deltas for file in files[2:])
    opened: list[Path] = []
    open_file = EpochFile.open
    monkeypatch.setattr(EpochFile, "open", lambda self: (opened.append(self.path), open_file(self))[1])
    page = bytearray(random.Random(1).randbytes(PAGE))
    first_byte(page)
    assert contents_of(Chain(tmp_path), 32, files)[1] == page
    assert sorted(path.name[-7:-5] for path in opened) == ["00", "01", "02"]


def test_frames_say_how_large_they_are() -> None:
    """One that does not could make us unpack without end."""
    data = bytes(DIFFERENCE)
    assert _unpack(new_decompressor(), zstandard.ZstdCompressor().compress(data), 1) == data
    for wrong, pages in ((zstandard.ZstdCompressor(write_content_size=False).compress(data), 1), (data, 1)):
        with pytest.raises(ValueError, match="frame"):
            _unpack(new_decompressor(), wrong, pages)
    with pytest.raises(ValueError, match="frame"):
        _unpack(new_decompressor(), zstandard.ZstdCompressor().compress(data * 2), 1)


def test_what_a_rollback_puts_together_is_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the chain's directory, without a name; a full disk is told before anything is touched."""
    two_epochs(tmp_path, first_byte)
    view = Chain(tmp_path).view(None)
    before = sorted(tmp_path.iterdir())
    image = Image(view)
    places = image.places(view.pages)
    file = os.readlink(f"/proc/self/fd/{places[view.offsets <= FIRST][0, 0]}")
    assert file.startswith(f"{tmp_path}/") and file.endswith("(deleted)")
    assert sorted(tmp_path.iterdir()) == before
    assert image.read(view.pages).tobytes() == view.read(view.pages).tobytes()
    image.close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", chance_of(1, random.Random(), os.pwritev))
        with pytest.raises(StorageError, match=f"room there|{tmp_path}"):
            Image(view)


def test_a_rollback_from_a_chain_that_we_may_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_epochs(tmp_path, first_byte)
    view = Chain(tmp_path).view(None)
    make = stored.TemporaryFile

    def read_only(**options: Any) -> Any:
        if options.get("dir") == tmp_path:
            raise OSError(errno.EROFS, "Read-only file system")
        return make(**options)

    monkeypatch.setattr(stored, "TemporaryFile", read_only)
    image = Image(view)
    assert image.read(view.pages).tobytes() == view.read(view.pages).tobytes()
    image.close()
