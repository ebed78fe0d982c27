"""What a Python program imports next: modules beside one that is opened, extensions, the standard library."""

from __future__ import annotations

import marshal
from pathlib import Path

import pytest

from imgfs.predict.files import FilesByPath
from imgfs.predict.guess import Rank
from imgfs.predict.libraries import Libraries
from imgfs.predict.python import Module, PythonModules, module_of, names_in
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


def compiled(source: str) -> bytes:
    """What lies in `__pycache__` for a source; the head of 16 bytes is not looked at."""
    return bytes(16) + marshal.dumps(compile(source, "x.py", "exec"))


def test_of_the_packages_in_a_package_those_are_wanted_that_it_names(tmp_path: Path) -> None:
    wanted = ["__init__.py", "a.py", "sub/__init__.py", "sub/b.py", "low/__init__.py"]
    others = ["other/__init__.py", "other/c.py", "tests/__init__.py", "tests/t.py"]
    body = b'"""Has other."""\nfrom . import sub\nif True:\n    import pkg.low, pkg.tests\nother = 1\n'
    paths = [f"{SITE}/pkg/{name}" for name in wanted + others]
    found = played(tmp_path, f"{SITE}/pkg/a.py", *paths, f"{SITE}/other.py", __init__=body)
    assert found.paths() == {f"{SITE}/pkg/{name}" for name in wanted}


def test_a_package_that_none_names_is_wanted_once_a_module_of_it_is_opened(tmp_path: Path) -> None:
    inside = [f"{SITE}/pkg/{name}" for name in ("__init__.py", "sub/__init__.py", "sub/b.py")]
    found = played(tmp_path, f"{SITE}/pkg/sub/b.py", *inside, f"{SITE}/pkg/sub/c/__init__.py")
    assert found.paths() == set(inside)


def test_compiled_modules_are_wanted_where_one_is_opened(tmp_path: Path) -> None:
    init, cached = f"{SITE}/pkg/__init__.py", f"{SITE}/pkg/{CACHED}"
    other = f"{SITE}/pkg/__pycache__/a.cpython-312.pyc"
    sources = [init, f"{SITE}/pkg/a.py", f"{SITE}/pkg/plain/x.py", f"{SITE}/pkg/unnamed/y.py"]
    body = compiled("def late():\n    from pkg.plain import x as unnamed_by_this")
    paths = [*sources, cached.format("__init__"), cached.format("a"), other]
    found = played(tmp_path, cached.format("__init__"), *paths, __init__=body)
    assert found.paths() == {cached.format("__init__"), cached.format("a"), f"{SITE}/pkg/plain/x.py"}


def test_extensions_that_are_named_come_last_with_what_they_need(tmp_path: Path) -> None:
    extension, library = f"{SITE}/pkg/_ext.cpython-311-x86_64-linux-gnu.so", f"{SITE}/pkg.libs/libown.so"
    made = elfmake.program([b"libown.so"], runpath=b"$ORIGIN/../pkg.libs").body
    modules = [f"{SITE}/pkg/{CACHED.format(name)}" for name in ("__init__", "a")]
    opened, source = modules[1], f"{SITE}/pkg/__init__.py"
    paths = [source, *modules, extension, library, f"{SITE}/pkg/_other.so"]
    found = played(tmp_path, opened, *paths, _ext=made, a=compiled("from pkg._ext import x"))
    assert found.paths(Rank.SOON) == set(modules)
    assert found.paths(Rank.LATER) == {extension, library}


@pytest.mark.parametrize(
    ("source", "names"),
    [("import a.b as c", {"a", "b", "c"}), ("from ..x import y\ndef f(): return z.w", set("xyfzw"))],
)
def test_the_names_of_a_compiled_module_are_found(source: str, names: set[str]) -> None:
    assert names_in(compiled(source), is_compiled=True) >= {name.encode() for name in names}


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
