"""Deltas and compression are used if both ends have them; the memory is the same with either."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from checkpoint.chain import epoch_name
from checkpoint.image import EpochFile
from checkpoint.replication import greeting
from checkpoint.replication.features import DELTAS, FEATURES, ZSTD, agreed
from checkpoint.replication.links.address import parse
from checkpoint.replication.links.wire import Wire
from tests.kvm.conftest import Machine, kvm, write
from tests.replication.pair import active, standby, take
from tests.replication.test_mirror import begin, differing, guest

assert guest and kvm  # fixtures


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes were written to links, each time."""
    sizes: list[int] = []
    plain = Wire.write

    async def counted(wire: Wire, buffers: Sequence[bytes | memoryview]) -> None:
        sizes.append(sum(map(len, buffers)))
        await plain(wire, buffers)

    monkeypatch.setattr(Wire, "write", counted)
    return sizes


@pytest.mark.parametrize("named", [FEATURES, (DELTAS,), (ZSTD,), ()])
@pytest.mark.parametrize("own", [FEATURES, (DELTAS,)])
def test_what_both_have_is_used(
    named: Sequence[str],
    own: Sequence[str],
    guest: object,
    sent: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(greeting, "FEATURES", named)
    there: Machine = guest("kvm-ring")  # type: ignore[operator]
    with (
        standby(tmp_path / "s", tmp_path / "chain") as far,
        active(tmp_path / "s", features=own) as edge,
    ):
        session, _ = begin(edge, there)
        for value in (1, 2, 3):
            write(there, 0, 64, value)
            take(session)
            assert differing(far, there) == []
        far.replica.store.drain()
        last = EpochFile(tmp_path / "chain" / epoch_name(2))
        assert bool(last.deltas) == (DELTAS in named)
        is_compressed = sum(sent) < (tmp_path / "chain" / epoch_name(0)).stat().st_size
        assert is_compressed == (ZSTD in named and ZSTD in own)


def test_what_is_named() -> None:
    assert agreed({"features": ["deltas", "colours"]}) == {DELTAS}
    assert agreed({"features": "deltas"}) == agreed({}) == frozenset()


@pytest.mark.parametrize(
    "near", ["unix:/s", "tls://127.0.0.1:1", "tcp://127.8.0.1:1", "tls://[::1]:1", "tls://localhost:1"]
)
def test_what_stays_on_this_host(near: str) -> None:
    assert parse(near).is_near


@pytest.mark.parametrize("far", ["tls://192.0.2.1:1", "tls://[2001:db8::1]:1", "tls://host.example:1"])
def test_what_does_not(far: str) -> None:
    assert not parse(far).is_near
