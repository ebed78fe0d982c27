"""What a Python program imports next: modules of a package, once one is imported; the standard library.

A package that is imported imports most of its own modules at once, each for one round trip; its compiled
modules are those beside the source in `__pycache__` that have the same tag (PEP 3147). Of its packages and
extensions only those are likely to be imported that its modules name: numpy has twenty, and names ten.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Generator, Iterator
from typing import NamedTuple

from imgfs.content.stats import Cause
from imgfs.predict.files import FilesByPath
from imgfs.predict.guess import LARGEST_LOOK, Also, Guess, Look, Rank, Step, Want
from imgfs.predict.libraries import Libraries
from imgfs.tree.reader import Listed

SUFFIXES = (b".py", b".pyc")
_CACHE = b"__pycache__"
_LEFT_OUT = frozenset(
    {b"tests", b"test", b"docs", b"examples", b"idlelib", b"site-packages", b"dist-packages"}
)
_INIT = b"__init__"
_EXTENSIONS = 48  # compiled extensions of a package that are wanted, the smallest first
_EXTENSION = 8 << 20  # bytes of one at most
_LIBRARY = re.compile(rb"python3(\.\d+)?t?")  # the name of the standard library's directory
_PROGRAM = re.compile(rb"(?:(.*)/)?bin/(python3\.\d+t?)")
# Packages of the standard library that its modules import when a program starts.
_STARTING = (b"encodings", b"collections", b"importlib", b"re")
_DYNAMIC = b"lib-dynload"
# In a compiled module all names that it uses are marshalled as short ASCII strings: z or Z, which may have
# the flag of a reference, one byte of length, the name (Python/marshal.c, TYPE_SHORT_ASCII).
_MARSHALLED = re.compile(rb"[zZ\xda\xfa](?=([\x01-\x7f])[A-Za-z_.])")
_DOTTED = re.compile(rb"\.*\w+(?:\.\w+)*")
_IMPORT = re.compile(rb"^[ \t]*(?:from|import)[ \t]+(.*)$", re.MULTILINE)
_WORD = re.compile(rb"[A-Za-z_]\w*")


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
        for each in dict.fromkeys((package, module.directory)) if package else ():
            if ino := self._files.directory(each):
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
        """Want a package's modules, then the packages in it that its first module names; extensions last."""
        yield from self._modules(ino, tag)
        inits = [each for each in self._modules_in(ino, tag) if each.name.partition(b".")[0] == _INIT]
        names = yield from _named_in(inits)
        extensions: list[Listed] = []
        for each in self._files.listing(ino):
            if stat.S_ISDIR(each.mode) and each.name in names and each.name not in _LEFT_OUT:
                yield Also(("python", each.ino), self._package(each.ino, tag), Rank.SOON)
            elif each.name.endswith(b".so") and each.size <= _EXTENSION:
                extensions.append(each)
        if extensions:
            guess = self._extensions(extensions, list(self._modules_in(ino, tag)))
            yield Also(("python extensions", ino), guess, Rank.LATER)

    def _extensions(self, extensions: list[Listed], modules: list[Listed]) -> Guess:
        """Want the extensions that a package's modules name, and what these need."""
        names = yield from _named_in(modules)
        found = [each for each in extensions if each.name.partition(b".")[0] in names]
        for each in sorted(found, key=lambda each: each.size)[:_EXTENSIONS]:
            yield Want(each.ino, 0, each.size, Rank.LATER, Cause.MODULE)
            yield self._libraries.beside(each.ino, each.size, Rank.LATER)

    def _modules(self, directory: int, tag: bytes) -> Guess:
        """Want the modules that lie in a directory."""
        for each in self._modules_in(directory, tag):
            yield Want(each.ino, 0, each.size, Rank.SOON, Cause.MODULE)

    def _modules_in(self, directory: int, tag: bytes) -> Iterator[Listed]:
        """Yield the modules of a directory: compiled ones where there are any, if such are read."""
        cache = self._files.child(directory, _CACHE) if tag != b".py" else None
        for each in self._files.listing(cache.ino if cache else directory):
            if each.name.endswith(tag if cache else b".py") and not stat.S_ISDIR(each.mode):
                yield each


def _named_in(modules: list[Listed]) -> Generator[Step, bytes, set[bytes]]:
    """Read modules, and return what they name."""
    names: set[bytes] = set()
    for each in modules:
        body = yield Look(each.ino, 0, min(each.size, LARGEST_LOOK), Cause.MODULE)
        names |= names_in(body, is_compiled=each.name.endswith(b".pyc"))
    return names


def names_in(body: bytes, *, is_compiled: bool) -> set[bytes]:
    """Return the names that a module uses, or of a source the words of its imports; dotted ones in parts."""
    if not is_compiled:
        return {word[0] for line in _IMPORT.finditer(body) for word in _WORD.finditer(line[1])}
    found = (body[name.end() + 1 : name.end() + 1 + name[1][0]] for name in _MARSHALLED.finditer(body))
    return {part for name in found if _DOTTED.fullmatch(name) for part in name.split(b".")}
