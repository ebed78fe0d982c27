"""One file of an image, or a directory with all that is in it, saved under a name that a person has chosen.

It is written beside that name first, so nothing is replaced before all of it is there, and nothing at all
unless that was asked for.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from imgfs.image.extract import Extraction
from imgfs.image.files import Found, ImageFiles

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
        Extraction(files, warns).write(found, directory, _NAME)
        made = directory / os.fsdecode(_NAME)
        if os.path.lexists(made):  # else it was a device that only root may make: the warning says so
            _place(made, target, is_directory=found.is_directory, replace=replace)
    finally:
        _remove(directory)


def _place(made: Path, target: Path, *, is_directory: bool, replace: bool) -> None:
    if is_directory:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "is there already", str(target))
        mode = made.lstat().st_mode
        made.chmod(0o700)  # rename(2): a directory whose parent changes has to be writable
        made.rename(target)
        target.chmod(stat.S_IMODE(mode))
    elif replace:
        made.replace(target)
    else:
        _link(made, target)


def _link(made: Path, target: Path) -> None:
    """Give the file its name, which must be free: link(2) never replaces, as rename(2) would."""
    try:
        os.link(made, target, follow_symlinks=False)
    except FileExistsError as error:
        raise FileExistsError(errno.EEXIST, "is there already", str(target)) from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "is there already", str(target)) from error
        made.rename(target)


def _remove(directory: Path) -> None:
    """Remove what was written, directories included that the image makes read-only."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        for top, names, _ in os.walk(directory):
            for path in (Path(top, name) for name in names):
                if not path.is_symlink():
                    path.chmod(0o700)
        shutil.rmtree(directory, ignore_errors=True)
