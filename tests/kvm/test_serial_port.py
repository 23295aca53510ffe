"""Where the serial port leads to: files and streams that are full, slow, or gone."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.session import Session
from checkpoint.targets.vm import VmTarget
from checkpoint.targets.vm_state import output_of
from kvmglue import Outbox, Output, SerialFile, SerialStream, open_serial, wait
from tests.helpers import DEADLINE
from tests.kvm.conftest import Machine, count, numbers
from uffdtrack.errors import CycleError, InvalidInputError, OutputError

Make = Callable[..., Machine]


class Fails:
    """A backend that fails now and then, after some bytes."""

    repeatable = True

    def __init__(self, path: Path) -> None:
        self.file, self.rng = open_serial(path), random.Random(3)

    def write(self, at: int, data: bytes) -> int:
        if self.rng.random() < 0.5:
            raise OSError(28, "No space left on device")
        return self.file.write(at, data[: self.rng.randrange(1, 50)])

    def close(self) -> None:
        self.file.close()


def test_a_backend_that_fails_loses_nothing(machine: Make, tmp_path: Path) -> None:
    vm, failed = machine("kvm-bitmap").vm, 0
    with Outbox(vm, Fails(tmp_path / "serial")) as outbox:
        count(vm, 200)
        assert wait(vm, 0, DEADLINE)
        outbox.collect()
        while outbox.released != outbox.collected:
            before = outbox.released
            try:
                outbox.release(outbox.collected)
            except OutputError as error:
                assert "No space left" in str(error)
                failed += 1
            assert outbox.released >= before
    assert failed > 5 and (tmp_path / "serial").read_bytes() == numbers(200)


def test_streams(machine: Make, tmp_path: Path) -> None:
    """A slow reader is waited for by the guest; one that has gone is an error."""
    vm = machine("kvm-bitmap").vm
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    text = numbers(30_000)
    with Outbox(vm, SerialStream(writer, owned=True)) as outbox:
        outbox.restore((7, 0), Output(0, b"before " + text))
        assert not outbox.release(outbox.collected), "a pipe has 64 KiB"
        got = b""
        while outbox.released != outbox.collected:
            got += os.read(reader, 1 << 20)
            outbox.release(outbox.collected)
        assert got + os.read(reader, 1 << 20) == text
        count(vm, 10)
        assert wait(vm, 0, DEADLINE)
        os.close(reader)
        outbox.collect()
        with pytest.raises(OutputError) as caught:
            outbox.release(outbox.collected)
        assert isinstance(caught.value.__cause__, BrokenPipeError)
        assert outbox.released == (7 + len(text), 0)


def test_a_base_has_what_is_granted_and_not_released(machine: Make, tmp_path: Path) -> None:
    """It is taken back for the base, and a slow reader gets it all the same, once."""
    made = machine("kvm-bitmap")
    reader, writer = os.pipe()
    text = numbers(20_000)
    with Outbox(made.vm, SerialStream(writer, owned=True)) as outbox:
        outbox.restore((0, 0), Output(0, text))
        assert not outbox.release(outbox.collected)
        before = outbox.released
        with ChainWriter(tmp_path / "c", b"", False) as chain:
            Session(VmTarget(made.vm, made.tracker, "count", outbox), chain).take()
        assert output_of(Chain(tmp_path / "c").open(0)) == Output(before[0], text[before[0] :])
        outbox.take_back(before)
        got = b""
        while outbox.released != (len(text), 0):
            got += os.read(reader, 1 << 20)
            outbox.release((len(text), 0))
        with pytest.raises(CycleError, match="collected"):
            outbox.release((len(text) + 1, 0))
        assert got + os.read(reader, 1 << 20) == text
    os.close(reader)


def test_serial_files(tmp_path: Path) -> None:
    out = tmp_path / "serial"
    out.write_bytes(b"0123456789")
    file = open_serial(out)
    assert isinstance(file, SerialFile) and file.write(3, b"abc") == 3
    file.close()
    assert out.read_bytes() == b"012abc6789"
    assert isinstance(open_serial(Path("/dev/null")), SerialStream)
    os.mkfifo(tmp_path / "fifo")
    fifo = open_serial(tmp_path / "fifo")
    assert fifo.write(0, b"text") == 0, "nobody reads"
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert fifo.write(0, b"text") == 4 and os.read(reader, 10) == b"text"
    os.close(reader)
    assert fifo.write(4, b"more") == fifo.write(4, b"more") == 0, "its reader has gone"
    another = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert fifo.write(4, b"more") == 4 and os.read(another, 10) == b"more"
    os.close(another)
    fifo.close()
    for bad in (tmp_path, tmp_path / "none" / "x", out / "x"):
        with pytest.raises(InvalidInputError):
            open_serial(bad)
