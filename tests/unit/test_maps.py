"""The two parsers of /proc/PID/maps, in Python and in C, agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdtrack import Region, parse_maps
from uffdtrack._sys import ffi, lib

NAMES = st.sampled_from(
    ["", "[heap]", "[stack]", "[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[anon:glibc: malloc]",
     "/usr/lib/libc.so.6", "/usr/lib/libc.so.6 (deleted)", "/memfd:x (deleted)", "/dev/shm/a b",
     "/dev/zero (deleted)", "/dev/nvidia0", "/dev/hugepages/x", "/SYSV00000000 (deleted)",
     "/anon_hugepage (deleted)", "/[aio]",
     "anon_inode:i915.gem", "/with\\012newline"]
)  # fmt: skip
PAGES = st.integers(0, (1 << 35) - 1)


@st.composite
def regions(draw: st.DrawFn) -> list[Region]:
    cuts = sorted(draw(st.sets(PAGES, min_size=2, max_size=20)))
    out = []
    for start, end in zip(cuts[::2], cuts[1::2], strict=False):
        permissions = "".join(
            draw(st.sampled_from(pair)) for pair in (["r", "-"], ["w", "-"], ["x", "-"], ["p", "s"])
        )
        name = draw(NAMES)
        inode = draw(st.integers(1, 1 << 40)) if name.startswith(("/", "anon_inode")) else 0
        out.append(Region(start << 12, end << 12, permissions, draw(PAGES) << 12, "fe:00", inode, name))
    return out


def line(r: Region) -> str:
    return f"{r.start:x}-{r.end:x} {r.permissions} {r.offset:08x} {r.device} {r.inode} {' ' * 9}{r.name}\n"


def native(text: str) -> list[tuple[Region, int]]:
    data = text.encode()
    maps = ffi.new("ut_maps *")
    buffer = ffi.new("char[]", data)
    maps.text, maps.len = buffer, len(data)
    assert lib.ut_maps_parse(maps) == 0
    out = []
    for i in range(maps.n):
        r = maps.regions[i]
        permissions = "".join(c if r.prot & b else "-" for b, c in ((1, "r"), (2, "w"), (4, "x")))
        name = data[r.name : data.index(b"\n", r.name)].decode()
        region = Region(
            r.start, r.end, permissions + "ps"[r.shared], r.offset, f"{r.major:02x}:{r.minor:02x}",
            r.inode, name,
        )  # fmt: skip
        out.append((region, r.kind))
    return out


def kind(r: Region) -> int:
    """What Python says of a region, in the core's words."""
    if r.name == "[vdso]":
        return int(lib.UT_KIND_VDSO)
    if not r.stored:
        return int(lib.UT_KIND_SKIP)
    if r.shared:
        return int(lib.UT_KIND_SHARED)
    if r.name.startswith("/anon_hugepage"):
        return int(lib.UT_KIND_HUGE)
    if r.anonymous:
        return int(lib.UT_KIND_ANON)
    return int(lib.UT_KIND_FILE if r.file_backed else lib.UT_KIND_DELETED)


@given(regions())
def test_both_parsers_agree(wanted: list[Region]) -> None:
    text = "".join(map(line, wanted))
    assert parse_maps(text) == wanted
    found = native(text)
    assert [r for r, _ in found] == wanted
    assert [k for _, k in found] == [kind(r) for r in wanted]


def test_our_own_maps() -> None:
    text = Path("/proc/self/maps").read_text()
    found = native(text)
    assert [r for r, _ in found] == parse_maps(text)
    assert {k for _, k in found} >= {lib.UT_KIND_ANON, lib.UT_KIND_FILE, lib.UT_KIND_VDSO}


@pytest.mark.parametrize("text", ["x\n", "1000-2000 rw-p 0 0:0\n", "1000 rw-p 0 0:0 0\n"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a line"):
        parse_maps(text)
    data = text.encode()
    maps = ffi.new("ut_maps *")
    buffer = ffi.new("char[]", data)
    maps.text, maps.len = buffer, len(data)
    assert lib.ut_maps_parse(maps) < 0
