"""imgfs grep: search files of an image for lines."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from imgfs.cli.options import Commands, add_command, image_options
from imgfs.cli.output import say_line
from imgfs.cli.paths import PATHS, NamedFiles, open_files, take_paths
from imgfs.errors import UsageError

if TYPE_CHECKING:
    from imgfs.image.files import Found

_LONGEST = 16 << 20  # bytes of a line that are searched at once
_HEAD = 32 << 10  # bytes in which a NUL makes a file binary, as for GNU grep
_TROUBLE = 2  # grep's exit code
# POSIX, Base Definitions 9.3.5, in the locale C
_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \\t",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": "!-/:-@\\[-`{-~",
    "space": " \\t\\n\\r\\f\\v",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
_IN_BRACKETS = re.compile(r"\[:(\w+):\]|[\[\]\\&~|^]")  # a class, or a sign that Python reads otherwise
_SWAPPED = "(){}|+?"  # mean something with a backslash in basic expressions, without one in extended ones


def add_grep(commands: Commands) -> None:
    """`imgfs grep`."""
    command = add_command(
        commands,
        "grep",
        grep,
        "search files of an image for lines",
        """\
Shows the lines of files of IMAGE that match PATTERN, a basic regular expression as grep(1) has it. Of a
binary file it says that it matches. Exit code: 0 found, 1 not found, 2 trouble.

With --all-layers it also searches the files that later layers hide; each name then has its layer before it.

Examples:
  imgfs grep -r -i password app:v2 /etc
  imgfs grep -n -E '^(root|daemon):' debian:12:/etc/passwd
  imgfs grep -r --all-layers 'BEGIN.*PRIVATE KEY' app:v2
""",
    )
    command.add_argument("pattern", metavar="PATTERN")
    image_options(command)
    command.add_argument("paths", metavar="PATH", nargs="*", default=[], help=PATHS)
    command.add_argument(
        "-r", "-R", dest="recursive", action="store_true", help="search all files below PATH"
    )
    command.add_argument("-i", dest="ignore_case", action="store_true", help="whatever the case")
    command.add_argument("-l", dest="names_only", action="store_true", help="only the names of the files")
    command.add_argument("-n", dest="numbers", action="store_true", help="with line numbers")
    command.add_argument("-v", dest="invert", action="store_true", help="the lines that do not match")
    command.add_argument("-w", dest="whole_words", action="store_true", help="only whole words")
    command.add_argument("-c", dest="count", action="store_true", help="only how many lines of each file")
    command.add_argument("-q", dest="quiet", action="store_true", help="only the exit code")
    command.add_argument("--all-layers", action="store_true", help="also what later layers hide")
    kinds = command.add_mutually_exclusive_group()
    kinds.add_argument("-E", dest="kind", action="store_const", const="E", help="an extended expression")
    kinds.add_argument("-F", dest="kind", action="store_const", const="F", help="a plain text")


def grep(options: argparse.Namespace) -> int:
    """Search files."""
    pattern = compiled(
        options.pattern, options.kind, ignore_case=options.ignore_case, whole_words=options.whole_words
    )
    paths = take_paths(options)
    if options.all_layers:
        return _grep_versions(options, paths, pattern)
    with open_files(options) as files:
        named = NamedFiles(files, _TROUBLE)
        search = _LineSearch(named, pattern, options)
        tops = [*named.of(paths, follow=True)]
        search.shows_names = options.recursive or len(paths) > 1 or len(tops) > 1
        for top in tops:
            search.below(top)
    return search.code()


def _grep_versions(options: argparse.Namespace, paths: list[bytes], pattern: re.Pattern[bytes]) -> int:
    """Search all versions of files: those that the image shows, then those that are hidden."""
    from imgfs.cli.layers import open_versions
    from imgfs.image.hidden import hidden_below

    with open_versions(options) as versions:
        named = NamedFiles(versions.files, _TROUBLE)
        search = _LineSearch(named, pattern, options)
        for path in paths:
            hidden = (each.found for each in hidden_below(versions.tree, path, follow=True))
            first = next(hidden, None)
            for top in named.at(path, follow=True, is_hidden=first is not None):
                search.below(top)
            for found in chain([first] if first else [], hidden):
                if options.recursive or found.depth == 0:
                    search.one(found)
    return search.code()


class _LineSearch:
    """A search of files by a pattern."""

    def __init__(self, named: NamedFiles, pattern: re.Pattern[bytes], options: argparse.Namespace) -> None:
        self.shows_names = True
        self._has_found = False
        self._named, self._files = named, named.files
        self._pattern = pattern
        # What matches within a line matches here, too; the reverse need not be: \s and [^x] match line ends.
        self._anywhere = re.compile(pattern.pattern, pattern.flags | re.MULTILINE)
        self._options = options

    def below(self, top: Found) -> None:
        """Search a file, or with -r a directory; say what is neither."""
        if not top.is_regular and not (self._options.recursive and top.is_directory):
            self._named.refuse(top)
            return
        for found in self._files.below(top):
            self.one(found)

    def one(self, found: Found) -> None:
        """Search one file, if it is a regular one."""
        if found.is_regular and self._show(found):
            self._has_found = True

    def code(self) -> int:
        """Return grep's exit code for what was found so far."""
        return self._named.code or (0 if self._has_found else 1)

    def _show(self, found: Found) -> bool:
        """Show the lines of a file that match; return whether any does."""
        matches, is_binary = 0, False
        label = b"%d:" % self._files.layer(found) if self._options.all_layers else b""
        label += found.path
        number = 0
        for block in _blocks(self._files.searchable(found)):
            if not self._may_match(block):
                number += block.count(b"\n") + (not block.endswith(b"\n"))
                is_binary = is_binary or b"\0" in block
                continue
            for line in block.removesuffix(b"\n").split(b"\n"):
                number += 1
                is_binary = is_binary or b"\0" in line
                if (self._pattern.search(line) is None) != self._options.invert:
                    continue
                matches += 1
                if self._options.quiet:
                    return True
                if self._options.count and not self._options.names_only:
                    continue
                if self._options.names_only or is_binary:
                    say_line(label if self._options.names_only else b"Binary file " + label + b" matches")
                    return True
                name = label + b":" if self.shows_names else b""
                say_line(name + (b"%d:" % number if self._options.numbers else b"") + line)
        if self._options.count and not (self._options.names_only or self._options.quiet):
            say_line((label + b":" if self.shows_names else b"") + b"%d" % matches)
        return matches > 0

    def _may_match(self, block: bytes) -> bool:
        """Return False if no line of a block matches: one search is faster than one for each line."""
        return bool(self._options.invert or self._anywhere.search(block))


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield blocks of whole lines with their ends; a line of more than 16 MiB in several blocks."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        end = piece.rfind(b"\n") + 1
        if end:
            yield b"".join([*held, piece[:end]])
            held, size = [], 0
        held.append(piece[end:])
        size += len(piece) - end
        if size > _LONGEST:
            yield b"".join(held)
            held, size = [], 0
    if size:
        yield b"".join(held)


def compiled(
    text: str, kind: str | None, *, ignore_case: bool = False, whole_words: bool = False
) -> re.Pattern[bytes]:
    """Return a POSIX expression, basic, or extended (kind "E"), or a plain text ("F"), as Python's.

    Raises UsageError.
    """
    translated = re.escape(text) if kind == "F" else _translated(text, extended=kind == "E")
    if whole_words:
        translated = rf"(?<!\w)(?:{translated})(?!\w)"
    try:
        return re.compile(os.fsencode(translated), re.IGNORECASE if ignore_case else 0)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{text!r} is not a regular expression: {error}") from error


def _translated(text: str, *, extended: bool) -> str:
    """Return a POSIX expression in Python's syntax (POSIX, Base Definitions 9.3 and 9.4)."""
    parts: list[str] = []
    at = 0
    while at < len(text):
        sign, rest = text[at], text[at + 1 :]
        if sign == "[":
            end = _bracket_end(text, at)
            parts.append(_bracket(text[at + 1 : end]))
            at = end
        elif sign == "\\" and rest:
            parts.append(_escaped(rest[0], extended=extended))
            at += 1
        elif extended or _is_special(sign, rest, parts):
            parts.append(sign)
        else:
            parts.append(re.escape(sign))
        at += 1
    return "".join(parts)


def _escaped(sign: str, *, extended: bool) -> str:
    """Translate a sign behind a backslash."""
    if sign in _SWAPPED:
        return f"\\{sign}" if extended else sign
    if sign in "<>":
        return r"\b"
    return f"\\{sign}" if sign in "wWsSbB123456789" else re.escape(sign)


def _is_special(sign: str, rest: str, before: list[str]) -> bool:
    """Return True if a sign of a basic expression means something there."""
    is_first = not before or before[-1] in ("(", "|")
    if sign == "*":
        return not is_first and before != ["^"]
    if sign == "^":
        return is_first
    if sign == "$":
        return not rest or rest.startswith(("\\)", "\\|"))
    return sign == "."


def _bracket_end(text: str, start: int) -> int:
    """Return where the bracket expression that begins at `start` ends; raises UsageError."""
    at = start + 1
    at += text.startswith("^", at)
    at += text.startswith("]", at)
    while at < len(text) and text[at] != "]":
        closing = text.find(":]", at + 2) if text.startswith("[:", at) else -1
        at = closing + 2 if closing >= 0 else at + 1
    if at >= len(text):
        raise UsageError(f"{text!r} is not a regular expression: a '[' without its ']'")
    return at


def _bracket(inside: str) -> str:
    negated = inside.startswith("^")
    body = inside[negated:]

    def replaced(match: re.Match[str]) -> str:
        if match[1]:
            if match[1] not in _CLASSES:
                raise UsageError(f"[:{match[1]}:] is not a class of characters")
            return _CLASSES[match[1]]
        return f"\\{match[0]}"

    return f"[{'^' if negated else ''}{_IN_BRACKETS.sub(replaced, body)}]"
