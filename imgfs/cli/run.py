"""imgfs run: a container of an image that need not be pulled.

This is the parent's part: it passes signals on and waits. Its child, and the daemon that the child forks,
import their modules in parallel: so they are started before anything else is imported, the parser of the
command line included.
"""

from __future__ import annotations

import contextlib
import os
import termios
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from imgfs.cli.output import complain as say_failure
from imgfs.errors import ImgfsError, MountError
from imgfs.runtime.namespace import NamespacedChild
from imgfs.runtime.signals import SignalRelay

if TYPE_CHECKING:
    from imgfs.runtime.ids import IdMaps

OUR_FAULT, INTERRUPTED = 125, 130  # podman's exit code for its own failures, and the shell's for SIGINT


def run(words: Sequence[str]) -> int:
    """Run `imgfs WORDS…`, of which the first is `run`; the exit code of the container's command."""
    maps = _id_maps() if os.geteuid() else None
    child = NamespacedChild.fork(lambda enter: _inside(enter, words, maps), maps)
    try:
        with _terminal_as_it_was(), SignalRelay() as relay:
            return child.wait(relay)
    except ImgfsError as error:
        return complain(error)


def _id_maps() -> IdMaps:
    from imgfs.runtime.ids import id_maps  # here: root needs none

    return id_maps()


def _inside(enter: Callable[[], None], words: Sequence[str], maps: IdMaps | None) -> int:
    """Run the child's part, in its own mount namespace; it prints its errors itself."""
    try:
        return _run(enter, words, maps)
    except ImgfsError as error:
        return complain(error)
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror}" if error.filename else error)
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED


def _run(enter: Callable[[], None], words: Sequence[str], maps: IdMaps | None) -> int:
    from imgfs.config import Environment

    environment, refused = Environment.read(), None  # in the user namespace, the user is root
    try:
        enter()
    except MountError as error:
        refused = error  # raised once the command line is known to be right
    from imgfs.mount.daemon import Mounting

    with Mounting.fork() as mounting:
        from imgfs.cli.container import run_container, start_of
        from imgfs.cli.parser import parse

        start = start_of(parse(words), maps, environment)
        if refused:
            raise refused
        return run_container(start, mounting)


@contextlib.contextmanager
def _terminal_as_it_was() -> Iterator[None]:
    """Restore the terminal's settings: a runtime that is killed leaves it raw."""
    try:
        before = termios.tcgetattr(0)
    except (termios.error, OSError):
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def warn(text: str) -> None:
    """Print a warning."""
    say_failure(f"warning: {text}")


def complain(error: object) -> int:
    """Print an error; return its exit code."""
    say_failure(error)
    return OUR_FAULT
