"""The Python interface: `imgfs.open` and what it returns. `imgfs help python` is its manual.

image       an opened image, as `os` and `pathlib` would show its files
entries     what it says of a file, a layer, and a name in a directory
reading     a file of it that is read, as a binary file object
filesystem  the same for fsspec, by URLs that begin with `imgfs://`

Images are selected as the command line does it (`cli.selection`), but nothing is printed: warnings go to the
logger `imgfs`.
"""

from __future__ import annotations

import io
import logging
import os
from contextlib import ExitStack
from dataclasses import replace
from typing import Literal, NoReturn

from imgfs.api.entries import DirectoryEntry, FileStat, ImageLayer
from imgfs.api.image import Image
from imgfs.cli.options import image_options
from imgfs.cli.parser import Parser, apply_config_files
from imgfs.cli.progress import Progress
from imgfs.cli.selection import select_image
from imgfs.errors import UsageError
from imgfs.image.versions import Step, steps_of

__all__ = ["DirectoryEntry", "FileStat", "Image", "ImageLayer", "Step", "open", "open_image"]

StrPath = str | os.PathLike[str]


class LoggedProgress(Progress):
    """Progress that is not shown; warnings are logged."""

    def __init__(self) -> None:
        super().__init__(io.StringIO(), quiet=True)

    def warns(self, text: str) -> None:
        """Log what was not as it should be."""
        logging.getLogger("imgfs").warning("%s", text)

    def notes(self, text: str) -> None:
        """Log what a caller may want to know."""
        logging.getLogger("imgfs").info("%s", text)


class _OptionsParser(Parser):
    """Reads the options as the command line does, and raises what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message)


def open_image(
    image: str,
    *,
    platform: str | None = None,
    index: Literal["auto", "any", "verified", "none"] | None = None,
    offline: bool | None = None,
    store: StrPath | None = None,
    plain_http: bool | None = None,
    tls_ca: StrPath | None = None,
    insecure: bool | None = None,
    read_timeout: float | None = None,
) -> Image:
    """Open an image, to look at and read its files; close it, or use it in a `with` statement.

    `image` is what the command line takes: a name, or `oci:DIR[:TAG]`, `docker-archive:FILE`, … The keywords
    are the options of the same names; what is None is as the configuration files say, for all commands or the
    registry. A layer that has no index is streamed once before this returns; later nothing is fetched but the
    bytes of files that are read. Raises ImgfsError.
    """
    given = {
        "platform": platform,
        "index": index,
        "offline": offline,
        "store": None if store is None else os.fspath(store),
        "plain-http": plain_http,
        "tls-ca": None if tls_ca is None else os.fspath(tls_ca),
        "insecure": insecure,
        "read-timeout": read_timeout,
    }
    parser = _OptionsParser(prog="imgfs.open", add_help=False)
    image_options(parser)
    apply_config_files(parser)
    words = [_word(name, value) for name, value in given.items() if value is not None]
    options = parser.parse_args([*words, "--", image])
    with ExitStack() as stack:
        opened = stack.enter_context(replace(select_image(options), progress=LoggedProgress).open())
        return Image(opened, steps_of(opened.resolved), stack.pop_all())


def _word(name: str, value: object) -> str:
    """Return a keyword's value as the command line has it."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


open = open_image  # noqa: A001 (as gzip.open)
