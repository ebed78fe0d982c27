"""imgfs version."""

from __future__ import annotations

import os
import sys

from imgfs import __version__
from imgfs.cli.options import Commands, add_command
from imgfs.cli.output import say

TYPE_CHECKING = False  # as that of `typing`, which takes long to load
if TYPE_CHECKING:
    import argparse


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
    python = ".".join(map(str, sys.version_info[:3]))
    say(f"imgfs {__version__} (Python {python}, pyfuse3 {_pyfuse3()}, Linux {os.uname().release})")
    return 0


def _pyfuse3() -> str:
    """Return the version that pyfuse3's installation directory is named by; loading it takes far longer."""
    for directory in filter(os.path.isdir, sys.path):
        for name in os.listdir(directory):
            if name.startswith("pyfuse3-") and name.endswith("-info"):
                return name.split("-")[1].removesuffix(".dist").removesuffix(".egg")
    return "?"
