"""Values set in a TOML file: all else stays, the result is what was asked for or a refusal, and is undone."""

from __future__ import annotations

import tomllib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.engines.node.toml_edit import TomlEdit, undone
from imgfs.errors import UsageError

PIECES = """\

# a comment
a = 1
b = "x"
a.b = 2
[t]
[t] # of tables
[t.u]
["t".u]
[[t.v]]
[[x]]
u = {}
t = {u = 1}
s = \"\"\"
'a' = 3
l = [
]
  a   =  'y'  # why
""".splitlines()
COMMENT = "# a comment of one line\u2028, \x85 or not"
LINES = st.lists(st.sampled_from([*PIECES, COMMENT]), max_size=12)
ENDS = st.sampled_from(["\n", "\r\n"])
KEYS = st.lists(st.sampled_from(["a", "t", "u", "a.b c"]), max_size=3).map(tuple)


@given(LINES, ENDS, st.booleans(), KEYS, st.sampled_from(["a", "b", "é"]))
def test_a_value_is_set_or_refused_and_taken_back(
    lines: list[str], end: str, is_ended: bool, keys: tuple[str, ...], key: str
) -> None:
    text = end.join([*lines, ""] if is_ended else lines)
    for value in ("x", 5, True, ["y", "z"]):
        set_and_take_back(text, keys, key, value)


def set_and_take_back(text: str, keys: tuple[str, ...], key: str, value: str | int | list[str]) -> None:
    with suppress(UsageError):
        edit = TomlEdit(text, "f")
        edit.set(keys, key, value)
        edit.append(("list", "of tables"), {"k": "v"})
        found = edit.text
        inner = tomllib.loads(found)
        for part in keys:
            inner = inner[part]
        assert inner[key] == value
        assert undone(found) == text
        again = TomlEdit(found, "f")
        again.set(keys, key, value)
        assert again.text == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = [\n1]\n", "f: is written in a way that imgfs cannot add to"),
        ("t = {a = 1}\n", "f: is written in a way"),
        ("t = 1\n", "f: t is not a table"),
        ("a b\n", r"f: .*line 1"),
    ],
)
def test_what_cannot_be_changed_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        edited(text)


def edited(text: str) -> str:
    edit = TomlEdit(text, "f")
    edit.set((), "a", 2)
    edit.set(("t",), "b", 2)
    return edit.text


def test_lines_keep_their_order_and_what_they_were() -> None:
    edit = TomlEdit("a = 1 # one\n[t]\n  b = 2\n", "f")
    edit.set((), "a", 3)
    edit.set(("t",), "c", "x")
    edit.set(("t",), "d", False)
    assert edit.text.splitlines() == [
        "# replaced by imgfs: a = 1 # one",
        "a = 3  # by imgfs",
        "[t]",
        'c = "x"  # by imgfs',
        "d = false  # by imgfs",
        "  b = 2",
    ]
