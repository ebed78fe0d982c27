"""The process that serves a mount whose daemon was killed; `holder` starts it."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from typing import NoReturn

from imgfs.daemonize import log_to_stderr
from imgfs.errors import ImgfsError
from imgfs.mount.daemon import serve
from imgfs.mount.resume import MountState, Succession

log = logging.getLogger("imgfs.mount")


def main() -> NoReturn:
    """Serve what the holder hands on, until it is unmounted."""
    descriptor, memory, control, restarts = map(int, sys.argv[2:6])
    code = 1
    try:
        for number in (descriptor, memory, control):
            os.set_inheritable(number, False)
        os.set_blocking(control, False)
        state: MountState = pickle.loads(os.pread(memory, os.fstat(memory).st_size, 0))
        os.close(memory)
        log_to_stderr(state.options.log_level)
        log.warning("restart %d of the daemon of %s", restarts, state.options.mountpoint)
        serve(state, lambda: None, Succession(state, descriptor, control, restarts))
        code = 0
    except ImgfsError as error:
        log.error("%s", error)  # noqa: TRY400  (a line for a person)
    except BaseException:
        log.exception("the daemon ends")
    finally:
        logging.shutdown()
        os._exit(code)
