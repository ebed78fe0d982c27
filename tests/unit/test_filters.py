"""containerd's filters of snapshots: they mean what containerd says, and none takes long."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.engines.refusal import Code, Refusal
from imgfs.engines.snapshotter.filters import parse_filters
from imgfs.engines.snapshotter.patterns import Pattern
from imgfs.engines.snapshotter.rows import Snapshot, SnapshotKind, SnapshotUsage


def snapshot(name: str, kind: SnapshotKind, parent: str, labels: Mapping[str, str]) -> Snapshot:
    return Snapshot(0, name, parent, kind, 0, 0, labels, SnapshotUsage(), None, "imgfs")


ROOT = {"containerd.io/gc.root": "x", 'a "b" \\': "too complex, yo"}
ROWS = [
    snapshot("p", SnapshotKind.COMMITTED, "", ROOT),
    snapshot("a", SnapshotKind.ACTIVE, "p", {"l": "1"}),
    snapshot("v", SnapshotKind.VIEW, "p", {"l": "omg_asdf.asdf-qwer"}),
]


def passing(*filters: str) -> str:
    return "".join(filter(lambda name: name, (row.name for row in ROWS if parse_filters(filters)(row))))


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ([], "pav"),
        ([""], "pav"),
        (["name"], "pav"),
        (["name==p", "name==a"], "pa"),
        (["kind==active"], "a"),
        (["kind!=active, labels.l"], "v"),
        (["parent==p"], "av"),
        (['parent!=""'], "av"),
        (["labels.l!=1"], "pv"),
        (["labels.l==omg_asdf.asdf-qwer"], "v"),
        (['labels."containerd.io/gc.root"==x,kind==committed'], "p"),
        (['labels.containerd."io/gc".root==x'], "p"),
        ([r'labels."a \"b\" \\"=="too complex, yo"'], "p"),
        ([r'name=="\x70"', r'name=="\u0061"', r'name=="\166"'], "pav"),
        (["labels.l~=[0-9]"], "a"),
        (["labels.l~=/^omg|1$/,kind~=|^vi|"], "v"),
        ([" name ==  p", "labels. l == 1"], "pa"),
        ([r"name~=^\x61$"], "a"),
        (["labels"], ""),
        (["owner!=x"], "pav"),
    ],
)
def test_a_filter_means_what_containerd_says(filters: Sequence[str], names: str) -> None:
    assert passing(*filters) == names


@pytest.mark.parametrize(
    "text",
    [
        *("labels.?x==1", "name==foo,", "labels.", "image~=,id?=?fbaq", "labels.ns/key==value"),
        *("labels.key==/value", "labels.|foo|==x", "name==/x/", "name=x", "name===x", "name==a b", ",", "=="),
        *("labels ", "name==p ", "name==p ,kind", "labels .l", "labels. l == 1,"),
        *(r'name=="\q"', r'name=="\xff"', r'name=="\ud800"', r"name==\'a\'x y", "name~=(a", "name~=(a+)+"),
    ],
)
def test_what_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(Refusal) as raised:
        parse_filters([text])
    assert raised.value.code == Code.INVALID_ARGUMENT
    assert "\n" not in str(raised.value)


@given(st.text().filter(lambda text: "\0" not in text), st.text(), st.sampled_from(["==", "!="]))
def test_any_label_can_be_asked_for(label: str, value: str, operator: str) -> None:
    """JSON's escapes are some of Go's, but for a slash and for surrogates."""
    field, wanted = (json.dumps(word, ensure_ascii=False) for word in (label, value))
    holds = parse_filters([f"labels.{field}{operator}{wanted}"])
    found = [holds(snapshot("x", SnapshotKind.VIEW, "", {label: one})) for one in (value, f"{value}.")]
    assert found == ([True, False] if operator == "==" else [False, True])


@given(st.text())
def test_any_text_is_a_filter_or_is_refused(text: str) -> None:
    try:
        holds = parse_filters([text])
    except Refusal:
        return
    assert all(holds(row) in (True, False) for row in ROWS)


PIECES = [*"ab.|(", "(?:", *")*+?", "{2}", "{,3}", "[ab]", "[^a]", *"^$", r"\w", r"\.", "(?="]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text("ab.", max_size=60))
def test_a_pattern_is_found_as_by_re_or_is_refused_and_takes_no_time(text: str, value: str) -> None:
    began = time.process_time()
    try:
        found = Pattern.parse(text).is_in(value * 20)
    except Refusal:
        return
    finally:
        assert time.process_time() - began < 20
    assert found == bool(re.search(text, value * 20))


def test_a_pattern_that_could_take_long_is_refused_where_it_would() -> None:
    pattern = Pattern.parse("^(?:a|b)?.*x.*y")
    assert pattern.is_in("-x-y")
    with pytest.raises(Refusal, match="may take long in 4096 characters"):
        pattern.is_in("x" * 4096)
    with pytest.raises(Refusal, match="may take long in 0 characters"):
        Pattern.parse(r"(|)" * 60 + r"\b").is_in("")
    for text in ("a" * 1001, "(a*)*", "a*+", r"\1", r"\pL", "[[:alpha:]]", "(?i)a", "a**", "[a", "*"):
        with pytest.raises(Refusal, match="regular expression"):
            Pattern.parse(text)
