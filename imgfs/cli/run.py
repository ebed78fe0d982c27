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

from imgfs.cli.output import complain, say, words_of, words_of_unicode
from imgfs.errors import ImgfsError, MountError
from imgfs.runtime.namespace import NamespacedChild
from imgfs.runtime.signals import SignalRelay

if TYPE_CHECKING:
    from imgfs.cli.tag_question import TagQuestion
    from imgfs.runtime.host_facts import IdMaps

OUR_FAULT, INTERRUPTED = 125, 130  # podman's exit code for its own failures, and the shell's for SIGINT


def run(words: Sequence[str], *, has_loaded: bool = False) -> int:
    """Run `imgfs WORDS…`, of which the first is `run`; the exit code of the container's command.

    A process that `has_loaded` what commands take asks registries by itself.
    """
    maps = lent_ids()
    told, tell = os.pipe()
    child = NamespacedChild.fork(lambda enter: _inside(enter, words, maps, tell, has_loaded), maps)
    os.close(tell)
    try:
        with terminal_as_it_was(), SignalRelay() as relay:
            ended = child.wait(relay, told)
    except ImgfsError as error:
        return _fail(error)
    if isinstance(ended, int):
        return ended
    say(ended.decode())
    return 0


def lent_ids() -> IdMaps | None:
    """Return the ids of an ordinary user's user namespace; None for root."""
    if not os.geteuid():
        return None
    from imgfs.runtime.host_facts import id_maps  # here: root needs none

    return id_maps()


def _inside(
    enter: Callable[[], None], words: Sequence[str], maps: IdMaps | None, tell: int, has_loaded: bool
) -> int:
    """Run the child's part, in its own mount namespace; it prints its errors itself."""
    from imgfs.cli.tag_question import question_of

    try:
        with contextlib.nullcontext() if has_loaded else question_of(words) as question:
            return _run(enter, words, maps, tell, question)
    except ImgfsError as error:
        from imgfs.runtime.rootfs import Refused

        _fail(error)
        return error.code if isinstance(error, Refused) else OUR_FAULT
    except OSError as error:
        return _fail(words_of(error))
    except UnicodeError as error:  # words of the command line may be any bytes
        return _fail(words_of_unicode(error))
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED


def _run(
    enter: Callable[[], None],
    words: Sequence[str],
    maps: IdMaps | None,
    tell: int,
    question: TagQuestion | None,
) -> int:
    from imgfs.config import Environment

    environment, refused = Environment.read(), None  # in the user namespace, the user is root
    try:
        enter()
    except MountError as error:
        refused = error  # raised once the command line is known to be right
    from imgfs.mount.daemon import Mounting

    with Mounting.fork(writable=True, offline="--offline" in words) as mounting:  # a guess costs only time
        from imgfs.cli.container import run_container
        from imgfs.cli.container_request import start_of
        from imgfs.cli.plain_line import parse

        start = start_of(parse(words), maps, environment, tell)
        if refused:
            raise refused
        return run_container(start, mounting, question)


@contextlib.contextmanager
def terminal_as_it_was() -> Iterator[None]:
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


def _fail(error: object) -> int:
    complain(error)
    return OUR_FAULT
