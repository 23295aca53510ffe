"""uffdtrack/ knows nothing of checkpoints: the words for them do not occur there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.test_layers import ROOT

WORDS = re.compile(r"epoch|image|checkpoint", re.IGNORECASE)
ALLOWED = {
    "CAP_CHECKPOINT_RESTORE": "a capability of the kernel's (capabilities(7))",
}
"""What holds one of the words and is another thing, and why."""
SOURCES = sorted(
    path
    for pattern in ("*.py", "*.c", "*.h")
    for path in (ROOT / "uffdtrack").rglob(pattern)
    if path.name != "_core.c"  # generated
)


def found(text: str) -> list[str]:
    """Lines with one of the words."""
    for phrase in ALLOWED:
        text = text.replace(phrase, "")
    return [line.strip() for line in text.splitlines() if WORDS.search(line)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_words(path: Path) -> None:
    assert found(path.read_text()) == []


def test_allowed_words_occur() -> None:
    everything = "".join(path.read_text() for path in SOURCES)
    assert [phrase for phrase in ALLOWED if phrase not in everything] == []
    assert found("the epoch\nCAP_CHECKPOINT_RESTORE\nno Image") == ["the epoch", "no Image"]
