"""What a Node program requires next: packages by name, what they depend on; and documents that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.predict.files import FilesByPath
from imgfs.predict.nodejs import NodeModules, package_of, read_package, required_in
from tests.support.guesses import Played
from tests.support.layers import merged
from tests.support.tarmake import archive, file


def played(tmp_path: Path, opened: str, bodies: dict[str, bytes]) -> Played:
    """The guesses that follow from a file that is opened, of an image of these files."""
    flat = archive(*(file(path, body) for path, body in bodies.items()))
    with merged(tmp_path, flat) as tree:
        files = FilesByPath(tree)
        node = files.file(opened.encode())
        assert node
        return Played(tree, flat, NodeModules(files).of_file(opened.encode(), node))


def test_a_program_requires_packages_and_those_what_they_depend_on(tmp_path: Path) -> None:
    describes = {"main": "./lib/index.js", "dependencies": {"b": "^1", "@s/c": "1", "missing": "*"}}
    modules = "app/node_modules"
    bodies = {
        "app/src/server.js": b"const fs = require('fs')\nimport a from 'a/deep'\nrequire('./local')\n",
        f"{modules}/a/package.json": json.dumps(describes).encode(),
        f"{modules}/a/lib/index.js": b"x",
        f"{modules}/a/README.md": b"x",
        f"{modules}/a/test/t.js": b"x",
        f"{modules}/a/node_modules/b/index.js": b"nearer",
        f"{modules}/b/index.js": b"farther",
        f"{modules}/@s/c/index.mjs": b"x",
        f"{modules}/d/index.js": b"x",
    }
    found = played(tmp_path, "app/src/server.js", bodies)
    assert found.paths() == {
        f"{modules}/a/package.json", f"{modules}/a/lib/index.js", f"{modules}/a/node_modules/b/index.js",
        f"{modules}/@s/c/index.mjs",
    }  # fmt: skip


def test_packages_that_depend_on_each_other_come_to_an_end(tmp_path: Path) -> None:
    bodies = {}
    for name, other in ("ab", "ba"):
        bodies[f"node_modules/{name}/package.json"] = json.dumps({"dependencies": {other: "1"}}).encode()
        bodies[f"node_modules/{name}/index.js"] = b"x"
    assert played(tmp_path, "node_modules/a/index.js", bodies).paths() == set(bodies)


@pytest.mark.parametrize(
    ("path", "package"),
    [
        (b"app/node_modules/a/lib/x.js", b"app/node_modules/a"),
        (b"app/node_modules/@s/a/x.js", b"app/node_modules/@s/a"),
        (b"node_modules/a/node_modules/b/x.js", b"node_modules/a/node_modules/b"),
        (b"node_modules/a/x.js", b"node_modules/a"),
        (b"app/node_modules/x.js", None),
        (b"app/x.js", None),
    ],
)
def test_a_file_is_in_the_innermost_package(path: bytes, package: bytes | None) -> None:
    assert package_of(path) == package


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3)
)


@given(
    st.dictionaries(st.sampled_from(["main", "dependencies", "x"]), JSON | st.dictionaries(st.text(), JSON))
)
def test_any_description_gives_names_of_directories(document: dict[str, object]) -> None:
    main, names = read_package(json.dumps(document).encode())
    assert b"/" not in main
    for name in names:
        assert name.count(b"/") <= 1
        assert not {b"", b".", b".."} & set(name.split(b"/"))


@given(st.binary(max_size=300) | st.just(b"[" * 100_000) | st.just(b"1" * 10_000))
def test_what_is_no_description_gives_nothing(body: bytes) -> None:
    if not body.lstrip().startswith(b"{"):
        assert read_package(body) == (b"", [])


@given(st.binary(max_size=300))
def test_any_text_gives_names_or_nothing(text: bytes) -> None:
    for name in required_in(b"require('" + text + b"')"):
        assert not name.startswith(b".")
