"""Print: results on standard output, the rest on standard error. Only this module prints.

Images and registries supply part of the text. Control characters never reach a terminal
(`imgfs.quoting`); in a pipe results are bytes as they are, as ls(1) does it; messages on standard error are
always quoted, a line each.
"""

from __future__ import annotations

import codecs
import io
import logging
import sys

from imgfs.quoting import LineFormatter, printable, printable_path


def prepare_output() -> None:
    """Have standard output take every text that stands for bytes, and the library's warnings be lines."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")
    if logging.lastResort:
        logging.lastResort.setFormatter(LineFormatter())


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


def ask(text: str) -> None:
    """Ask for something to be typed."""
    print(printable(text), end="", file=sys.stderr, flush=True)
