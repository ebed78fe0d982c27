"""How values of options are read that several commands, or several options, have."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator

from imgfs.errors import UsageError

_SIZE = re.compile(r"([0-9]{1,15})([bkmgt]?)", re.IGNORECASE)


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Have argparse say what is wrong with a value."""
    try:
        yield
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def scaled(text: str, units: str) -> float:
    """A number, perhaps with one of `units`, a beginning of `kmgt`, for powers of 1000; raises ValueError."""
    exponent = units.find(text[-1:].lower()) + 1 if text else 0
    return float(text[:-1] if exponent else text) * 1000.0**exponent


def memory(text: str) -> int:
    """Bytes: a number, with k, m or g for powers of 1024, as podman has it."""
    match = _SIZE.fullmatch(text)
    count = int(match[1]) * 1024 ** " kmgt".index(match[2].lower().replace("b", "") or " ") if match else 0
    if not 0 < count < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory, like 512m or 2g")
    return count


def in_image(text: str) -> str:
    """A path from the image's root."""
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with a slash")
    return text
