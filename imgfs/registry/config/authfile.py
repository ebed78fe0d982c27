"""The files in which docker and podman keep credentials (docker `config.json`; containers-auth.json(5)).

docker and podman write these files too: unknown fields are kept, and a change replaces the whole file, so
that no reader sees half of it. Processes of imgfs take turns with a lock; docker and podman do not, but
replace the whole file, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imgfs.errors import UsageError
from imgfs.owned.regular import NotRegular, open_regular

_MAX_FILE = 4 << 20
_TRIES = 4  # at a file that another program may be writing in place
_PAUSE = 0.05  # seconds between them


def read_auth_file(path: Path) -> dict[str, Any] | None:
    """Return the fields of the file, None if there is none; raises UsageError unless it is a JSON object."""
    for left in range(_TRIES - 1, -1, -1):
        try:
            body = _content(path)
            return None if body is None else _parse(body, path)
        except UsageError:
            if not left:
                raise
            time.sleep(_PAUSE)
    raise AssertionError("unreachable")


def change_auth_file(path: Path, change: Callable[[dict[str, Any]], bool]) -> bool:
    """Let `change` edit the fields of the file, {} if there is none; write it, and return True, if it did.

    Only its owner may read the file from then on. A symbolic link stays, and what it leads to is replaced.
    Raises UsageError for a file that cannot be understood or written.
    """
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _turn(path.parent):
            body = _content(path)
            fields = _parse(body, path) if body and body.strip() else {}
            if not change(fields):
                return False
            _replace(path, json.dumps(fields, indent="\t").encode() + b"\n")  # as docker indents it
            return True
    except OSError as error:
        raise UsageError(f"{path}: cannot keep credentials: {error.strerror}") from error


def _content(path: Path) -> bytes | None:
    try:
        with open_regular(path) as file:
            return file.read(_MAX_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except NotRegular as error:
        raise UsageError(f"{path}: not a credentials file: {error.strerror}") from error
    except OSError as error:
        if _is_out_of_sight(path):
            return None
        raise UsageError(f"{path}: cannot read credentials: {error.strerror}") from error


def _is_out_of_sight(path: Path) -> bool:
    """Whether this user may not even know if the file is there: a namespace's root is not the machine's."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _parse(body: bytes, path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a credentials file: {error}") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{path}: not a credentials file: expected a JSON object")
    return fields


@contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, on the directory itself, so that no lock file is left behind."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _replace(path: Path, body: bytes) -> None:
    """Put `body` in the place of the file, in one step, with mode 0600 and the owner it has."""
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with open(fd, "wb") as file:
            file.write(body)
            with contextlib.suppress(FileNotFoundError, PermissionError):  # root may write a user's
                owner = path.stat()
                os.fchown(fd, owner.st_uid, owner.st_gid)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
