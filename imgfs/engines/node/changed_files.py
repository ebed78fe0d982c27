"""Files of the machine that are changed for imgfs, and changed back; how one was first is kept beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from imgfs.errors import StoreError, UsageError, describe
from imgfs.owned.writing import os_errors
from imgfs.store.atomic import atomic_write

_BACKUP = ".before-imgfs"
_MODE = 0o644


@dataclass(frozen=True, slots=True)
class FileChange:
    """What becomes of a file: `before` and `after` are its text, None without the file.

    A new file gets the owner and the mode of the file `like`, if that is there.
    """

    path: Path
    before: str | None
    after: str | None
    like: Path | None = None

    @property
    def is_backup(self) -> bool:
        """Return True if it is the first state of another file."""
        return self.path.name.endswith(_BACKUP)

    @property
    def is_change(self) -> bool:
        """Return True if anything has to be done."""
        return self.before != self.after

    def apply(self) -> None:
        """Write the file, or remove it. Raises StoreError."""
        path = Path(os.path.realpath(self.path))
        with os_errors(path):
            if self.after is None:
                path.unlink(missing_ok=True)
                return
            found = next((one.stat() for one in (path, self.like) if one and one.exists()), None)
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with atomic_write(path) as aside, os_errors(path):
            aside.write_bytes(self.after.encode())
            aside.chmod(found.st_mode & 0o7777 if found else _MODE)
            if found:
                os.chown(aside, found.st_uid, found.st_gid)


def backup_of(path: Path) -> Path:
    """Return where the first state of a file is kept."""
    return path.with_name(f"{path.name}{_BACKUP}")


def text_of(path: Path) -> str | None:
    """Return a file's text, its line ends as they are; None if it is not there.

    Raises StoreError, UsageError.
    """
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8") from error
    except OSError as error:
        raise StoreError(f"{path}: {describe(error)}") from error
