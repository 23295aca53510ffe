"""Who may import whom (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("uffdtrack", "kvmglue", "checkpoint")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PURE = {"errors.py", "maps.py", "pages.py", "traits.py"}
# Of other packages only what they make public, and the exceptions.
ALLOWED = {
    "uffdtrack": set(),
    "kvmglue": {"uffdtrack", "uffdtrack.errors"},
    "checkpoint": {"uffdtrack", "uffdtrack.errors", "kvmglue"},
}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {n for n in names if n.split(".")[0] in (*PACKAGES, "benchmarks")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path: Path) -> None:
    package, found = path.relative_to(ROOT).parts[0], imports(path)
    foreign = {n for n in found if n.split(".")[0] != package}
    assert foreign <= ALLOWED[package]
    if package == "uffdtrack" and path.name in PURE:
        assert not found
    if path.name != "_sys.py":
        assert not any(n.startswith(f"{package}._native") for n in found)
    if package == "checkpoint" and "cli" not in path.parts and path.name != "__main__.py":
        assert not any(n.startswith("checkpoint.cli") for n in found)


def test_files_are_small() -> None:
    for path in FILES:
        assert len(path.read_text().splitlines()) < 500, path
