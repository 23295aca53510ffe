"""When a standby's store writes: what comes soon after each other together, and at once if somebody waits."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from checkpoint.replication import store as module
from checkpoint.replication.incoming import Incoming
from checkpoint.replication.replica import Replica
from checkpoint.replication.store import Image, Store

NEVER = 1e6


def image(number: int, size: int = 1) -> Image:
    incoming = Incoming(number)
    incoming.part(0, bytes(size))
    return Image(incoming, number == 0, number == 0)


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """One that has written an epoch, and waits for more before it writes again."""
    monkeypatch.setattr(module, "TOGETHER", NEVER)
    store = Store(tmp_path / "c", False)
    store._began = time.monotonic()
    store.put(image(0))
    store.write()
    return store


def await_last(store: Store, number: int) -> None:
    with store._changed:
        assert store._changed.wait_for(lambda: store.last == number, 60)


def test_who_waits_is_not_kept_waiting(waiting: Store) -> None:
    waiting.drain()
    assert waiting.last == 0
    waiting.put(image(1))
    waiting.write()
    waiting.close()
    assert waiting.last == 1 and not waiting.error


def test_much_is_written_at_once(waiting: Store) -> None:
    with waiting:
        waiting.put(image(1, module.MUCH))
        waiting.write()
        await_last(waiting, 1)


def test_together(waiting: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the first acknowledgement after their time; the head is written once for all of them."""
    heads: list[int] = []
    replace = Path.replace

    def noted(path: Path, to: Path) -> Path:
        if path.name == ".head.tmp":
            heads.append(int(path.read_text()))
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", noted)
    with waiting:
        for number in range(1, 9):
            waiting.put(image(number))
            waiting.write()
        assert not heads and waiting.last == -1
        monkeypatch.setattr(module, "TOGETHER", 0.0)
        waiting.write()
        await_last(waiting, 8)
    assert heads == [8]
    assert len([name for name in os.listdir(waiting.directory) if name.startswith("epoch-")]) == 9


def test_what_nothing_follows(tmp_path: Path) -> None:
    """It is written by itself."""
    with Store(tmp_path / "c", False) as store:
        for number in range(5):
            store.put(image(number))
            store.write()
            await_last(store, number)


def test_the_last_one_before_a_handover(waiting: Store) -> None:
    with Replica(waiting, b"") as replica:
        replica.prepare()
        await_last(waiting, 0)
