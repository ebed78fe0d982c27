"""imgfs version."""

from __future__ import annotations

import argparse
import os
import sys

from imgfs import __version__
from imgfs.cli.options import Commands, add_command
from imgfs.cli.output import say


def add_version(commands: Commands) -> None:
    """`imgfs version`."""
    add_command(
        commands,
        "version",
        version,
        "show imgfs's version and the machine's FUSE",
        "Examples:\n  imgfs version\n",
    )


def version(options: argparse.Namespace) -> int:
    """Show imgfs's version, and those of Python, pyfuse3 and Linux."""
    del options
    import pyfuse3

    python = ".".join(map(str, sys.version_info[:3]))
    say(f"imgfs {__version__} (Python {python}, pyfuse3 {pyfuse3.__version__}, Linux {os.uname().release})")
    return 0
