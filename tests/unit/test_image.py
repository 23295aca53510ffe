"""Epoch files and chains: what is written is read back, and every damage is reported by name."""

from __future__ import annotations

import itertools
import mmap
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.elf import ZERO
from checkpoint.errors import ImageError
from checkpoint.export import compact
from checkpoint.image import EpochFile
from tests.unit.images import BASE, REGION, THREADS, Content, facts_of, write
from uffdtrack import PAGE, Region
from uffdtrack.errors import InvalidInputError
from uffdtrack.runs import size_of, to_runs

CONTENT = st.dictionaries(st.integers(0, 255), st.integers(0, 255), max_size=40)
RESET = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 50)), max_size=4).map(
    lambda pairs: [(a, a + n) for a, n in pairs]
)


@settings(max_examples=60)
@given(st.lists(st.tuples(CONTENT, RESET), min_size=1, max_size=6), st.data())
def test_chain_gives_each_epoch_back(
    tmp_path_factory: pytest.TempPathFactory, epochs: list[tuple[Content, Any]], data: st.DataObject
) -> None:
    """Views, before and after compaction, against a model of plain dictionaries."""
    directory = tmp_path_factory.mktemp("chain")
    model: Content = {}
    states: list[Content] = []
    with ChainWriter(directory, b"", force=False) as chain:
        for i, (content, reset) in enumerate(epochs):
            for a, b in reset:
                model = {p: v for p, v in model.items() if not a <= p < b}
            model.update(content)
            states.append(dict(model))
            write(chain, content, reset, base=i == 0)
    before = data.draw(st.integers(0, len(epochs) - 1))
    for first in (0, before):
        if first:
            assert compact(Chain(directory), before, b"") == list(range(before))
        whole = Chain(directory)
        files = whole.verify(b"")
        assert [f.epoch for f in files] == list(range(first, len(epochs)))
        for n in range(first, len(epochs)):
            view = whole.view(n, files)
            contents = view.read(view.pages)
            found = {int(p) - BASE // PAGE: int(c[0]) for p, c in zip(view.pages, contents, strict=True)}
            assert found == states[n]
            assert all((c == c[0]).all() for c in contents)
            assert [t.tid for t in view.epoch.threads] == [7, 8, 9]
            assert view.epoch.threads == THREADS


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("damaged")
    with ChainWriter(directory, b"", force=False) as writer:
        write(writer, {0: 1, 1: 2, 5: 0, 9: 9}, base=True)
        write(writer, {1: 3})
        write(writer, {2: 4, 5: 5}, [(0, 1)])
    return directory


@settings(max_examples=400)
@given(st.integers(0, 1 << 30), st.integers(1, 255))
def test_every_damaged_byte_is_found(chain: Path, where: int, flip: int) -> None:
    path = chain / "epoch-00000001.core"
    good = path.read_bytes()
    bad = bytearray(good)
    bad[where % len(bad)] ^= flip
    path.write_bytes(bad)
    try:
        with pytest.raises(ImageError, match=r"epoch-0000000[12]\.core"):
            Chain(chain).verify(b"")
    finally:
        path.write_bytes(good)
    Chain(chain).verify(b"")


@settings(max_examples=200)
@given(st.integers(0, 1 << 30), st.binary(max_size=40))
def test_cut_and_lengthened_files(chain: Path, where: int, more: bytes) -> None:
    path = chain / "epoch-00000002.core"
    good = path.read_bytes()
    bad = good[: where % len(good)] + more
    if bad == good:
        return
    path.write_bytes(bad)
    try:
        with pytest.raises(ImageError, match=r"epoch-00000002\.core"):
            Chain(chain).verify(b"")
    finally:
        path.write_bytes(good)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_files_that_are_not_ours(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "epoch-00000000.core"
    path.write_bytes(data)
    with pytest.raises(ImageError):
        EpochFile(path)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_missing_file_is_named(chain: Path, victim: int) -> None:
    path = chain / f"epoch-{victim:08d}.core"
    hidden = path.with_suffix(".hidden")
    path.rename(hidden)
    try:
        with pytest.raises(ImageError, match=f"epoch-{victim:08d}.core is missing"):
            Chain(chain).verify(b"")
    finally:
        hidden.rename(path)


def test_exchanged_file_is_named(chain: Path, tmp_path: Path) -> None:
    """The same epoch of another chain, whole in itself."""
    with ChainWriter(tmp_path, b"", force=False) as writer:
        write(writer, {0: 1}, base=True)
        write(writer, {1: 4})
    path = chain / "epoch-00000001.core"
    good = path.read_bytes()
    path.write_bytes((tmp_path / path.name).read_bytes())
    try:
        with pytest.raises(ImageError, match=r"epoch-00000001\.core does not follow"):
            Chain(chain).verify(b"")
    finally:
        path.write_bytes(good)


def test_key(tmp_path: Path) -> None:
    with ChainWriter(tmp_path, b"secret", force=False) as writer:
        write(writer, {0: 1}, base=True)
    Chain(tmp_path).verify(b"secret")
    with pytest.raises(ImageError, match="--key-file"):
        Chain(tmp_path).verify(b"")
    with pytest.raises(ImageError, match="key is another"):
        Chain(tmp_path).verify(b"other")


def test_many_program_headers(tmp_path: Path) -> None:
    """More segments than e_phnum can say (PN_XNUM), read by us and by pyelftools."""
    from elftools.elf.elffile import ELFFile

    region = Region(BASE, BASE + 200_000 * PAGE, "rw-p", 0, "00:00", 0, "")
    count = 70_000
    starts = BASE + np.arange(count, dtype=np.uint64) * np.uint64(2 * PAGE)
    with ChainWriter(tmp_path, b"", force=False) as chain:
        writer = chain.begin(chain.next_epoch)
        writer.add_zero(np.stack((starts, starts + np.uint64(PAGE)), axis=1))
        facts = facts_of(chain, region, base=True, row={}, reset=[])
        digest = writer.finish(lambda pages, size: facts, b"", [region])
        writer.make_safe()
        chain.committed(chain.next_epoch, digest, last=True)
    file = Chain(tmp_path).verify(b"")[0]
    assert len(file.pages) == count and (file.offsets == ZERO).all()
    with file.path.open("rb") as stream:
        assert ELFFile(stream).num_segments() == count + 1


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with ChainWriter(tmp_path, b"", force=False) as chain:
        writer = chain.begin(chain.next_epoch)
        writer.abort()
        writer.abort()
        assert [n for n in os.listdir(tmp_path) if "epoch" in n] == []
        write(chain, {0: 1}, base=True)
    with pytest.raises(InvalidInputError, match="--force"):
        ChainWriter(tmp_path, b"", force=False)
    mode = (tmp_path / "epoch-00000000.core").stat().st_mode
    assert mode & 0o777 == 0o600


@pytest.mark.parametrize("force", [False, True])
def test_epoch_whose_name_cannot_be_synced(tmp_path: Path, force: bool) -> None:
    """It goes, unless an older chain has gone for it: then it is all that there is."""
    if force:
        with ChainWriter(tmp_path, b"", force=False) as chain:
            write(chain, {0: 1}, base=True)
    with ChainWriter(tmp_path, b"", force=force) as chain:
        writer = chain.begin(chain.next_epoch)
        facts = facts_of(chain, REGION, base=True, row={}, reset=[])
        writer.finish(lambda pages, size: facts, b"", [REGION])
        writer.sync()
        writer.rename()
        writer.withdraw()
    assert (tmp_path / "epoch-00000000.core").exists() is force
    if force:
        assert len(Chain(tmp_path).verify(b"")[0].pages) == 0


def test_files_of_a_chain_are_its_owners_alone(tmp_path: Path) -> None:
    with ChainWriter(tmp_path, b"", force=False) as writer:
        write(writer, {0: 1}, base=True)
        write(writer, {0: 2})
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(["epoch-00000000.core", "epoch-00000001.core", "head", ".lock"], 0o600)


@pytest.mark.parametrize("name", ["epoch-00000000.core", "epoch-00000001.core", "head"])
def test_fifo_is_not_waited_for(tmp_path: Path, name: str) -> None:
    with ChainWriter(tmp_path, b"", force=False) as writer:
        write(writer, {0: 1}, base=True)
        write(writer, {0: 2})
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ImageError, match=f"{name} is damaged: not a regular file"):
        Chain(tmp_path).verify(b"")


@pytest.mark.parametrize("key", [b"", b"secret"])
@pytest.mark.parametrize("pages", [0, 1, 7, 600])
def test_every_way_to_write_makes_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: bytes, pages: int
) -> None:
    """In one part and in two, past the page cache and through it."""
    rng = random.Random(pages)
    numbers = sorted(rng.sample(range(4 * pages + 1), pages))
    full, empty = numbers[: pages * 2 // 3], numbers[pages * 2 // 3 :]
    data, zero = (to_runs(np.array([BASE // PAGE + n for n in some], np.uint64)) for some in (full, empty))
    region = replace(REGION, end=BASE + (4 * pages + 1) * PAGE)
    files, digests = set(), set()
    for n, (parts, shift, opens) in enumerate(itertools.product((1, 2), (0, 8), (True, False))):
        with mmap.mmap(-1, max(1, len(full)) * PAGE + PAGE) as buffer, memoryview(buffer) as whole:
            contents = whole[shift : shift + len(full) * PAGE]
            contents[:] = random.Random(pages).randbytes(len(full) * PAGE)
            with ChainWriter(tmp_path / str(n), key, False) as chain, monkeypatch.context() as patch:
                if not opens:
                    patch.setattr(os, "O_DIRECT", os.O_DIRECTORY)  # which fails
                facts = facts_of(chain, region, base=True, row={}, reset=[])
                writer = chain.begin(0)
                cut = len(data) // 2 if parts == 2 else 0
                size = size_of(data[:cut])
                writer.add(data[:cut], contents[:size])
                writer.add(data[cut:], contents[size:])
                writer.add_zero(zero)
                digests.add(writer.finish(lambda n, size, facts=facts: facts, b"", [region]))  # type: ignore[misc]
                writer.make_safe()
            contents.release()
        files.add((tmp_path / str(n) / "epoch-00000000.core").read_bytes())
        EpochFile(tmp_path / str(n) / "epoch-00000000.core").verify(key)
    assert len(files) == len(digests) == 1


@pytest.mark.parametrize("pages", [1, 60, 900])
def test_some_pages_of_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    """Those that are chosen make the same file as if there were no others."""
    rng = np.random.default_rng(pages)
    numbers = BASE // PAGE + np.flatnonzero(rng.random(2 * pages) < 0.7)[:pages].astype(np.uint64)
    chosen = rng.random(len(numbers)) < 0.6
    region = replace(REGION, end=BASE + 2 * pages * PAGE)
    held = rng.integers(0, 256, (len(numbers), PAGE), np.uint8)
    files = set()
    for n, (some, shift, opens) in enumerate(itertools.product((False, True), (0, 8), (True, False))):
        data, kept = (held, chosen) if some else (held[chosen], None)
        with mmap.mmap(-1, data.nbytes + PAGE) as buffer, memoryview(buffer) as whole:
            contents = whole[shift : shift + data.nbytes]
            contents[:] = data.tobytes()
            with ChainWriter(tmp_path / str(n), b"", False) as chain, monkeypatch.context() as patch:
                if not opens:
                    patch.setattr(os, "O_DIRECT", os.O_DIRECTORY)  # which fails
                facts = facts_of(chain, region, base=True, row={}, reset=[])
                writer = chain.begin(0)
                writer.add(to_runs(numbers if some else numbers[chosen]), contents, kept)
                writer.finish(lambda n, size, facts=facts: facts, b"", [region])  # type: ignore[misc]
                writer.make_safe()
            contents.release()
        files.add((tmp_path / str(n) / "epoch-00000000.core").read_bytes())
        EpochFile(tmp_path / str(n) / "epoch-00000000.core").verify(b"")
    assert len(files) == 1
