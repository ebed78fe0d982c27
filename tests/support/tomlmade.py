"""TOML files nobody would write: the keys that count with values of every kind, and plain rubbish."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hypothesis import strategies as st

_PLACES = (
    "",
    "host",
    "/",
    "https://",
    "a.example",
    "a.example/b:c",
    "*.example",
    "../..",
    "[::1]:9",
    "\0",
    "é",
)


def bodies_of(keys: Sequence[str]) -> st.SearchStrategy[bytes]:
    """Return files in which `keys` mean all sorts of things."""
    text = st.one_of(st.sampled_from((*keys, *_PLACES)), st.text(max_size=8))
    plain = st.one_of(text, st.booleans(), st.integers(), st.floats())
    values = st.recursive(plain, lambda below: _lists(below) | _tables(keys, below), max_leaves=12)
    lines = st.dictionaries(st.sampled_from(keys), values, max_size=6).map(_document)
    return st.one_of(lines.map(lambda text: text.encode(errors="replace")), st.binary(max_size=60))


def _lists(below: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(below, max_size=3)


def _tables(keys: Sequence[str], below: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.dictionaries(st.one_of(st.sampled_from(keys), st.text(max_size=4)), below, max_size=3)


def _document(fields: dict[str, object]) -> str:
    return "".join(f"{_word(key)} = {_value(value)}\n" for key, value in fields.items())


def _value(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_word(key)} = {_value(one)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return _word(value) if isinstance(value, str) else str(value).lower()


def _word(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
