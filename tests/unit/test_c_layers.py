"""No circles among files of C: by what each defines, and what it uses of others."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MODULES = {
    "uffdtrack": ROOT / "uffdtrack/_native",
    "kvmglue": ROOT / "kvmglue/_native",
    "benchmarks": ROOT / "benchmarks/ab/_native",
}
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_NAME = re.compile(r"\b(?:ut|kg|ab|runs)_\w+\b")
_DEFINED = re.compile(
    r"^(?!static|extern|typedef)\w[\w *]*?\b((?:ut|kg|ab|runs)_\w+)"
    r"(?:\([^;{]*\)\n\{|(?:\[\w*\])?(?: = .*)?[;{]$)",
    re.MULTILINE,
)


def sources(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*.c") if not path.name.startswith("_")]
    return {path.stem: _COMMENT.sub(" ", path.read_text()) for path in files}


def uses(texts: dict[str, str]) -> dict[str, set[str]]:
    """Of each file, those whose functions or tables it uses."""
    home = {name: file for file, text in texts.items() for name in _DEFINED.findall(text)}
    return {
        file: {home[name] for name in _NAME.findall(text) if home.get(name, file) != file}
        for file, text in texts.items()
    }


@pytest.mark.parametrize("module", MODULES)
def test_no_circles(module: str) -> None:
    graph = uses(sources(MODULES[module]))
    assert module == "benchmarks" or any(graph.values())
    list(TopologicalSorter(graph).static_order())


def test_a_circle_is_found() -> None:
    texts = {
        "a": "int ut_a(int x)\n{\n\treturn ut_b;\n}\n",
        "b": "const int ut_b = 1;\nint ut_c(void)\n{\n\treturn ut_a(2);\n}\n",
    }
    assert uses(texts) == {"a": {"b"}, "b": {"a"}}
    with pytest.raises(CycleError):
        list(TopologicalSorter(uses(texts)).static_order())


def test_what_is_used_is_found() -> None:
    """That the table of engines uses each engine, and an engine no table, is what the rows are for."""
    graph = uses(sources(MODULES["uffdtrack"]))
    engines = {file for file in graph if file.startswith("engine_")}
    assert len(engines) == 4 and engines <= graph["engines"]
    assert not any("engines" in graph[file] or "tracker" in graph[file] for file in engines)
