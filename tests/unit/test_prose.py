"""The words of the project: what docstrings, comments, help texts, the README and the manual do not say."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounted import CHECKOUT

# Who acts has a name here: the kernel, the registry, the reader, the daemon, the caller.
NAMELESS = re.compile(r"(?<!-u )\b(nobody|somebody|whoever|whom)\b", re.IGNORECASE)  # `-u nobody`: an account
CODE = [path for room in ("imgfs", "scripts") for path in sorted((CHECKOUT / room).rglob("*.py"))]
TEXTS = [CHECKOUT / "README.md", *sorted((CHECKOUT / "imgfs/manual").glob("*.md"))]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of the comments and string literals of a module, or of all lines of another file."""
    if path.suffix != ".py":
        yield from enumerate(path.read_text().splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield from enumerate(token.string.splitlines(), token.start[0])


@pytest.mark.parametrize("path", [*CODE, *TEXTS], ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_the_actor_is_named(path: Path) -> None:
    assert [(line, text.strip()) for line, text in prose(path) if NAMELESS.search(text)] == []


def test_a_docstring_is_read_without_the_one_above_it() -> None:
    bare = r"(?:The same|Likewise|Itself)\b[^`\"]{0,30}|Nothing\.|None\."
    leaning = r"(?:The|Do the) same(?:,| (?:of|by|for|in)\b)"
    riddle = re.compile(rf'"""(?:(?:{bare})"""|{leaning})|\blikewise\."""')
    assert [(str(path), found) for path in CODE if (found := riddle.findall(path.read_text()))] == []
