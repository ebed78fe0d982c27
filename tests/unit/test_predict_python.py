"""What a Python program imports next: modules beside one that is opened, extensions, the standard library."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgfs.predict.files import FilesByPath
from imgfs.predict.guess import Rank
from imgfs.predict.libraries import Libraries
from imgfs.predict.python import Module, PythonModules, module_of
from tests.support import elfmake
from tests.support.guesses import Played
from tests.support.layers import merged
from tests.support.tarmake import archive, file

SITE, STD = "usr/local/lib/python3.11/dist-packages", "usr/lib/python3.11"
CACHED = "__pycache__/{}.cpython-311.pyc"


def played(tmp_path: Path, opened: str, *paths: str, **bodies: bytes) -> Played:
    """The guesses that follow from a file that is opened, of an image of these files."""
    members = [file(path, bodies.get(path.rpartition("/")[2].partition(".")[0], b"x")) for path in paths]
    flat = archive(*members)
    with merged(tmp_path, flat) as tree:
        files = FilesByPath(tree)
        return Played(tree, flat, PythonModules(files, Libraries(files)).of_file(opened.encode()))


@pytest.mark.parametrize(
    ("path", "module"),
    [
        (b"a/b.py", Module(b"a", b".py")),
        (b"a/__pycache__/b.cpython-311.pyc", Module(b"a", b".cpython-311.pyc")),
        (b"a/__pycache__/b.cpython-311.opt-1.pyc", Module(b"a", b".cpython-311.opt-1.pyc")),
        (b"a/b.pyc", Module(b"a", b".pyc")),
        (b"a/b.so", None),
        (b"py", None),
    ],
)
def test_a_module_is_known_by_its_files_name(path: bytes, module: Module | None) -> None:
    assert module_of(path) == module


def test_a_package_is_wanted_whole_but_for_its_tests(tmp_path: Path) -> None:
    inside = ["__init__.py", "a.py", "sub/__init__.py", "sub/b.py", "tests/__init__.py", "tests/t.py"]
    found = played(
        tmp_path, f"{SITE}/pkg/sub/b.py", *(f"{SITE}/pkg/{name}" for name in inside), f"{SITE}/other.py"
    )
    assert found.paths() == {f"{SITE}/pkg/{name}" for name in inside if not name.startswith("tests")}


def test_compiled_modules_are_wanted_where_one_is_opened(tmp_path: Path) -> None:
    init, cached = f"{SITE}/pkg/__init__.py", f"{SITE}/pkg/{CACHED}"
    other = f"{SITE}/pkg/__pycache__/a.cpython-312.pyc"
    sources = [init, f"{SITE}/pkg/a.py", f"{SITE}/pkg/plain/__init__.py"]
    found = played(
        tmp_path, cached.format("__init__"), *sources, cached.format("__init__"), cached.format("a"), other
    )
    assert found.paths() == {cached.format("__init__"), cached.format("a"), f"{SITE}/pkg/plain/__init__.py"}


def test_extensions_come_last_with_what_they_need(tmp_path: Path) -> None:
    extension, library = f"{SITE}/pkg/_ext.so", f"{SITE}/pkg.libs/libown.so"
    made = elfmake.program([b"libown.so"], runpath=b"$ORIGIN/../pkg.libs").body
    found = played(tmp_path, f"{SITE}/pkg/a.py", f"{SITE}/pkg/__init__.py", extension, library, _ext=made)
    assert found.paths(Rank.SOON) == {f"{SITE}/pkg/__init__.py"}
    assert found.paths(Rank.LATER) == {extension, library}


def test_the_standard_library_is_wanted_when_python_starts(tmp_path: Path) -> None:
    there = [
        *(f"{STD}/{CACHED.format(name)}" for name in ("os", "site")),
        f"{STD}/encodings/{CACHED.format('utf_8')}",
        f"{STD}/lib-dynload/_typing.cpython-311-x86_64-linux-gnu.so",
    ]
    rest = [f"{STD}/os.py", f"{STD}/site.py", f"{STD}/encodings/utf_8.py", f"{STD}/email/message.py"]
    found = played(tmp_path, "usr/bin/python3.11", "usr/bin/python3.11", *there, *rest)
    assert found.paths() == set(there)


def test_a_module_among_packages_leaves_those_alone(tmp_path: Path) -> None:
    found = played(tmp_path, f"{SITE}/six.py", f"{SITE}/six.py", f"{SITE}/pkg/__init__.py", f"{STD}/os.py")
    assert found.paths() == set()
