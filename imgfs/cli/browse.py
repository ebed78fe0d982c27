"""imgfs browse: look around in an image on the terminal."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import threading
import time
from contextlib import ExitStack

from imgfs.cli.options import Commands, add_command, image_options
from imgfs.cli.output import draws_on
from imgfs.cli.paths import split_image
from imgfs.errors import ImgfsError, UsageError
from imgfs.starting import try_thread

_ENDS = 1.0  # seconds that requests under way may take when the browser is left
_MISSING = "browse needs Textual, which is not installed: pip install 'imgfs[browse]'"


def add_browse(commands: Commands) -> None:
    """`imgfs browse`."""
    command = add_command(
        commands,
        "browse",
        browse,
        "browse an image, or how two images differ, on the terminal",
        """\
Shows the files of IMAGE as a tree to walk in, with what is said of each and how it begins; with OTHER, what
differs in the two: A added, C changed, D deleted. IMAGE:PATH begins at that path. Keys: / searches names, l
shows what one layer does, v the versions of a file, s saves it, ? tells of the others, q quits. Directories
are read when they are opened, and a file's first 64 kB are fetched when the cursor rests on it.

It needs Textual: pip install 'imgfs[browse]'

Examples:
  imgfs browse debian:12
  imgfs browse debian:12:/etc
  imgfs browse app:v1 app:v2
""",
    )
    image_options(command)
    command.add_argument("other", metavar="OTHER", nargs="?", help="a second image, to compare it with")


def browse(options: argparse.Namespace) -> int:
    """Show the browser until its user leaves it."""
    if not (sys.stdin.isatty() and sys.stdout.isatty() and draws_on(sys.stderr)):  # Textual draws there
        raise UsageError("browse needs a terminal (see: imgfs tree, imgfs ls)")
    try:
        importlib.import_module("textual")
    except ImportError as error:
        raise ImgfsError(_MISSING) from error
    from imgfs.cli.browser.app import Browser
    from imgfs.cli.browser.opened import open_image

    options.image, start = split_image(options.image)
    with ExitStack() as stack:
        names = [options.image, *([options.other] if options.other else [])]
        each = [argparse.Namespace(**{**vars(options), "image": name}) for name in names]
        images = [stack.enter_context(open_image(one)) for one in each]
        browser = Browser(images, start=os.fsencode(start) if start else b"")
        browser.run()
        browser.end()
        _close(stack.pop_all(), browser.return_code or 0)
    return browser.return_code or 0


def _close(images: ExitStack, code: int) -> None:
    """Close the images, and end at once if that takes long: a dead registry must not hold up the end."""
    try_thread(images.close, "browse close")
    ends = time.monotonic() + _ENDS
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(max(0.0, ends - time.monotonic()))
            if thread.is_alive():
                sys.stdout.flush()
                os._exit(code)
