"""Results that a command writes to a file: complete, or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from imgfs.owned.writing import new_file, os_errors, sweep

_ASIDE = ".imgfs-output-"  # a file of results that is not complete


@contextmanager
def output_file(name: str) -> Iterator[BinaryIO]:
    """Open what `-o FILE` names: standard output for `-`. A file is replaced once the block has succeeded.

    A device or a pipe, /dev/stdout as well, is written to. Raises ImgfsError.
    """
    if name == "-":
        yield sys.stdout.buffer
        return
    with os_errors(name), _opened(name) as file:
        yield file


def is_stream(name: str) -> bool:
    """Return True for what is written to and never replaced: a device, a pipe, an open file (/dev/stdout)."""
    if not os.path.exists(name) or os.path.isdir(name):
        return False
    is_open_file = os.path.islink(name) and name.startswith(("/dev/", "/proc/"))
    return is_open_file or not os.path.isfile(name)


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    path = Path(name).resolve()
    if is_stream(name):
        with open(name, "wb") as file:
            yield file
        return
    sweep(path.parent, _ASIDE, Path.unlink)
    held = new_file(path.parent, _ASIDE)
    try:
        with open(held.fd, "wb", closefd=False) as file:
            yield file
        held.put_in_place(path)
    except BaseException:
        held.path.unlink(missing_ok=True)
        held.release()
        raise
