"""Who may import and include whom (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("uffdtrack", "kvmglue", "checkpoint")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PURE = {
    "closing.py": set(),
    "errors.py": set(),
    "maps.py": set(),
    "pages.py": {"uffdtrack.runs"},
    "procfs.py": set(),
    "runs.py": set(),
    "traits.py": set(),
}
# Of other packages only what they make public, and the exceptions.
ALLOWED = {
    "uffdtrack": set(),
    "kvmglue": {"uffdtrack", "uffdtrack.closing", "uffdtrack.errors", "uffdtrack.runs"},
    "checkpoint": {
        "uffdtrack",
        "uffdtrack.closing",
        "uffdtrack.errors",
        "uffdtrack.procfs",
        "uffdtrack.runs",
        "uffdtrack.syscalls",
        "kvmglue",
    },
}
NATIVE = {
    "uffdtrack": ("uffdtrack/_native", "native_common"),
    "kvmglue": ("kvmglue/_native", "native_common"),
}
"""Where the C of each module is."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in (*FILES, *sorted((ROOT / "benchmarks").rglob("*.py")))}


class Imports(ast.NodeVisitor):
    """What is imported at any place of a file, but for types alone."""

    def __init__(self, path: Path) -> None:
        self.names: set[str] = set()
        self.visit(ast.parse(path.read_text()))

    def visit_If(self, node: ast.If) -> None:
        for part in node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else [*node.body, *node.orelse]:
            self.visit(part)

    def visit_Import(self, node: ast.Import) -> None:
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.module and not node.level, "imports have whole names here"
        inside = {f"{node.module}.{alias.name}" for alias in node.names}
        self.names |= {name if name in MODULES else node.module for name in inside}


def imports(path: Path) -> set[str]:
    return {n for n in Imports(path).names if n.split(".")[0] in (*PACKAGES, "benchmarks")}


def check_no_circle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path: Path) -> None:
    package, found = path.relative_to(ROOT).parts[0], imports(path)
    foreign = {n for n in found if n.split(".")[0] != package}
    assert foreign <= ALLOWED[package]
    if package == "uffdtrack" and path.name in PURE:
        assert found <= PURE[path.name]
    if path.name != "_sys.py":
        assert not any(n.startswith(f"{package}._native") for n in found)
    if package == "checkpoint" and "cli" not in path.parts and path.name != "__main__.py":
        assert not any(n.startswith("checkpoint.cli") for n in found)


def test_no_circle_of_imports() -> None:
    """Not of those in functions either: they hide one."""
    check_no_circle({name: Imports(path).names & MODULES.keys() - {name} for name, path in MODULES.items()})


def included(path: Path) -> set[str]:
    """The files of ours that a C file includes, by name."""
    return {
        Path(name).name for name in re.findall(r'^\s*#\s*include\s+"(.+)"', path.read_text(), re.MULTILINE)
    }


def native(package: str) -> list[Path]:
    paths = [path for part in NATIVE[package] for path in sorted((ROOT / part).rglob("*.[ch]"))]
    return [path for path in paths if not path.name.startswith("_")]  # _core.c is generated


@pytest.mark.parametrize("package", NATIVE)
def test_no_circle_of_includes(package: str) -> None:
    files = native(package)
    names = {path.name for path in files}
    assert len(names) == len(files), "a name in C is of one file"
    check_no_circle({path.name: included(path) & names for path in files})


def test_what_the_checks_see(tmp_path: Path) -> None:
    """The negative control: a circle, an import in a function, one for types, an include."""
    with pytest.raises(pytest.fail.Exception, match=r"a <- b <- a|b <- a <- b"):
        check_no_circle({"a": {"b"}, "b": {"a"}, "c": {"a"}})
    (tmp_path / "a.py").write_text(
        "if TYPE_CHECKING:\n    import one\nelse:\n    import two\n"
        "def f():\n    from three import four\n    from uffdtrack import space, errors\n"
    )
    found = Imports(tmp_path / "a.py").names
    assert found == {"two", "three", "uffdtrack.space", "uffdtrack.errors"}
    (tmp_path / "a.c").write_text('#include <x.h>\n#include "part/y.h"\n  # include "z.h"\n')
    assert included(tmp_path / "a.c") == {"y.h", "z.h"}
