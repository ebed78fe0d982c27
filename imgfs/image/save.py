"""One file of an image, or a directory with all that is in it, saved under a name that a person has chosen.

It is written beside that name first, so nothing is replaced before all of it is there, and nothing at all
unless that was asked for.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from imgfs.image.extract import Extraction
from imgfs.image.files import Found, ImageFiles
from imgfs.overlay import fdtree
from imgfs.owned.opening import open_owned_directory

_NAME = b"saved"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)  # of file systems without hard links


def save(
    files: ImageFiles, found: Found, target: Path, warns: Callable[[str], None], *, replace: bool = False
) -> None:
    """Save a file as `target`; `warns` is told what cannot be kept (`extract`).

    Raises FileExistsError if something is there, but with `replace` for a file by a file; other OSErrors;
    InterruptedError if the files are given up meanwhile (`ImageFiles.until`).
    """
    directory = Path(tempfile.mkdtemp(prefix=".imgfs-", dir=target.parent))
    try:
        fd = open_owned_directory(directory)
        try:
            held = Path(f"/proc/self/fd/{fd}")  # it, even if another user has moved it away meanwhile
            Extraction(files, warns).write(found, held, _NAME)
            made = held / os.fsdecode(_NAME)
            if os.path.lexists(made):  # else it was a device that only root may make: the warning says so
                _place(made, target, is_directory=found.is_directory, replace=replace)
        finally:
            fdtree.remove(fd, _NAME, fdtree.spares(fd, b"removed-"))
            os.close(fd)
    finally:
        directory.rmdir()


def _place(made: Path, target: Path, *, is_directory: bool, replace: bool) -> None:
    if is_directory:
        _place_directory(made, target)
    elif replace:
        made.replace(target)
    else:
        _link(made, target)


def _place_directory(made: Path, target: Path) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "already exists", str(target))
    fd = os.open(made, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        itself, mode = f"/proc/self/fd/{fd}", os.fstat(fd).st_mode
        os.chmod(itself, 0o700)  # rename(2): a directory whose parent changes has to be writable
        made.rename(target)
        os.chmod(itself, stat.S_IMODE(mode))
    finally:
        os.close(fd)


def _link(made: Path, target: Path) -> None:
    """Give the file its name, which must be free: link(2) never replaces, as rename(2) would."""
    try:
        os.link(made, target, follow_symlinks=False)
    except FileExistsError as error:
        raise FileExistsError(errno.EEXIST, "already exists", str(target)) from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "already exists", str(target)) from error
        made.rename(target)
