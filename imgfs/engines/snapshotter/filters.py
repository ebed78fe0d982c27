r"""Which snapshots a list is asked for: containerd's filters (containerd, pkg/filters).

filter    := selector ("," selector)*           all of them hold; of several filters, one has to
selector  := path [operator value]              without an operator: the field is there
path      := field ("." field)*                 name, parent, kind, labels.NAME
field     := quoted | [0-9A-Za-z_]+
operator  := "==" | "!=" | "~="                 the last: a regular expression is found in the value
value     := quoted | what has no comma and no space
quoted    := "Go's escapes"                     after ~= also between slashes or bars

Spaces may be before a field, an operator and a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from imgfs.engines.refusal import Code, Refusal
from imgfs.engines.snapshotter.patterns import Pattern
from imgfs.engines.snapshotter.rows import Snapshot

_FIELD = re.compile(r"\s*([0-9A-Za-z_]+)")
_QUOTED = re.compile(r'\s*(["/|])((?:(?!\1)[^\\\n]|\\.)*)\1')
_OPERATOR = re.compile(r"\s*([=!~]+)")
_VALUE = re.compile(r'\s*([^\s,."/|=!~][^\s,]*)')
_ESCAPE = re.compile(rb"\\(x[\da-fA-F]{2}|u[\da-fA-F]{4}|U[\da-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)
_SIMPLE = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


@dataclass(frozen=True, slots=True)
class _Selector:
    path: tuple[str, ...]
    holds: Callable[[str | None], bool]

    def matches(self, snapshot: Snapshot) -> bool:
        return self.holds(_field(snapshot, self.path))


def parse_filters(texts: Iterable[str]) -> Callable[[Snapshot], bool]:
    """Return the test that filters are; none let all pass. Raises Refusal for what is no filter."""
    filters = [_Parser(text).selectors() if text else [] for text in texts]
    if not filters:
        return lambda _: True
    return lambda snapshot: any(all(one.matches(snapshot) for one in selectors) for selectors in filters)


class _Parser:
    """Reads one filter, from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def selectors(self) -> list[_Selector]:
        """Read all of it."""
        found = [self._selector()]
        while self._takes(","):
            found.append(self._selector())
        if self._at < len(self._text):
            raise self._wrong("unexpected")
        return found

    def _selector(self) -> _Selector:
        path = [self._field()]
        while self._takes("."):
            path.append(self._field())
        if self._text[self._at : self._at + 1] in ("", ","):
            return _Selector(tuple(path), lambda value: value is not None)
        found = self._match(_OPERATOR)
        if found is None:
            raise self._wrong("an operator was expected")
        return _Selector(tuple(path), self._test(found[1]))

    def _test(self, operator: str) -> Callable[[str | None], bool]:
        match operator:
            case "==":
                wanted = self._value('"')
                return lambda value: value == wanted
            case "!=":
                wanted = self._value('"')
                return lambda value: (value or "") != wanted
            case "~=":
                pattern = Pattern.parse(self._value('"/|'))
                return lambda value: pattern.is_in(value or "")
            case _:
                raise self._wrong("no operator")

    def _field(self) -> str:
        found = self._match(_FIELD)
        return found[1] if found else self._quoted('"', "a field was expected")

    def _value(self, quotes: str) -> str:
        found = self._match(_VALUE)
        return found[1] if found else self._quoted(quotes, "a value was expected")

    def _quoted(self, quotes: str, otherwise: str) -> str:
        found = self._match(_QUOTED)
        if found is None or found[1] not in quotes:
            raise self._wrong(otherwise)
        quote = found[1].encode()
        try:
            return _ESCAPE.sub(lambda escape: _unescaped(escape[1], quote), found[2].encode()).decode()
        except ValueError as error:
            raise self._wrong("an escape that Go does not know") from error

    def _takes(self, sign: str) -> bool:
        return self._match(re.compile(re.escape(sign))) is not None

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found:
            self._at = found.end()
        return found

    def _wrong(self, why: str) -> Refusal:
        where = f"filter {self._text[:200]!r}, at character {self._at}"
        return Refusal(Code.INVALID_ARGUMENT, f"{where}: {why}")


def _field(snapshot: Snapshot, path: tuple[str, ...]) -> str | None:
    match path:
        case ("name", *_):
            return snapshot.name
        case ("parent", *_):
            return snapshot.parent
        case ("kind", *_):
            return snapshot.kind.name.lower()
        case ("labels", *label):
            return snapshot.labels.get(".".join(label))
        case _:
            return None


def _unescaped(escape: bytes, quote: bytes) -> bytes:
    """Return what an escape of Go stands for, its backslash left out; raises ValueError if it is none."""
    if escape in (b"\\", quote):
        return escape
    if escape in _SIMPLE:
        return _SIMPLE[escape]
    if len(escape) < 3:
        raise ValueError(escape)
    if escape[:1] in (b"u", b"U"):
        return chr(int(escape[1:], 16)).encode()
    return bytes([int(escape[1:], 16) if escape[:1] == b"x" else int(escape, 8)])
