"""What a Python program imports next: modules of a package, once one is imported; the standard library.

A package that is imported imports most of its own modules at once, each for one round trip; its compiled
modules are those beside the source in `__pycache__` that have the same tag (PEP 3147). Tests are left out.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from imgfs.content.stats import Cause
from imgfs.predict.files import FilesByPath
from imgfs.predict.guess import Also, Guess, Rank, Want
from imgfs.predict.libraries import Libraries
from imgfs.tree.reader import Listed

SUFFIXES = (b".py", b".pyc")
_CACHE = b"__pycache__"
_LEFT_OUT = frozenset(
    {b"tests", b"test", b"docs", b"examples", b"idlelib", b"site-packages", b"dist-packages"}
)
_DIRECTORIES = 400  # of a package that are looked at
_EXTENSIONS = 48  # compiled extensions of a package that are wanted, the smallest first
_EXTENSION = 8 << 20  # bytes of one at most
_LIBRARY = re.compile(rb"python3(\.\d+)?t?")  # the name of the standard library's directory
_PROGRAM = re.compile(rb"(?:(.*)/)?bin/(python3\.\d+t?)")
# Packages of the standard library that its modules import when a program starts.
_STARTING = (b"encodings", b"collections", b"importlib", b"re")
_DYNAMIC = b"lib-dynload"


class Module(NamedTuple):
    """A module by its package's directory, and the tag that its file's name ends with: `.cpython-311.pyc`."""

    directory: bytes
    tag: bytes


def module_of(path: bytes) -> Module | None:
    """Return the module that a file is; None if it is none."""
    directory, _, name = path.rpartition(b"/")
    if name.endswith(b".py"):
        return Module(directory, b".py")
    if not name.endswith(b".pyc"):
        return None
    parent, _, last = directory.rpartition(b"/")
    stem, dot, tag = name.partition(b".")
    return Module(parent, dot + tag) if last == _CACHE and stem else Module(directory, b".pyc")


class PythonModules:
    """Guesses of Python modules in one image."""

    def __init__(self, files: FilesByPath, libraries: Libraries) -> None:
        self._files = files
        self._libraries = libraries

    def of_file(self, path: bytes) -> Iterator[Also]:
        """Begin the guesses that follow from a file that is opened."""
        program = _PROGRAM.fullmatch(path)
        if program:
            library = b"/".join(filter(None, (program[1], b"lib", program[2])))
            yield from self._standard_library(library, b".cpython-%s.pyc" % program[2][6:].replace(b".", b""))
        if found := module_of(path):
            yield from self._of_module(found)

    def _of_module(self, module: Module) -> Iterator[Also]:
        directory, package = module.directory, None
        while directory and self._is_package(directory):
            directory, package = directory.rpartition(b"/")[0], directory
        if package and (ino := self._files.directory(package)):
            yield Also(("python", ino), self._package(ino, module.tag), Rank.SOON)
        if _LIBRARY.fullmatch(directory.rpartition(b"/")[2]):
            yield from self._standard_library(directory, module.tag)

    def _is_package(self, directory: bytes) -> bool:
        return bool(self._files.file(directory + b"/__init__.py"))

    def _standard_library(self, directory: bytes, tag: bytes) -> Iterator[Also]:
        if ino := self._files.directory(directory):
            yield Also(("python", ino), self._start_up(ino, directory, tag), Rank.SOON)

    def _start_up(self, ino: int, directory: bytes, tag: bytes) -> Guess:
        """Want the modules of the standard library itself, and of the packages that these import."""
        yield from self._modules(ino, tag)
        for name in _STARTING:
            if package := self._files.directory(b"%s/%s" % (directory, name)):
                yield from self._modules(package, tag)
        if dynamic := self._files.directory(b"%s/%s" % (directory, _DYNAMIC)):
            for each in self._files.listing(dynamic):
                if each.size <= _EXTENSION and b".so" in each.name:
                    yield Want(each.ino, 0, each.size, Rank.LATER, Cause.MODULE)

    def _package(self, ino: int, tag: bytes) -> Guess:
        """Want all modules of a package, then its compiled extensions, and what these need."""
        extensions: list[Listed] = []
        directories = [ino]
        for _ in range(_DIRECTORIES):
            if not directories:
                break
            directory = directories.pop(0)
            yield from self._modules(directory, tag)
            for each in self._files.listing(directory):
                if stat.S_ISDIR(each.mode) and each.name not in (*_LEFT_OUT, _CACHE):
                    directories.append(each.ino)
                elif each.name.endswith(b".so") and each.size <= _EXTENSION:
                    extensions.append(each)
        for each in sorted(extensions, key=lambda each: each.size)[:_EXTENSIONS]:
            yield Want(each.ino, 0, each.size, Rank.LATER, Cause.MODULE)
            yield self._libraries.beside(each.ino, each.size, Rank.LATER)

    def _modules(self, directory: int, tag: bytes) -> Guess:
        """Want the modules that lie in a directory: compiled ones where there are any, if such are read."""
        cache = self._files.child(directory, _CACHE) if tag != b".py" else None
        for each in self._files.listing(cache.ino if cache else directory):
            if each.name.endswith(tag if cache else b".py") and not stat.S_ISDIR(each.mode):
                yield Want(each.ino, 0, each.size, Rank.SOON, Cause.MODULE)
