"""The one place where an exception becomes an errno.

pyfuse3 catches `FUSEError` only; any other exception would end its main loop, and the mount with it.
"""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import pyfuse3

from imgfs.errors import ImgfsError

log = logging.getLogger(__name__)

_UNHEARD = "fuse_reply_* failed with No such file or directory"  # ENOENT: the kernel has given the request up


def _is_news(record: logging.LogRecord) -> bool:
    """Not that nobody has heard an answer: who reads ahead, or has been killed, does not wait for it."""
    return not record.getMessage().endswith(_UNHEARD)


logging.getLogger("pyfuse3").addFilter(_is_news)

Arguments = ParamSpec("Arguments")
Reply = TypeVar("Reply")

_QUIET = 60.0  # seconds for which the same trouble is not logged again
_REMEMBERED = 256


def answers(
    handler: Callable[Arguments, Coroutine[Any, Any, Reply]],
) -> Callable[Arguments, Coroutine[Any, Any, Reply]]:
    """Make `handler` raise nothing but FUSEError.

    OSError keeps its errno: it is what the tree says. ImgfsError is EIO, logged. Anything else is a bug: EIO,
    logged with its traceback.
    """

    @functools.wraps(handler)
    async def answer(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Reply:
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        except ImgfsError as error:
            _log_once(str(error))
            raise pyfuse3.FUSEError(errno.EIO) from error
        except Exception as error:
            log.exception("%s%r", handler.__name__, args[1:])
            raise pyfuse3.FUSEError(errno.EIO) from error

    return answer


_logged: OrderedDict[str, float] = OrderedDict()


def _log_once(message: str) -> None:
    """Log `message`, but not again and again while every reader meets the same trouble."""
    now = time.monotonic()
    if now - _logged.get(message, -_QUIET) >= _QUIET:
        _logged[message] = now
        log.error("EIO: %s", message)
    while len(_logged) > _REMEMBERED:
        _logged.popitem(last=False)
