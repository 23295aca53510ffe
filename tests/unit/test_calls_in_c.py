"""No circle of calls among the C files of a module: each can be read, and tried, on those below it alone."""

from __future__ import annotations

import re

import pytest

from tests.unit.test_layers import NATIVE, check_no_circle, native

NO_CODE = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\n])*"', re.DOTALL)
DEFINED = re.compile(r"^(?!static\b)[a-z_][\w \*]*?\b(\w+)\([^;{]*\)\s*\{", re.MULTILINE)


def calls(texts: dict[str, str]) -> dict[str, set[str]]:
    """Of each file those whose functions it names."""
    texts = {name: NO_CODE.sub("", text) for name, text in texts.items()}
    owner = {function: name for name, text in texts.items() for function in DEFINED.findall(text)}
    return {
        name: {owner[word] for word in re.findall(r"\w+", text) if word in owner} - {name}
        for name, text in texts.items()
    }


@pytest.mark.parametrize("package", NATIVE)
def test_no_circle_of_calls(package: str) -> None:
    graph = calls({path.name: path.read_text() for path in native(package) if path.suffix == ".c"})
    assert any(graph.values())
    check_no_circle(graph)


def test_what_the_check_sees() -> None:
    texts = {
        "a.c": "int ut_a(int x)\n{\n\treturn ut_b(x); /* ut_c */\n}\n",
        "b.c": "static int own(void)\n{\n}\nvoid *ut_b(int x,\n\t int y)\n{\n\treturn own();\n}\n",
        "c.c": 'int ut_c(void)\n{\n\treturn ut_a("ut_b");\n}\n',
    }
    assert calls(texts) == {"a.c": {"b.c"}, "b.c": set(), "c.c": {"a.c"}}
