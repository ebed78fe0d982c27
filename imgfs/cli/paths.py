"""Commands that look into an image: IMAGE:PATH and IMAGE PATH, and a file for a program (JSON).

The fields of a file in JSON, the same for every command: path (and path_base64 if it is not UTF-8), kind,
mode (octal text), uid, gid, size, mtime (seconds since the epoch, with a fraction), nlink, ino, layer (from
1), and target of a symlink, device of a device, xattrs (by name; values in base64).
"""

from __future__ import annotations

import argparse
import base64
import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from imgfs.cli.options import Commands, Run, add_command, image_options
from imgfs.cli.output import complain, words_of
from imgfs.errors import UsageError
from imgfs.oci.reference import ENGINES, FILE_TRANSPORTS

if TYPE_CHECKING:
    from imgfs.image.files import Found, ImageFiles

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_TRANSPORTS = {"oci", "docker", *FILE_TRANSPORTS, *ENGINES}
PATHS = "may have the signs *, ? and [ of a shell; IMAGE:PATH is the same as IMAGE PATH"


def add_look(
    commands: Commands,
    name: str,
    run: Run,
    summary: str,
    description: str,
    *,
    paths: str = "*",
    own_h: bool = False,
) -> argparse.ArgumentParser:
    """Add a command about paths of an image."""
    command = add_command(commands, name, run, summary, description, own_h=own_h)
    image_options(command)
    command.add_argument("paths", metavar="PATH", nargs=paths, default=[], help=PATHS)
    return command


def split_image(text: str) -> tuple[str, str | None]:
    """Split IMAGE:PATH where the path begins, at the first `:/` that is not a transport's."""
    for found in re.finditer(":/", text):
        image, path = text[: found.start()], text[found.start() + 1 :]
        if image and image not in _TRANSPORTS and not path.startswith("//"):  # else it is a URL
            return image, path
    return text, None


def take_paths(options: argparse.Namespace, *, required: bool = False) -> list[bytes]:
    """Return the paths that are meant, the root if none is; what is behind the image's name becomes one.

    Raises UsageError if none is, and one is `required`.
    """
    options.image, path = split_image(options.image)
    given = options.paths if isinstance(options.paths, list) else [options.paths]
    words = [*([path] if path is not None else []), *filter(None, given)]
    if required and not words:
        raise UsageError(f"{options.image}: say which file: IMAGE PATH, or IMAGE:PATH")
    return [os.fsencode(word) for word in words] or [b"/"]


@contextmanager
def open_files(options: argparse.Namespace) -> Iterator[ImageFiles]:
    """Open the files of the image that is meant."""
    from imgfs.cli.selection import select_image
    from imgfs.image.files import ImageFiles

    with select_image(options).open() as image:
        yield ImageFiles(image)


class NamedFiles:
    """The files that paths of an image name.

    What is wrong with one path is told, and the others are worked on, as cat(1) does it. `code` is
    the command's exit code then: `failure` once something was wrong.
    """

    def __init__(self, files: ImageFiles, failure: int = 1) -> None:
        self.code = 0
        self.files = files
        self._failure = failure

    def at(self, path: bytes, *, follow: bool = False, is_hidden: bool = False) -> list[Found]:
        """Return the files that a path names, none if it leads nowhere.

        That is told, unless a file that was there `is_hidden` by a layer, and is not missed.
        """
        try:
            return self.files.matching(path, follow=follow)
        except OSError as error:
            if not (is_hidden and isinstance(error, FileNotFoundError)):
                complain(words_of(error))
                self.code = self._failure
            return []

    def of(self, paths: list[bytes], *, follow: bool = False) -> Iterator[Found]:
        """Yield the files that some paths name."""
        for path in paths:
            yield from self.at(path, follow=follow)

    def refuse(self, found: Found, reason: str = "") -> None:
        """Tell that something is no file that can be read."""
        number = errno.EISDIR if found.is_directory else errno.EINVAL
        complain(f"{os.fsdecode(found.path)}: {reason or os.strerror(number)}")
        self.code = self._failure


def file_fields(files: ImageFiles, found: Found) -> dict[str, object]:
    """Return a file for JSON."""
    node = found.node
    fields = {
        **named(found.path),
        "kind": KINDS[stat.S_IFMT(node.mode)],
        "mode": f"{stat.S_IMODE(node.mode):04o}",
        "uid": node.uid,
        "gid": node.gid,
        "size": node.size,
        "mtime": node.mtime_ns / 1e9,
        "nlink": node.nlink,
        "ino": node.ino,
        "layer": files.layer(found),
    }
    if (target := files.target(found)) is not None:
        fields["target"] = target.decode(errors="replace")
    if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
        fields["device"] = f"{os.major(node.device)}:{os.minor(node.device)}"
    xattrs = files.xattrs(found)
    if xattrs:
        fields["xattrs"] = {
            name.decode(errors="replace"): base64.b64encode(value).decode() for name, value in xattrs.items()
        }
    return fields


def named(path: bytes) -> dict[str, str]:
    """Return a path for JSON; one that is not UTF-8 also in base64."""
    try:
        return {"path": path.decode()}
    except UnicodeDecodeError:
        return {"path": path.decode(errors="replace"), "path_base64": base64.b64encode(path).decode()}
