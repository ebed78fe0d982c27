"""Print: results on standard output, the rest on standard error. Only this module prints.

Images and registries supply part of the text. Control characters never reach a terminal
(`imgfs.quoting`); in a pipe results are bytes as they are, as ls(1) does it; messages on standard error are
always quoted, a line each.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys

from imgfs.errors import describe
from imgfs.quoting import printable, printable_path

TYPE_CHECKING = False  # as that of `typing`, which takes long to load
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TextIO

    from imgfs.cli.format import Column


def prepare_output() -> None:
    """Have standard output take every text that stands for bytes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")


def prepare_logging() -> None:
    """Have what is logged be lines like those of `complain` and `warn`."""
    import logging  # here: commands that log nothing do without

    from imgfs.loglines import ComplaintFormatter

    if logging.lastResort:
        logging.lastResort.setFormatter(ComplaintFormatter())


def say(text: object, *, flush: bool = False) -> None:
    """Write lines of a result; the caller has quoted what could end a line."""
    lines = str(text)
    if sys.stdout.isatty():
        lines = "\n".join(map(printable, lines.split("\n")))
    print(lines, flush=flush)


def say_line(line: bytes) -> None:
    """Write a line with names in it, which are bytes."""
    if sys.stdout.isatty():
        line = printable_path(line).encode(sys.stdout.encoding, "backslashreplace")
    sys.stdout.buffer.write(line + b"\n")


def complain(text: object) -> None:
    """Say what failed, or what is not as it should be, in one line on standard error."""
    print(f"imgfs: {printable(str(text))}", file=sys.stderr, flush=True)


def warn(text: object) -> None:
    """Say what does not stop a command, in one line on standard error."""
    complain(f"warning: {text}")


def draws_on(stream: TextIO) -> bool:
    """Return True if a stream is a terminal that can be drawn on: $TERM is not `dumb`."""
    if not stream.isatty():
        return False
    from imgfs.variables import variables

    return variables().get("TERM") not in ("dumb", "unknown")


def say_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, aligned by spaces: no cell is cut or folded, even where the terminal is narrower."""
    lines = [[column.title for column in columns], *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        padded = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        )
        say("  ".join(padded).rstrip())


def words_of(error: OSError) -> str:
    """Return what an OSError says, with the file it is about, without Python's "[Errno 2]"."""
    if error.filename:
        return f"{os.fsdecode(error.filename)}: {describe(error)}"
    if error.errno == errno.ENOENT and not os.stat(".").st_nlink:
        return "the directory that this was started in has been removed"
    return describe(error)


def words_of_unicode(error: UnicodeError) -> str:
    """Return what a UnicodeError says: what is not UTF-8, never how Python decodes."""
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:200]!s}: not UTF-8, as names have to be here"
    if isinstance(error, UnicodeDecodeError):
        return f"{error.object[:200]!r}: not UTF-8"
    return str(error)


def ask(text: str) -> None:
    """Ask for something to be typed."""
    print(printable(text), end="", file=sys.stderr, flush=True)
