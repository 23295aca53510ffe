"""Who may import whom (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "uffdtrack").rglob("*.py")) + sorted((ROOT / "checkpoint").rglob("*.py"))
PURE = {"errors.py", "maps.py", "pages.py", "traits.py"}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {n for n in names if n.split(".")[0] in ("uffdtrack", "checkpoint", "kvmglue")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path: Path) -> None:
    package, found = path.relative_to(ROOT).parts[0], imports(path)
    if package == "uffdtrack":
        assert not any(n.startswith(("checkpoint", "kvmglue")) for n in found)
        if path.name in PURE:
            assert not found
        if path.name != "_sys.py":
            assert not any(n.startswith("uffdtrack._native") for n in found)
    else:
        # Public names only: the package itself and its exceptions.
        allowed = {"uffdtrack", "uffdtrack.errors"}
        assert {n for n in found if n.startswith("uffdtrack")} <= allowed
        if "cli" not in path.parts and path.name != "__main__.py":
            assert not any(n.startswith("checkpoint.cli") for n in found)


def test_files_are_small() -> None:
    for path in FILES:
        assert len(path.read_text().splitlines()) < 500, path
