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
LINE_END = frozenset(b"\n")
ALLOWED = {
    "imgfs.cli.template._ACTION": "the user's own words",
    "imgfs.cli.container_volumes._HOST": "the user's own words",
    "imgfs.cli.logs._PART": "the user's own words",
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
        if (kind, value) == (_constants.AT, _constants.AT_BEGINNING):  # with MULTILINE that of a line
            is_any_line = self.tree.state.flags & re.MULTILINE
            return [one._replace(then=(*one.then, LINE_END)) for one in before] if is_any_line else []
        assert kind in (_constants.AT, _constants.ASSERT, _constants.ASSERT_NOT, _constants.GROUPREF), kind
        return before

    def without_end(self, nodes: Iterable[Any]) -> list[Any]:
        """Return nodes without a last repetition, which matches in any case."""
        found = list(nodes)
        if self.tree.state.flags & re.MULTILINE and found[-1:] == [(_constants.AT, _constants.AT_END)]:
            before = self.without_end(found[:-1])
            if before != found[:-1]:  # of all that is in the line
                found = before
        elif found and found[-1][0] is _constants.SUBPATTERN:
            *group, body = found[-1][1]
            found[-1] = (_constants.SUBPATTERN, (*group, self.without_end(body)))
        elif found and found[-1][0] is _constants.MAX_REPEAT and found[-1][1][1] >= UNBOUNDED:
            least, _, body = found.pop()[1]
            found += list(body) if least else []
        return found

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


def is_ambiguous(pattern: re.Pattern[Any], *, is_searched: bool, is_whole: bool = False) -> bool:
    """Judge a pattern that is searched for within texts, or is to match them whole."""
    walk = Walk(pattern)
    nodes = list(walk.tree) if is_whole else walk.without_end(walk.tree)
    try:
        walk.after(nodes, [Repetition(CODES)] if is_searched else [])
    except Ambiguous:
        return True
    return False


def patterns() -> Iterator[tuple[str, re.Pattern[Any], str]]:
    """Yield the patterns of all modules, with their names, and the source of what uses them."""
    for found in pkgutil.walk_packages(imgfs.__path__, "imgfs."):
        if found.name != "imgfs.__main__":
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                if isinstance(value, re.Pattern):
                    yield f"{found.name}.{name}", value, inspect.getsource(module)


def test_no_two_repetitions_of_a_pattern_can_share_a_text() -> None:
    found = set()
    for name, pattern, source in patterns():
        used = name.rpartition(".")[2]
        is_searched = any(f"{used}.{call}(" in source for call in SEARCHES)
        if is_ambiguous(pattern, is_searched=is_searched, is_whole=f"{used}.fullmatch(" in source):
            found.add(name)
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
    assert not is_ambiguous(re.compile(text), is_searched=False, is_whole=True)


@pytest.mark.parametrize("text", [r"^[ \t]*a[ \t]+(.*)$", r"[a-z_]\w*", "[^a]+"])
def test_an_end_that_matches_in_any_case_is_not_tried_again(text: str) -> None:
    assert not is_ambiguous(re.compile(text, re.MULTILINE), is_searched=True)
