"""The tests of `imgfs find`, by the words of find(1), and the expression that joins them.

A test is a function of the image's files and one of them. `!` binds closest, then "and", then -o.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import stat
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from enum import Enum
from functools import cache, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias

from imgfs.errors import UsageError
from imgfs.runtime.user import find_user

if TYPE_CHECKING:
    from imgfs.image.files import Found, ImageFiles

Test: TypeAlias = "Callable[[ImageFiles, Found], bool]"

_TYPES = {
    "f": stat.S_IFREG,
    "d": stat.S_IFDIR,
    "l": stat.S_IFLNK,
    "c": stat.S_IFCHR,
    "b": stat.S_IFBLK,
    "p": stat.S_IFIFO,
}
_SIZE = re.compile(r"([+-]?[0-9]{1,18})([ckMG]?)")
_COUNT = re.compile(r"[+-]?[0-9]{1,18}")
_UNITS = {"": 1, "c": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MODE = re.compile(r"([-/]?)([0-7]{1,5})")
_MINUTE, _DAY = 60, 86400  # seconds
_MOST = 200  # terms of an expression: it is read by recursion


class Operator(Enum):
    """What joins tests; the value is what is typed."""

    NOT = "!"
    OR = "-o"
    OPEN = "("
    CLOSE = ")"


class AddTerm(argparse.Action):
    """Adds a test, or an operator, to the expression."""

    def __call__(
        self, _parser: object, namespace: argparse.Namespace, values: Any, _option: object = None
    ) -> None:
        term = values if self.const is None else self.const
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), term])


def joined(terms: Sequence[Test | Operator]) -> Test:
    """Return one test for an expression, True of all files if it is empty; raises UsageError."""
    if not terms:
        return lambda _files, _found: True
    if len(terms) > _MOST:
        raise UsageError(f"more than {_MOST} tests")
    expression = _Expression(terms)
    test = expression.alternatives()
    if expression.next is not None:
        raise UsageError(f"there is no {Operator.OPEN.value!r} for a {Operator.CLOSE.value!r}")
    return test


class _Expression:
    """The terms of an expression that have not been read yet."""

    def __init__(self, terms: Sequence[Test | Operator]) -> None:
        self._terms = [*terms][::-1]

    @property
    def next(self) -> Test | Operator | None:
        return self._terms[-1] if self._terms else None

    def alternatives(self) -> Test:
        """Read tests that -o joins."""
        tests = [self._conjunction()]
        while self.next is Operator.OR:
            self._terms.pop()
            tests.append(self._conjunction())
        return lambda files, found: any(test(files, found) for test in tests)

    def _conjunction(self) -> Test:
        """Read tests that all have to hold."""
        tests = [self._one()]
        while self.next not in (None, Operator.OR, Operator.CLOSE):
            tests.append(self._one())
        return lambda files, found: all(test(files, found) for test in tests)

    def _one(self) -> Test:
        term = self._terms.pop() if self._terms else None
        if term is Operator.NOT:
            test = self._one()
            return lambda files, found: not test(files, found)
        if term is Operator.OPEN:
            test = self.alternatives()
            if self.next is not Operator.CLOSE:
                raise UsageError(f"there is no {Operator.CLOSE.value!r} for a {Operator.OPEN.value!r}")
            self._terms.pop()
            return test
        if term is None or isinstance(term, Operator):
            where = f"before {term.value!r}" if term else "at the end"
            raise UsageError(f"a test is missing {where}")
        return term


def glob(text: str) -> Test:
    """Test the last part of the path against a shell's pattern."""
    pattern = os.fsencode(text)
    return lambda _, found: fnmatch.fnmatchcase(_name(found), pattern)


def iglob(text: str) -> Test:
    """Test a name against a pattern, whatever the case."""
    pattern = os.fsencode(text.lower())
    return lambda _, found: fnmatch.fnmatchcase(os.fsencode(os.fsdecode(_name(found)).lower()), pattern)


def path_glob(text: str) -> Test:
    """Test the whole path against a pattern."""
    pattern = os.fsencode(text)
    return lambda _, found: fnmatch.fnmatchcase(found.path, pattern)


def _name(found: Found) -> bytes:
    return os.path.basename(found.path) or b"/"


def kind(text: str) -> Test:
    """Test for kinds of files, by find(1)'s letters, with commas or without."""
    letters = set(text.replace(",", ""))
    if not letters or letters - set(_TYPES):
        raise argparse.ArgumentTypeError(f"{text!r} has other letters than {', '.join(_TYPES)}")
    kinds = {_TYPES[letter] for letter in letters}
    return lambda _, found: stat.S_IFMT(found.node.mode) in kinds


def size(text: str) -> Test:
    """Test the size in bytes: k, M and G are powers of 1024."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, like 5, +10k or -2M")
    fits = _compared(match[1], _UNITS[match[2]])
    return lambda _, found: fits(found.node.size)


def is_empty(files: ImageFiles, found: Found) -> bool:
    """Test for a regular file without bytes, or a directory without names."""
    if found.is_directory:
        return next(files.children(found), None) is None
    return found.is_regular and found.node.size == 0


def newer(text: str) -> Test:
    """Test the time of change: after a date, or after that of the image's file at a path."""
    if text.startswith("/"):
        moment_of = cache(partial(_mtime, os.fsencode(text)))
        return lambda files, found: found.node.mtime_ns > moment_of(files)
    moment = _moment(text)
    return lambda _, found: found.node.mtime_ns > moment


def older(text: str) -> Test:
    """Test the time of change: before a date."""
    moment = _moment(text)
    return lambda _, found: found.node.mtime_ns < moment


def _mtime(path: bytes, files: ImageFiles) -> int:
    return files.matching(path, follow=True)[0].node.mtime_ns


def _moment(text: str) -> int:
    """Return a date, perhaps with a time, in nanoseconds since the epoch; UTC unless it says another zone."""
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date, like 2024-05-01") from None
    if date.tzinfo is None:
        date = datetime.fromisoformat(f"{date.isoformat()}+00:00")
    return int(date.timestamp() * 1_000_000_000)


def days(text: str) -> Test:
    """Test for how many whole days ago the file was changed."""
    return _ago(text, _DAY)


def minutes(text: str) -> Test:
    """Test for how many whole minutes ago the file was changed."""
    return _ago(text, _MINUTE)


def _ago(text: str, unit: int) -> Test:
    fits, now = _compared(text), time.time_ns()
    return lambda _, found: fits((now - found.node.mtime_ns) // (unit * 1_000_000_000))


def mode(text: str) -> Test:
    """Test the bits of the mode, in octal."""
    match = _MODE.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a mode, like 755, -4000 or /6000")
    bits = int(match[2], 8)
    if match[1] == "-":
        return lambda _, found: stat.S_IMODE(found.node.mode) & bits == bits
    if match[1] == "/":
        return lambda _, found: bool(stat.S_IMODE(found.node.mode) & bits)
    return lambda _, found: stat.S_IMODE(found.node.mode) == bits


def user(text: str) -> Test:
    """Test the owner: a number, or a name that the image's passwd has; else UsageError once it is asked."""
    uid = cache(lambda files: find_user(text, _body(files, b"/etc/passwd"), b"").uid)
    return lambda files, found: found.node.uid == uid(files)


def group(text: str) -> Test:
    """Test the group: a number, or a name that the image has; else UsageError once it is asked."""
    gid = cache(lambda files: find_user(f"0:{text}", b"", _body(files, b"/etc/group")).gid)
    return lambda files, found: found.node.gid == gid(files)


def _body(files: ImageFiles, path: bytes) -> bytes:
    """Return a file's bytes, none if the image has no such file."""
    found = files.at(path)
    found = found and files.followed(found)
    return b"".join(files.read(found)) if found and found.is_regular else b""


def _numeric(value_of: Callable[[Found], int], text: str) -> Test:
    """Test a number that a file has against N, +N or -N."""
    fits = _compared(text)
    return lambda _, found: fits(value_of(found))


uid = partial(_numeric, attrgetter("node.uid"))
gid = partial(_numeric, attrgetter("node.gid"))
links = partial(_numeric, attrgetter("node.nlink"))


def layer(text: str) -> Test:
    """Test which layer brought the file."""
    fits = _compared(text)
    return lambda files, found: fits(files.layer(found))


def _compared(text: str, unit: int = 1) -> Callable[[int], bool]:
    """Return the comparison that N, +N (more) or -N (less) is, N in units."""
    if not _COUNT.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, like 5, +5 or -5")
    wanted = int(text.lstrip("+-")) * unit
    if text.startswith("+"):
        return lambda number: number > wanted
    if text.startswith("-"):
        return lambda number: number < wanted
    return lambda number: number == wanted


def xattr(text: str) -> Test:
    """Test for an attribute whose name matches a pattern."""
    return partial(_has_xattr, os.fsencode(text))


def _has_xattr(pattern: bytes, files: ImageFiles, found: Found) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in files.xattrs(found))
