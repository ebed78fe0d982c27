"""The process that serves a mount in the place of a killed daemon, or of one that hands over (`holder`)."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import closing, suppress
from typing import NoReturn

from imgfs import __version__
from imgfs.daemonize import log_to_stderr
from imgfs.errors import ImgfsError, MountError, describe
from imgfs.mount.daemon import serve
from imgfs.mount.holder_protocol import HEIR, PROTOCOL, REFUSES, WOKEN
from imgfs.mount.resume import HolderPipes, Succession, Takeover, connector, load_state

log = logging.getLogger("imgfs.mount")


def main() -> NoReturn:
    """Serve what the holder hands on, until it is unmounted."""
    protocol, *numbers, role = sys.argv[2:]
    descriptor, memory, control, told, restarts = map(int, numbers[:5])
    code = 1
    try:
        for number in (descriptor, memory, control, told):
            os.set_inheritable(number, False)
        os.set_blocking(control, False)
        log_to_stderr("INFO")
        _check(protocol)
        state = load_state(os.pread(memory, os.fstat(memory).st_size, 0))
        os.close(memory)
        for number in state.kept:
            os.set_inheritable(number, False)
        log_to_stderr(state.options.log_level)
        is_heir = role == HEIR
        pipes, takeover = HolderPipes(control, told), Takeover(descriptor, is_heir=is_heir)
        succession = Succession(state, pipes, takeover, restarts, has_turn=not is_heir)
        _say_who_serves(succession, is_woken=role == WOKEN)
        serve(state, lambda: None, succession)
        code = 0
    except ImgfsError as error:
        log.error("%s", error)  # noqa: TRY400  (a line for a person)
        _refuse(control, str(error))
    except BaseException as error:
        log.exception("the daemon ends")
        _refuse(control, f"an error that imgfs did not expect: {describe(error)}; see the log")
    finally:
        logging.shutdown()
        os._exit(code)


def _check(protocol: str) -> None:
    if protocol != PROTOCOL:
        raise MountError(f"imgfs {__version__} does not understand the holder: it is of another version")


def _say_who_serves(succession: Succession, *, is_woken: bool) -> None:
    mountpoint = succession.state.options.mountpoint
    if succession.is_heir:
        with closing(connector(succession.state.connect)()):  # asks for nothing; is it one of this version?
            pass
        log.info("to take over %s: imgfs %s of %s", mountpoint, __version__, sys.argv[1])
    elif is_woken:
        log.info("asked for again: %s", mountpoint)
    else:
        log.warning("restart %d of the daemon of %s", succession.restarts, mountpoint)


def _refuse(control: int, reason: str) -> None:
    with suppress(OSError):
        os.write(control, REFUSES + reason.encode(errors="replace"))
