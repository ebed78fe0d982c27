"""Regular expressions that read text from outside take time in proportion to its length.

Python's `re` tries one possibility after the other. Where two repetitions can share a text in many ways, one
that fits both, and then nothing, takes the square of its length: for 64 KiB, half a minute without a thread
that could run beside it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Iterator
from re import _compiler, _constants, _parser  # type: ignore[attr-defined]  # to see what is repeated
from typing import Any, NamedTuple

import pytest

import imgfs

SEARCHES = ("search", "finditer", "findall", "sub", "split")  # by which a pattern is tried at each character
UNBOUNDED = 1000  # repetitions
CODES = frozenset(range(256))
ALLOWED = {
    "imgfs.cli.container_list._ACTION": "the user's own words",
    "imgfs.cli.container_volumes._HOST": "the user's own words",
    "imgfs.cli.logs._PART": "the user's own words",
    "imgfs.kernel.driver._ODD": "is never tried again: what it begins with is all of it",
    "imgfs.oci.instruction._DURATION": "the user's own words",
    "imgfs.runtime.pasta._NAMESERVER": "a file of the system's administrator",
    "imgfs.runtime.pasta._NOISE": "what a program of the system says",
}


class Repetition(NamedTuple):
    """An unbounded repetition of some characters, and what has to come behind it: one of each set."""

    characters: frozenset[int]
    then: tuple[frozenset[int], ...] = ()

    def shares(self, others: frozenset[int]) -> bool:
        """Return True if a text can be this one's and that of a repetition of `others` in many ways."""
        both = self.characters & others
        return bool(both) and all(both & one for one in self.then)


class Ambiguous(Exception):
    """Two repetitions can share a text."""


class Walk:
    """A pattern, read from left to right."""

    def __init__(self, pattern: re.Pattern[Any]) -> None:
        self._is_bytes = isinstance(pattern.pattern, bytes)
        self.tree = _parser.parse(pattern.pattern, pattern.flags)

    def after(self, nodes: Iterable[Any], before: list[Repetition]) -> list[Repetition]:
        """Return the repetitions whose texts may go on behind `nodes`. Raises Ambiguous."""
        for kind, value in nodes:
            before = self._after(kind, value, before)
        return before

    def _after(self, kind: Any, value: Any, before: list[Repetition]) -> list[Repetition]:
        characters = self._characters(kind, value)
        if characters is not None:
            return [one._replace(then=(*one.then, characters)) for one in before]
        if kind is _constants.SUBPATTERN:
            return self.after(value[3], before)
        if kind is _constants.BRANCH:
            return [one for branch in value[1] for one in self.after(branch, before)]
        if kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
            return self._after_repetition(value, before)
        assert kind in (_constants.AT, _constants.ASSERT, _constants.ASSERT_NOT, _constants.GROUPREF), kind
        return before

    def _after_repetition(self, value: Any, before: list[Repetition]) -> list[Repetition]:
        least, most, body = value
        skipped = [] if least else before
        if most < UNBOUNDED:
            return [*skipped, *self.after(body, before)]
        characters = self._characters(*body[0]) if len(body) == 1 else None
        if characters is None:
            once = self.after(body, before)
            return [*skipped, *once, *self.after(body, once)]
        if any(one.shares(characters) for one in before):
            raise Ambiguous
        return [*skipped, Repetition(characters)]

    def _characters(self, kind: Any, value: Any) -> frozenset[int] | None:
        """Return what is matched, of Latin-1, if that is one character; else None."""
        if kind not in (_constants.LITERAL, _constants.NOT_LITERAL, _constants.IN, _constants.ANY):
            return None
        one = _compiler.compile(_parser.SubPattern(self.tree.state, [(kind, value)]), self.tree.state.flags)
        return frozenset(
            code for code in CODES if one.fullmatch(bytes([code]) if self._is_bytes else chr(code))
        )


def is_ambiguous(pattern: re.Pattern[Any], *, is_searched: bool) -> bool:
    walk = Walk(pattern)
    try:
        walk.after(walk.tree, [Repetition(CODES)] if is_searched else [])
    except Ambiguous:
        return True
    return False


def patterns() -> Iterator[tuple[str, re.Pattern[Any], bool]]:
    """Yield the patterns of all modules: name, pattern, whether it is searched for in longer texts."""
    for found in pkgutil.walk_packages(imgfs.__path__, "imgfs."):
        if found.name != "imgfs.__main__":
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                if isinstance(value, re.Pattern):
                    source = inspect.getsource(module)
                    yield f"{found.name}.{name}", value, any(f"{name}.{call}(" in source for call in SEARCHES)


def test_no_two_repetitions_of_a_pattern_can_share_a_text() -> None:
    found = {name for name, pattern, searched in patterns() if is_ambiguous(pattern, is_searched=searched)}
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "text",
    [
        *(r"\bimport\s*\(?\s*\"", r"<([^>]*)>", r"a\s*=\s*[^;]*;", r"(?:a+|b)+c", r"(?:a|b*)*c", ".*x.*y"),
        *(r"(\d+)+x", r"(?:a\s*)+\s*b", r"[ab]*(?:[bc]*|x)d"),
    ],
)
def test_those_that_can_are_found(text: str) -> None:
    assert is_ambiguous(re.compile(text), is_searched=True)


@pytest.mark.parametrize(
    "text", [r"import\s*(?:\(\s*)?\"", "<([^<>]*)>", r"a\s*=([^;]*);", "(?:,a+)*;", "x.*"]
)
def test_others_are_not(text: str) -> None:
    assert not is_ambiguous(re.compile(text), is_searched=False)
