"""imgfs sha256: show digests of files of an image, as sha256sum does."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable

from imgfs.cli.options import Commands
from imgfs.cli.output import say_line
from imgfs.cli.paths import NamedFiles, add_look, open_files, take_paths
from imgfs.errors import InvalidImage


def add_sha256(commands: Commands) -> None:
    """`imgfs sha256`."""
    command = add_look(
        commands,
        "sha256",
        sha256,
        "show digests of files of an image",
        """\
Shows the SHA-256 of files of IMAGE, in the form of sha256sum(1).

Examples:
  imgfs sha256 debian:12 /bin/bash
  imgfs sha256 -r debian:12 /etc
""",
        paths="*",
    )
    command.add_argument("-r", dest="recursive", action="store_true", help="of all files below, too")


def sha256(options: argparse.Namespace) -> int:
    """Show digests of files."""
    paths = take_paths(options, required=True)
    with open_files(options) as files:
        named = NamedFiles(files)
        for top in named.of(paths, follow=True):
            if not top.is_regular and not options.recursive:
                named.refuse(top)
                continue
            for found in files.below(top):
                if found.is_regular:
                    try:
                        digest = _digest(files.whole(found))
                    except InvalidImage as error:
                        named.refuse(found, str(error))
                    else:
                        say_line(_line(digest, found.path))
    return named.code


def _digest(pieces: Iterable[bytes]) -> str:
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def _line(digest: str, path: bytes) -> bytes:
    r"""Return a line that `sha256sum -c` reads: a name with `\` or an end of line is escaped, and marked."""
    escaped = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != path else b"") + digest.encode() + b"  " + escaped
