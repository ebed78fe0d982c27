"""The one place where an exception becomes an errno."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import OrderedDict

from imgfs.errors import ImgfsError

log = logging.getLogger(__name__)

_QUIET = 60.0  # seconds for which the same trouble is not logged again
_REMEMBERED = 256


class FUSEError(OSError):
    """What a request is refused with, by an errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number, os.strerror(number))


def errno_of(error: Exception, request: object) -> int:
    """Return what the kernel is told of an exception that a request met.

    OSError keeps its errno: it is what the tree says. ImgfsError is EIO, logged. Anything else is a bug: EIO,
    logged with its traceback.
    """
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if isinstance(error, ImgfsError):
        _log_once(str(error))
    else:
        log.error("%s", request, exc_info=error)
    return errno.EIO


_logged: OrderedDict[str, float] = OrderedDict()


def _log_once(message: str) -> None:
    """Log `message`, but not again and again while every reader meets the same trouble."""
    now = time.monotonic()
    if now - _logged.get(message, -_QUIET) >= _QUIET:
        _logged[message] = now
        log.error("EIO: %s", message)
    while len(_logged) > _REMEMBERED:
        _logged.popitem(last=False)
