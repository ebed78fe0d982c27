"""Results that a command writes to a file: complete, or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from imgfs.owned.opening import follow_own_links
from imgfs.owned.writing import new_file, os_errors, sweep

_ASIDE = ".imgfs-output-"  # a file of results that is not complete


@contextmanager
def output_file(name: str) -> Iterator[BinaryIO]:
    """Open what `-o FILE` names: standard output for `-`. A file is replaced once the block has succeeded.

    A device or a pipe, /dev/stdout as well, is written to. A link is followed if this user or root has made
    it: in /tmp another user's may be in the way, and lead anywhere. Raises ImgfsError.
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
    return _is_open_file(name) or not os.path.isfile(name)


def _is_open_file(name: str) -> bool:
    return os.path.islink(name) and name.startswith(("/dev/", "/proc/"))


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags if _is_open_file(path) else flags | os.O_NOFOLLOW, 0o666)


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    path = follow_own_links(Path(name))
    if is_stream(name):
        with open(name if _is_open_file(name) else path, "wb", opener=_open_no_link) as file:
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
