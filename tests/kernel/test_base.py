"""A base: memory is copied while the process runs, and what is written meanwhile is in it all the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from checkpoint.session import Session
from tests.helpers import Build, Spawn, broken
from tests.kernel.mapper import Mapper, open_session, read
from tests.kernel.test_followed import PREPARE, quiet
from tests.kernel.test_oracle import start_writer, take_epochs
from tests.oracle import OracleError
from uffdtrack import PAGE
from uffdtrack._sys import STOP_TIMEOUT_NS, lib

BASES = 6
SIZE = 256 * PAGE
"""More than is compared in place of followed."""


def test_every_base_is_a_state_of_the_writer(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path
) -> None:
    pid, control = start_writer(spawn, build, 2, 31, "calm")
    memory = take_epochs(pid, control, in_memory / "chain", BASES, 31, "ring", bases=True)
    assert memory.checked > BASES * 2 * 8 * 60 and memory.scanned < BASES // 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["calm", "busy"])
@pytest.mark.parametrize("threads", [1, 4])
def test_hundreds_of_bases(
    kernel: None, spawn: Spawn, build: Build, in_memory: Path, process_engine: str, threads: int, kind: str
) -> None:
    """Busy: threads and children come and go."""
    pid, control = start_writer(spawn, build, threads, 300 + threads, kind)
    is_told = process_engine == "ring" and kind == "calm"
    memory = take_epochs(pid, control, in_memory / "chain", 100, threads, process_engine, bases=True)
    assert memory.scanned < 50 or not is_told


def test_negative_control(kernel: None, spawn: Spawn, build: Build, in_memory: Path) -> None:
    """What is touched while we look is not what we have seen."""
    pid, control = start_writer(spawn, build, 2, 32, "calm")
    with pytest.raises(OracleError):
        take_epochs(pid, control, in_memory / "chain", 60, 32, "ring", "late-take", bases=True)


# -- what no record tells of, between the look while it runs and the stop behind it -------------------


@pytest.fixture
def session(kernel: None, mapper: Mapper) -> Iterator[Session]:
    assert mapper(PREPARE) == "1"
    for session in open_session(mapper, "ring"):
        session.take()
        yield session


def look(session: Session) -> None:
    """As `AddressSpace.harvest`, without the stop behind it."""
    space = session.target.space  # type: ignore[attr-defined]
    assert not lib.ut_space_harvest(space.native, 0)


def stand(session: Session) -> None:
    """That stop."""
    target = session.target
    assert lib.ut_barrier(target.tracee.native, target.space.native, STOP_TIMEOUT_NS) >= 0  # type: ignore[attr-defined]


def page_of_old(mapper: Mapper) -> int:
    at = mapper.new(SIZE)
    mapper(f"[put({at} + i * {PAGE}, b'old') for i in range(64)]")
    return at + 7 * PAGE


@pytest.mark.parametrize("behind", [False, True], ids=["before the stop", "behind it"])
@pytest.mark.parametrize("write", ["put", "pvm"])
@pytest.mark.parametrize("sound", [True, False])
def test_write_behind_the_look(
    mapper: Mapper, session: Session, write: str, behind: bool, sound: bool
) -> None:
    """With a record, and without: then the faults are more than the records, unless nobody counts."""
    page = page_of_old(mapper)
    quiet(session)
    with nullcontext() if sound else broken("audit"):
        look(session)
        if behind:
            stand(session)
        mapper(f"{write}({page}, b'new')")
        if not behind:
            stand(session)
        assert session.take().scanned == (sound and write == "pvm")
    assert read(mapper, page) == (b"new" if sound or write == "put" else b"old")


def test_births(mapper: Mapper, session: Session) -> None:
    """A vfork child writes in its parent's memory, behind a look too, until the parent stands."""
    page_of_old(mapper)
    mapper("exec('import subprocess', globals())")
    quiet(session)
    assert mapper("subprocess.run(['true'], close_fds=False).returncode") == "0"
    look(session)
    stand(session)
    assert session.take().scanned
    quiet(session)
    assert mapper("subprocess.run(['true'], close_fds=False).returncode") == "0"
    for _ in range(2):
        look(session)
        stand(session)
    assert not session.take().scanned


def test_look_that_nobody_stood_behind(mapper: Mapper, session: Session) -> None:
    page = page_of_old(mapper)
    quiet(session)
    look(session)
    mapper(f"put({page}, b'new')")
    assert session.take().scanned
    assert read(mapper, page) == b"new"
