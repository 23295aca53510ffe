"""The tree in docs/architecture.md is the tree that is there.

The first fenced block has a line for each directory (`name/`) or for some files, indented by their depth.
Behind it, from one column on, stands what they are; lines that begin at that column go on with it. A file
that is named anywhere is one of the directory of that line, or of one above it; `part/name` is below it.
Braces as in `a_{b,c}.py` name two files. A header goes with the C file of its name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from tests.unit.test_layers import ROOT

PARTS = ("uffdtrack", "kvmglue", "checkpoint", "native_common", "benchmarks")
NAME = re.compile(r"[\w/{},]*[\w}]\.(?:py|c|h)\b")
BY_THEMSELVES = {"__init__.py", "__main__.py"}


def block(text: str) -> list[str]:
    return text.split("```")[1].strip("\n").splitlines()


def spread(name: str) -> list[str]:
    """`a_{b,c}.py` written out."""
    parts = [part.split(",") for part in re.split(r"[{}]", name)]
    return ["".join(chosen) for chosen in product(*parts)]


def named(lines: list[str], root: Path) -> Iterator[str]:
    """What is named, as paths from the root; what is not there, as it stands."""
    column = len(re.match(r"\S+\s*", lines[0])[0])  # type: ignore[index]
    above: list[tuple[int, str]] = []
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if indent < column:
            above = [(depth, part) for depth, part in above if depth < indent]
            first = line.split()[0]
            if first.endswith("/"):
                above.append((indent, first))
                yield "".join(part for _, part in above)
        places = ["".join(part for _, part in above[:n]) for n in range(len(above), -1, -1)]
        for name in (one for token in NAME.findall(line) for one in spread(token)):
            yield next((place + name for place in places if (root / place / name).is_file()), name)


def expected(root: Path) -> set[str]:
    found = [
        path for part in PARTS for path in (root / part).rglob("*") if path.suffix in (".py", ".c", ".h")
    ]
    return {
        str(path.relative_to(root))
        for path in found
        if path.name not in BY_THEMSELVES
        and path.name != "_core.c"  # generated
        and not (path.suffix == ".h" and path.with_suffix(".c").exists())
    }


def differences(lines: list[str], root: Path) -> dict[str, list[str]]:
    names = Counter(named(lines, root))
    return {
        "is not there": sorted(name for name in names if not (root / name).exists()),
        "is named more than once": sorted(name for name, n in names.items() if n > 1),
        "is not named": sorted(expected(root) - names.keys()),
    }


def test_tree_of_docs() -> None:
    found = differences(block((ROOT / "docs" / "architecture.md").read_text()), ROOT)
    assert {what: names for what, names in found.items() if names} == {}


def test_what_the_check_sees(tmp_path: Path) -> None:
    for name in (
        *("uffdtrack/a.py", "uffdtrack/_native/b.c", "uffdtrack/_native/b.h", "checkpoint/__init__.py"),
        *("uffdtrack/_native/in/c_d.h", "uffdtrack/_native/in/c_e.h", "checkpoint/a.py", "checkpoint/f.py"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    tree = [
        "uffdtrack/      one",
        "  _native/      b.c does it,",
        "    in/         c_{d,e}.h",
        "  a.py          and so on",
        "checkpoint/     the rest: a.py,",
        "                f.py",
    ]
    assert not any(differences(tree, tmp_path).values())
    assert differences(tree[:-1], tmp_path)["is not named"] == ["checkpoint/f.py"]
    assert differences([*tree, "  f.py"], tmp_path)["is named more than once"] == ["checkpoint/f.py"]
    assert differences([*tree, "  g.py g/"], tmp_path)["is not there"] == ["g.py"]
