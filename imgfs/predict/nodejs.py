"""What a Node program requires next: the modules of a package, once one is required, and what it depends on.

By the rules of require() (Node's documentation, "Modules: CommonJS modules"): a package `name` is the
directory of that name in the next `node_modules` on the way up. What it depends on says its package.json;
what a module outside of any package requires says its own text.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator

from imgfs.content.stats import Cause
from imgfs.predict.files import FilesByPath
from imgfs.predict.guess import Also, Guess, Look, Rank, Want
from imgfs.tree.database import Node
from imgfs.tree.reader import Listed

_MODULES = b"node_modules"
_PROGRAM = b"bin/node"
_DEBIAN = b"usr/share/nodejs"  # where Debian has packages, and those that its Node has not built in
_BUILT_IN = (b"cjs-module-lexer", b"undici", b"acorn", b"acorn-walk")
SUFFIXES = (b".js", b".cjs", b".mjs", b".json", b".node")
_LEFT_OUT = frozenset(
    {
        _MODULES,
        b"test",
        b"tests",
        b"__tests__",
        b"docs",
        b"doc",
        b"examples",
        b"example",
        b"benchmark",
        b"umd",
    }
)
_DIRECTORIES = 64  # of a package that are looked at
_PACKAGE = 4 << 20  # bytes of modules of a package
_DESCRIPTION = 1 << 18  # bytes of a package.json
_TEXT = 1 << 16  # bytes of a module that are looked at for what it requires
_DEPENDENCIES = 256  # of a package
_NAME = re.compile(r"(?:@[\w~-][\w.~-]*/)?[\w~-][\w.~-]*", re.ASCII)
_REQUIRED = re.compile(rb"""(?:\brequire\(\s*|\bfrom\s*|\bimport\s*(?:\(\s*)?)(["'])([@\w.~/-]{1,214})\1""")


class NodeModules:
    """Guesses of Node modules in one image."""

    def __init__(self, files: FilesByPath) -> None:
        self._files = files

    def of_file(self, path: bytes, node: Node) -> Iterator[Also]:
        """Begin the guesses that follow from a file that is opened."""
        if path.endswith(_PROGRAM):
            for name in _BUILT_IN:
                yield from self._package_at(b"%s/%s" % (_DEBIAN, name))
        if not path.endswith(SUFFIXES):
            return
        if package := package_of(path):
            yield from self._package_at(package)
        elif not path.endswith((b".json", b".node")):
            yield Also(("node text", node.ino), self._required(path, node.ino, node.size), Rank.SOON)

    def _package_at(self, path: bytes) -> Iterator[Also]:
        if ino := self._files.directory(path):
            yield Also(("node", ino), self._package(ino, self._files.path(ino)), Rank.SOON)

    def _package(self, ino: int, path: bytes) -> Guess:
        """Want the modules of a package, and guess on with those that it depends on."""
        described = self._files.child(ino, b"package.json")
        body = b""
        if described and stat.S_ISREG(described.mode) and described.size <= _DESCRIPTION:
            body = yield Look(described.ino, 0, described.size, Cause.MODULE)
        main, names = read_package(body)
        yield from self._modules(ino, main)
        for name in names:
            yield from self._found(path, name)

    def _modules(self, ino: int, main: bytes) -> Guess:
        """Want a package's modules, those beside its main one first."""
        left, directories = _PACKAGE, [ino]
        for _ in range(_DIRECTORIES):
            if not directories:
                return
            listed = list(self._files.listing(directories.pop(0)))
            for each in listed:
                if stat.S_ISREG(each.mode) and each.name.endswith(SUFFIXES) and each.size <= left:
                    left -= each.size
                    yield Want(each.ino, 0, each.size, Rank.SOON, Cause.MODULE)
            below = [each for each in listed if stat.S_ISDIR(each.mode) and each.name not in _LEFT_OUT]
            directories += [each.ino for each in sorted(below, key=lambda each: _is_other(each, main))]

    def _required(self, path: bytes, ino: int, size: int) -> Guess:
        """Guess on with the packages that a module of the program itself requires."""
        text = yield Look(ino, 0, min(size, _TEXT), Cause.MODULE)
        for name in required_in(text):
            yield from self._found(path, name)

    def _found(self, path: bytes, name: bytes) -> Iterator[Also]:
        """Guess on with the package `name` that is found from a file or directory."""
        directory = path
        while True:
            if not directory.endswith(_MODULES):
                at = b"/".join(filter(None, (directory, _MODULES, name)))
                if self._files.directory(at):
                    yield from self._package_at(at)
                    return
            if not directory:
                return
            directory = directory.rpartition(b"/")[0]


def package_of(path: bytes) -> bytes | None:
    """Return the directory of the package that a file is in; None if it is in none."""
    before, found, rest = path.rpartition(b"/%s/" % _MODULES)
    if not found:
        if not path.startswith(_MODULES + b"/"):
            return None
        rest = path[len(_MODULES) + 1 :]
        found = _MODULES + b"/"
    parts = rest.split(b"/")
    name = b"/".join(parts[: 2 if rest.startswith(b"@") else 1])
    return before + found + name if len(parts) > name.count(b"/") + 1 else None


def read_package(body: bytes) -> tuple[bytes, list[bytes]]:
    """Return the directory of the main module, and the names of what a package depends on, by package.json.

    Nothing of what is no such document.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return b"", []
    if not isinstance(document, dict):
        return b"", []
    main, names = document.get("main"), document.get("dependencies")
    first = main.removeprefix("./").partition("/")[0] if isinstance(main, str) else ""
    known = [name for name in names if _NAME.fullmatch(name)] if isinstance(names, dict) else []
    return first.encode(errors="replace"), [name.encode() for name in known[:_DEPENDENCIES]]


def required_in(text: bytes) -> list[bytes]:
    """Return the packages that a module's text requires, without those that come with Node."""
    names = (found[2] for found in _REQUIRED.finditer(text))
    packages = (b"/".join(name.split(b"/")[: 2 if name.startswith(b"@") else 1]) for name in names)
    return [name for name in dict.fromkeys(packages) if not name.startswith(b".") and name.strip(b"@/")]


def _is_other(each: Listed, main: bytes) -> bool:
    return each.name != main
