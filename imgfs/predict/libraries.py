"""What the dynamic linker reads for a program: the libraries it needs, where ld.so(8) finds them, and tables.

A small file is wanted whole: relocating it touches nearly all of it. Of a large one only what the dynamic
linker goes through is wanted, and all the rest once its code is read here and there.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from functools import cached_property

from imgfs.content.stats import Cause
from imgfs.layer.limits import PATH_LIMIT
from imgfs.predict.elf import HEAD, Dynamic, Elf, read_dynamic, read_elf, string_at
from imgfs.predict.files import FilesByPath
from imgfs.predict.guess import LARGEST_LOOK, Also, Guess, Look, Rank, Step, Want, Watch
from imgfs.tree.database import Node

_WHOLE = 8 << 20  # bytes of a file that is wanted whole
_END = 1 << 20  # bytes at either end of a larger one
_PROGRAM = 64 << 20  # bytes of a program, or a library of its own, that all code is wanted of
_NAME = 4096  # bytes of a name, or of a DT_RUNPATH
_USUAL = (b"lib", b"usr/lib", b"lib64", b"usr/lib64", b"usr/local/lib")
_MULTIARCH = re.compile(rb".*-linux-(gnu|musl)\w*")
_CONFIG = b"etc/ld.so.conf"
_CONFIGS = 64  # files that it includes
_CONFIG_SIZE = 1 << 16  # bytes of each
_EXECUTABLE = 0o111
_PATHS = 64  # directories of a DT_RUNPATH
# What a program reads with glibc when it starts: the linker, the library, and for its locale.
_C_LIBRARY = (b"ld-linux-x86-64.so.2", b"ld-linux-aarch64.so.1", b"libc.so.6")
_CONVERSIONS = b"gconv/gconv-modules.cache"  # beside the library
_START_UP = (b"etc/ld.so.cache", b"usr/lib/locale/C.utf8/LC_CTYPE", b"etc/localtime")


def is_linked(name: bytes, node: Node) -> bool:
    """Return True if a file is likely to be a program or a library."""
    return bool(node.mode & _EXECUTABLE) or b".so" in name


class Libraries:
    """Guesses of ELF files in one image."""

    def __init__(self, files: FilesByPath) -> None:
        self._files = files
        self._configured: tuple[bytes, ...] | None = None  # directories of ld.so.conf, once they are known

    def of_file(self, path: bytes, node: Node) -> Iterator[Also]:
        """Begin the guesses that follow from a file that is opened."""
        if not is_linked(path.rpartition(b"/")[2], node):
            return
        if not node.mode & _EXECUTABLE or b".so" in path.rpartition(b"/")[2]:
            yield self.beside(node.ino, node.size)
        else:
            yield Also(("start-up", 0), self._start_up(), Rank.NOW)
            yield self._own(node)

    def _own(self, node: Node) -> Also:
        """Begin the guess of a program, or of a library that is linked to it."""
        guess = self._guess(node.ino, node.size, Rank.NOW, is_program=True)
        return Also(("program", node.ino), guess, Rank.NOW)

    def beside(self, ino: int, size: int, rank: Rank = Rank.NOW) -> Also:
        """Begin the guess of a library."""
        return Also((f"library {rank}", ino), self._guess(ino, size, rank), rank)

    def _guess(self, ino: int, size: int, rank: Rank, *, is_program: bool = False) -> Guess:
        """Guess what is read when a file is executed or linked that may be an ELF file."""
        if size <= _WHOLE:
            yield Want(ino, 0, size, rank, Cause.LIBRARY)
        else:  # headers and the dynamic section are at its ends
            yield Want(ino, 0, _END, rank, Cause.LIBRARY)
            yield Want(ino, size - _END, size, rank, Cause.LIBRARY)
        elf = read_elf((yield _look(ino, 0, min(size, HEAD))))
        if elf is None:
            return
        if elf.interpreter:
            path = yield _look(ino, *elf.interpreter)
            yield from self._named(path.rstrip(b"\0"), rank)
        dynamic = read_dynamic(elf, (yield _look(ino, *elf.dynamic))) if elf.dynamic else None
        if size > _WHOLE:
            yield from _large(ino, size, elf, dynamic, rank, is_program=is_program)
        if dynamic:
            yield from self._needed(ino, dynamic, rank, is_program=is_program)

    def _needed(self, ino: int, dynamic: Dynamic, rank: Rank, *, is_program: bool) -> Guess:
        """Guess on with the libraries that a file needs."""
        names = yield from _names(ino, dynamic)
        origin = self._files.path(ino).rpartition(b"/")[0]
        texts = [names[offset] for offset in dynamic.paths]
        expanded = (_expanded(path, origin) for text in texts for path in text.split(b":")[:_PATHS] if path)
        own = [path for path in expanded if len(path) <= PATH_LIMIT]
        for name in filter(None, (names[offset] for offset in dynamic.needed)):
            found = self._first([*own, *self._usual], name)
            if found is None:
                found = self._first((yield from self._directories_configured()), name)
            if found and is_program:
                yield self._own(found)
            elif found:
                yield self.beside(found.ino, found.size, rank)

    def _named(self, path: bytes, rank: Rank) -> Guess:
        """Want a whole file that is named by its path: the dynamic linker."""
        found = self._files.file(path)
        if found:
            yield Want(found.ino, 0, min(found.size, _WHOLE), rank, Cause.LIBRARY)

    def _start_up(self) -> Guess:
        """Want what the C library reads whatever the program is."""
        found = [self._first(self._usual, name) for name in _C_LIBRARY]
        found += [self._files.file(b"%s/%s" % (directory, _CONVERSIONS)) for directory in self._usual]
        found += [self._files.file(path) for path in _START_UP]
        for each in filter(None, found):
            yield Want(each.ino, 0, min(each.size, _WHOLE), Rank.NOW, Cause.LIBRARY)

    def _first(self, directories: Sequence[bytes], name: bytes) -> Node | None:
        """Return the first file of a name in directories; a name with a slash is a path."""
        if b"/" in name:
            return self._files.file(name)
        found = (self._files.file(b"%s/%s" % (directory, name)) for directory in directories)
        return next(filter(None, found), None)

    @cached_property
    def _usual(self) -> tuple[bytes, ...]:
        """The directories that are searched unless told, those of Debian's architectures among them."""
        return (*self._multiarch(b"usr/lib"), *self._multiarch(b"lib"), *_USUAL)

    def _multiarch(self, below: bytes) -> Iterator[bytes]:
        directory = self._files.directory(below)
        for listed in self._files.listing(directory) if directory else ():
            if _MULTIARCH.fullmatch(listed.name):
                yield b"%s/%s" % (below, listed.name)

    def _directories_configured(self) -> Generator[Step, bytes, tuple[bytes, ...]]:
        """Read ld.so.conf and what it includes, once; returns the directories."""
        if self._configured is None:
            self._configured = ()
            found: list[bytes] = []
            for ino, size in self._configs():
                body = yield _look(ino, 0, min(size, _CONFIG_SIZE))
                lines = (line.partition(b"#")[0].strip() for line in body.splitlines())
                found += [line for line in lines if line.startswith(b"/")]
            self._configured = tuple(dict.fromkeys(found))[:_PATHS]
        return self._configured

    def _configs(self) -> Iterator[tuple[int, int]]:
        """Yield (ino, size) of ld.so.conf and of the files beside it, which is what it includes."""
        if main := self._files.file(_CONFIG):
            yield main.ino, main.size
        directory = self._files.directory(_CONFIG + b".d")
        listed = self._files.listing(directory) if directory else iter(())
        for number, each in enumerate(listed):
            if number < _CONFIGS and each.name.endswith(b".conf"):
                yield each.ino, each.size


def _look(ino: int, start: int, end: int) -> Look:
    return Look(ino, start, end, Cause.LIBRARY)


def _large(ino: int, size: int, elf: Elf, dynamic: Dynamic | None, rank: Rank, *, is_program: bool) -> Guess:
    """Want of a large file what is linked; its code where it is a program's own, or once it is executed."""
    for start, end in dynamic.touched if dynamic else ():
        yield Want(ino, start, end, rank, Cause.LIBRARY)
    for start, end in elf.code:
        if is_program and size <= _PROGRAM:
            yield Want(ino, start, end, Rank.LATER, Cause.LIBRARY)
        else:
            yield Watch(ino, start, end, Cause.LIBRARY)


def _names(ino: int, dynamic: Dynamic) -> Generator[Step, bytes, dict[int, bytes]]:
    """Read the names that a dynamic section has, by their offsets: at once, if they lie together."""
    offsets = sorted({*dynamic.needed, *dynamic.paths})
    names: dict[int, bytes] = {}
    at = body = None
    for offset in offsets:
        if at is None or body is None or offset + _NAME > at + LARGEST_LOOK:
            at = offset
            end = min(offsets[-1], at + LARGEST_LOOK - _NAME) + _NAME
            body = yield _look(ino, dynamic.strings + at, dynamic.strings + end)
        names[offset] = string_at(body, offset - at, _NAME)
    return names


def _expanded(path: bytes, origin: bytes) -> bytes:
    """Return a directory of DT_RUNPATH or DT_RPATH with the file's own put in."""
    return path.replace(b"${ORIGIN}", b"/" + origin).replace(b"$ORIGIN", b"/" + origin)
