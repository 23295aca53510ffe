"""Every verb on a chain with deltas, against what the process's memory was."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from elftools.elf.elffile import ELFFile

from checkpoint.chain import Chain
from checkpoint.chain_writer import ChainWriter
from checkpoint.session import Session
from checkpoint.targets.process import ProcessTarget
from tests.helpers import Run, Spawn
from uffdtrack import PAGE

PAGES, EPOCHS = 64, 24
PROGRAM = f"""
import ctypes, mmap, os, sys
memory = mmap.mmap(-1, {PAGES * PAGE}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
for line in sys.stdin:
    at, data = line.split()
    memory[int(at) : int(at) + len(data) // 2] = bytes.fromhex(data)
    print(flush=True)
"""


class Child:
    """A process that writes what it is told to, and does nothing else."""

    def __init__(self, spawn: Spawn) -> None:
        self.process = spawn(sys.executable, "-c", PROGRAM)
        assert self.process.stdout
        self.pid, self.address = self.process.pid, int(self.process.stdout.readline())

    def write(self, at: int, data: bytes) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{at} {data.hex()}\n".encode())
        self.process.stdin.flush()
        self.process.stdout.readline()

    def memory(self) -> bytes:
        with open(f"/proc/{self.pid}/mem", "rb") as file:
            file.seek(self.address)
            return file.read(PAGES * PAGE)

    def work(self, rng: random.Random) -> None:
        for _ in range(rng.randint(1, 12)):
            page = rng.randrange(PAGES) * PAGE
            size = rng.choice((1, 8, 100, 100, 100, 512, PAGE))
            data = bytes(size) if rng.random() < 0.1 else rng.randbytes(size)
            self.write(page + rng.randrange(PAGE - size + 1), data)


def in_core(path: Path, address: int) -> bytes:
    """Memory from an exported core."""
    out = bytearray(PAGES * PAGE)
    with path.open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_LOAD"):
            start, data = segment["p_vaddr"], segment.data()
            low, high = max(start, address), min(start + len(data), address + len(out))
            if low < high:
                out[low - address : high - address] = data[low - start : high - start]
    return bytes(out)


def test_all_verbs(kernel: None, spawn: Spawn, tmp_path: Path, uffdtrack: Run) -> None:
    child, rng = Child(spawn), random.Random(5)
    child.write(0, rng.randbytes(PAGES * PAGE))
    chain, was = tmp_path / "c", []
    with ChainWriter(chain, b"", force=False) as writer, ProcessTarget(child.pid, "scan") as target:
        session = Session(target, writer)
        for _ in range(EPOCHS):
            session.take()
            was.append(child.memory())
            child.work(rng)
    with_deltas = [file.epoch for file in Chain(chain).files() if file.deltas]
    assert len(with_deltas) > EPOCHS // 2
    a, b = with_deltas[1], EPOCHS - 1
    found = uffdtrack("diff", f"{chain}@{a}", f"{chain}@{b}", "--json").stdout.splitlines()
    pages = {page - child.address // PAGE for line in found for page in json.loads(line)["page_list"]}
    differ = {p for p in range(PAGES) if was[a][p * PAGE :][:PAGE] != was[b][p * PAGE :][:PAGE]}
    assert differ and differ == pages & set(range(PAGES))
    shown = json.loads(uffdtrack("show", f"{chain}@{b}", "--json").stdout)
    assert sum(region["pages"] for region in shown["region_list"]) == shown["pages"]
    uffdtrack("rollback", child.pid, f"{chain}@{a}")
    assert child.memory() == was[a]
    first = with_deltas[len(with_deltas) // 2]  # what follows it has deltas to what it has as deltas
    uffdtrack("compact", chain, "--before", first)
    uffdtrack("verify", chain)
    listed = [json.loads(line) for line in uffdtrack("ls", chain, "--json").stdout.splitlines()]
    assert [row["epoch"] for row in listed] == list(range(first, EPOCHS))
    uffdtrack("export", f"{chain}@{b}", "-o", tmp_path / "core")
    assert in_core(tmp_path / "core", child.address) == was[b]
    for n in (b, first):
        uffdtrack("rollback", child.pid, f"{chain}@{n}")
        assert child.memory() == was[n]
