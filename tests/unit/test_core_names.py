"""What Python asks the C core for is there: a name that is gone would show only where it is used."""

from __future__ import annotations

import ast

import pytest

import kvmglue._sys
import uffdtrack._sys
from tests.unit.test_layers import FILES, ROOT

CORES = {"uffdtrack": uffdtrack._sys.lib, "kvmglue": kvmglue._sys.lib}


@pytest.mark.parametrize("package", CORES)
def test_names_of_the_core(package: str) -> None:
    asked: dict[str, str] = {}
    for path in (p for p in FILES if p.relative_to(ROOT).parts[0] == package):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(value=ast.Name(id="lib"), attr=name):
                    asked[name] = str(path.relative_to(ROOT))
    assert asked
    assert {name: where for name, where in asked.items() if not hasattr(CORES[package], name)} == {}
