"""Every exception imgfs raises on purpose.

    ImgfsError                 one line for a person: what, where, what to do
    ├── UsageError             the command line or an option is wrong (exit code 2)
    ├── RegistryError          the registry said no, or nothing    .status .code .url
    │   ├── Unauthorized       401, 403: credentials missing or refused
    │   ├── NotFound           404: no such repository, tag, manifest or blob
    │   └── Unavailable        no answer, 429, 5xx, cut bodies, past the deadline
    ├── InvalidImage           the image breaks its specification    .where
    ├── IntegrityError         bytes that do not match their digest  .what .expected .actual
    ├── StoreError             the cache directory cannot be read or written
    ├── LimitReached           no further thread or process can be started
    └── MountError             the kernel or the mount point refuses

`tree` and `overlay` raise `OSError` instead, with the errno that the caller of a system call should see.
`fuse.errors` alone turns an ImgfsError into an errno.
"""

from __future__ import annotations

import errno


class ImgfsError(Exception):
    """The root of everything imgfs raises on purpose; `str()` is one line for a person."""


class UsageError(ImgfsError):
    """A command line, reference or option that cannot be understood."""


class RegistryError(ImgfsError):
    """A registry's refusal or silence. `url` carries no credentials and no query."""

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.url = url


class Unauthorized(RegistryError):
    """401 or 403: there are no credentials, or they were refused."""


class NotFound(RegistryError):
    """404: the registry does not have that repository, tag, manifest or blob."""


class Unavailable(RegistryError):
    """No usable answer within the time allowed: worth trying again later."""


class InvalidImage(ImgfsError):
    """An image that breaks its specification; `where` names layer and offset, or a JSON path."""

    def __init__(self, message: str, *, where: str | None = None) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where

    def at(self, path: object) -> InvalidImage:
        """Return the error with the file that it was found in before it, unless that stands there already."""
        return self if self.where == str(path) else InvalidImage(str(self), where=str(path))


class IntegrityError(ImgfsError):
    """Bytes that do not match the digest or length promised for them."""

    def __init__(self, what: str, *, expected: object, actual: object) -> None:
        super().__init__(f"{what}: expected {expected}, got {actual}")
        self.what = what
        self.expected = expected
        self.actual = actual


class StoreError(ImgfsError):
    """The cache directory cannot be read or written."""


class LimitReached(ImgfsError):
    """The system starts no further thread or process for this user: a limit, or no memory."""

    def __init__(self, message: str = "no further thread can be started: a limit of the system") -> None:
        super().__init__(message)


class MountError(ImgfsError):
    """The kernel, fusermount3 or the mount point does not allow the mount."""


def is_full(error: OSError) -> bool:
    """Return True if a disk has no room for what was to be written, or its user's quota has none."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def describe(error: BaseException) -> str:
    """Return an exception's text for a person: of an OSError the reason, without Python's "[Errno 2]".

    The caller names the file, so the one that the OSError has is left out.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or "an error without a description"
