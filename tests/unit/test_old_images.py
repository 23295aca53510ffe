"""Images that an earlier version has written: what is read of them stays what it was, byte for byte.

`old_images/images.tar.xz` has a process, one under a key and the same compacted, a VM and a tree;
`printed.txt` is what that version has printed of them, but for `taken`, `file` and `file_bytes` of `ls`, and
the lines `taken` and `pages` of `show` of a tree, which are newer.
"""

from __future__ import annotations

import json
import re
import struct
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from checkpoint.chain import Chain
from checkpoint.cli.main import cli
from checkpoint.elf import NOTE_META
from checkpoint.export import compact
from checkpoint.facts import ImageFacts
from checkpoint.image import EpochFile
from checkpoint.targets.vm_state import NOTE_VCPU_JSON, decode_vcpus, encode_vcpu, vcpu_states
from checkpoint.tree import Tree
from uffdtrack.errors import InvalidInputError, UffdtrackError

OLD = Path(__file__).parent / "old_images"
PRINTED = [
    (command, output, int(status))
    for command, output, status in re.findall(
        r"^\$ ([^\n]*)\n(.*?)^= (\d+)\n", (OLD / "printed.txt").read_text(), re.MULTILINE | re.DOTALL
    )
]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    with tarfile.open(OLD / "images.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def here(images: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(images)
    with monkeypatch.context() as zone:
        zone.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def test_all_that_was_printed_is_compared() -> None:
    text = (OLD / "printed.txt").read_text()
    assert len(PRINTED) == len(re.findall(r"^\$ ", text, re.MULTILINE)) > 30


@pytest.mark.parametrize(("command", "output", "status"), PRINTED, ids=[p[0] for p in PRINTED])
def test_what_is_printed(command: str, output: str, status: int, here: None) -> None:
    done = CliRunner().invoke(cli, command.split())
    printed, code = done.output, done.exit_code
    if isinstance(done.exception, UffdtrackError):
        printed, code = f"{printed}uffdtrack: error: {done.exception}\n", done.exception.exit_code
    assert (printed, code) == (output, status)


def parts_of(path: Path) -> object:
    """What is in a file, without its digest and the spelling of its JSON: newer versions differ there."""
    if path.suffix != ".core":
        return path.read_bytes()
    file = EpochFile(path)
    notes = [
        (name, kind, json.loads(data) if kind == NOTE_META else data)
        for name, kind, data in file.notes
        if data.hex() != file.digest
    ]
    end = max(file.offsets.max(), 0) + 4096
    return notes, file.pages.tolist(), file.offsets.tolist(), file.data()[4096:end].tobytes()


def test_compaction_writes_the_same(images: Path) -> None:
    key = (images / "key").read_bytes()
    compact(Chain(images / "keyed"), 2, key)
    for path in (images / "compacted").iterdir():
        assert parts_of(images / "keyed" / path.name) == parts_of(path)
    Chain(images / "keyed").verify(key)


def stored(file: EpochFile) -> bytes:
    """The JSON, as it stands in the file."""
    return next(data for _, kind, data in file.notes if kind == NOTE_META)


def test_what_an_image_says_is_written_as_it_was(images: Path) -> None:
    for name in ("process", "keyed", "compacted", "vm"):
        for file in (Chain(images / name).open(n) for n in Chain(images / name).epochs):
            again, was = file.facts.to_json(), json.loads(stored(file))
            assert again == was
            if name != "vm":
                assert json.dumps(again).encode() == stored(file), "the keys are in their order"
    for entry in Tree(images / "tree").entries():
        assert json.dumps(entry.facts.to_json()).encode() in entry.path.read_bytes()


def test_what_a_newer_version_stores_is_not_lost(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ImageFacts.names()
    monkeypatch.setattr(ImageFacts, "names", lambda: names - {"heap_end"})
    with pytest.raises(InvalidInputError, match="heap_end"):
        compact(Chain(images / "keyed"), 2, (images / "key").read_bytes())
    assert len(Chain(images / "keyed").epochs) == 5


def test_vcpus_as_json(images: Path) -> None:
    """Older versions have stored a vCPU's state as JSON."""
    epoch = EpochFile(images / "vm" / "epoch-00000000.core")
    stored = [json.loads(data) for _, kind, data in epoch.notes if kind == NOTE_VCPU_JSON]
    states = vcpu_states(epoch)
    assert len(states) == len(stored) > 0
    for one in stored:
        state = states[one["vcpu"]]
        assert [part.hex() for part in state.parts] == one["parts"]
        assert [list(msr) for msr in state.msrs] == one["msrs"]
    assert decode_vcpus(encode_vcpu(n, states[n]) for n in reversed(range(len(states)))) == states


@pytest.mark.parametrize("cut", [-1, 1, 40])
def test_vcpus_that_are_damaged(images: Path, cut: int) -> None:
    whole = encode_vcpu(0, vcpu_states(EpochFile(images / "vm" / "epoch-00000000.core"))[0])
    with pytest.raises((ValueError, struct.error)):
        decode_vcpus([whole[:cut]])
    with pytest.raises((ValueError, struct.error)):
        decode_vcpus([whole, whole])
