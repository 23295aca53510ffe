"""The two parsers of /proc/PID/maps, in Python and in C, agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdtrack import Region, parse_maps
from uffdtrack._sys import ffi, lib
from uffdtrack.regions import region_kind

KNOWN = st.sampled_from(
    ["", "[heap]", "[stack]", "[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]",
     "[anon:glibc: malloc]", "/usr/lib/libc.so.6", "/usr/lib/libc.so.6 (deleted)", "/memfd:x (deleted)",
     "/dev/shm/a b", "/dev/zero", "/dev/zero (deleted)", "/dev/nvidia0", "/dev/hugepages/x",
     "/SYSV00000000 (deleted)", "/anon_hugepage (deleted)", "/[aio] (deleted)", "/secretmem (deleted)",
     "/dmabuf:x", "/sys/devices/resource0", "socket:[12]", "anon_inode:i915.gem", "/with\\012newline"]
)  # fmt: skip
BYTES = st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"").decode(errors="surrogateescape"))
ODD = st.sampled_from(["\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\\", "  ", "\0"])
NAMES = KNOWN | st.builds("/{}{}{}".format, BYTES, ODD, BYTES)
"""Names of the kernel's making, and files of any name: a newline alone is escaped."""
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


def native(text: str) -> list[Region]:
    data = text.encode(errors="surrogateescape")
    maps = ffi.new("ut_maps *")
    buffer = ffi.new("char[]", data)
    maps.text, maps.len = buffer, len(data)
    assert lib.ut_maps_parse(maps) == 0
    out = []
    for i in range(maps.n):
        r = maps.regions[i]
        permissions = "".join(c if r.prot & b else "-" for b, c in ((1, "r"), (2, "w"), (4, "x")))
        name = data[r.name : data.index(b"\n", r.name)].decode(errors="surrogateescape")
        out.append(
            Region(
                r.start, r.end, permissions + "ps"[r.shared], r.offset, f"{r.major:02x}:{r.minor:02x}",
                r.inode, name, region_kind(r),
            )
        )  # fmt: skip
    return out


def kinds(regions: list[Region]) -> list[str]:
    return [r.kind for r in regions]


@given(regions())
def test_both_parsers_agree(wanted: list[Region]) -> None:
    text = "".join(map(line, wanted))
    assert parse_maps(text) == wanted
    assert native(text) == wanted
    assert kinds(native(text)) == kinds(wanted)


def test_our_own_maps() -> None:
    text = Path("/proc/self/maps").read_text()
    assert native(text) == parse_maps(text)
    assert kinds(native(text)) == kinds(parse_maps(text))
    assert set(kinds(native(text))) >= {"anonymous", "file", "vdso"}


def test_kinds_that_are_known_win_over_names() -> None:
    text = line(Region(0x1000, 0x2000, "rw-p", 0, "00:06", 7, "/dev/nvidia0"))
    assert kinds(parse_maps(text)) == ["device"]
    assert kinds(parse_maps(text, ["private-memory"])) == ["private-memory"]


@pytest.mark.parametrize("text", ["x\n", "1000-2000 rw-p 0 0:0\n", "1000 rw-p 0 0:0 0\n"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a line"):
        parse_maps(text)
    data = text.encode()
    maps = ffi.new("ut_maps *")
    buffer = ffi.new("char[]", data)
    maps.text, maps.len = buffer, len(data)
    assert lib.ut_maps_parse(maps) < 0
