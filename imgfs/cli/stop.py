"""imgfs stop, kill, wait, rm: the end of containers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from imgfs.cli.options import Commands, add_command, store_option
from imgfs.cli.output import complain, say
from imgfs.errors import ImgfsError, UsageError

if TYPE_CHECKING:
    from imgfs.runtime.container_record import StoredContainer

_FAILED, _MISSING, _RUNS = 125, 1, 2  # podman's exit codes; the last two are those of rm
_NAMES = "CONTAINER"


def add_stop(commands: Commands) -> None:
    """`imgfs stop`."""
    command = add_command(
        commands,
        "stop",
        stop,
        "stop containers by their stop signal",
        """\
Sends the stop signal (--stop-signal of imgfs run, else the image's, else TERM) to a container's first process
and, when it has not ended in time, KILL. Returns when the container has ended.

Examples:
  imgfs stop web
  imgfs stop -t 0 --all
""",
    )
    _time_option(command)
    _all_option(command)
    _names(command)


def add_kill(commands: Commands) -> None:
    """`imgfs kill`."""
    command = add_command(
        commands,
        "kill",
        kill,
        "send a signal to containers",
        """\
Sends a signal, KILL or another, to the first process of containers.

Examples:
  imgfs kill web
  imgfs kill -s HUP web
""",
    )
    command.add_argument("-s", "--signal", metavar="SIGNAL", default="KILL", help="its name or number")
    _all_option(command)
    _names(command)


def add_wait(commands: Commands) -> None:
    """`imgfs wait`."""
    command = add_command(
        commands,
        "wait",
        wait,
        "wait for the end of containers, and show their exit codes",
        """\
Waits until containers have ended, and writes the exit code of each in a line.

Examples:
  imgfs wait web
  imgfs stop web && imgfs wait web
""",
    )
    _names(command)


def add_rm(commands: Commands) -> None:
    """`imgfs rm`."""
    command = add_command(
        commands,
        "rm",
        rm,
        "remove containers",
        """\
Removes containers that were started with `imgfs run -d` and have ended: their logs and exit codes. What they
have changed has gone with their end already, unless it is in a scratch or a volume.

Examples:
  imgfs rm web
  imgfs rm -f --all
""",
    )
    command.add_argument("-f", "--force", action="store_true", help="stop those that run before")
    command.add_argument(
        "-i", "--ignore", action="store_true", help="a name that no container has is not an error"
    )
    command.add_argument(
        "-v",
        "--volumes",
        action="store_true",
        help="accepted: volumes without a name go when it ends",
    )
    _time_option(command)
    _all_option(command)
    _names(command)


def _time_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-t",
        "--time",
        metavar="SECONDS",
        type=_seconds,
        help="time to end after the stop signal, before KILL (default: --stop-timeout of imgfs run, 10)",
    )


def _seconds(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return int(text)


def _all_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("-a", "--all", action="store_true", help="all containers of the store")


def _names(command: argparse.ArgumentParser) -> None:
    store_option(command)
    command.add_argument(
        "containers",
        metavar=_NAMES,
        nargs="*",
        default=[],
        help="their names, ids, or the beginnings of their ids",
    )


def stop(options: argparse.Namespace) -> int:
    """Stop containers."""
    from imgfs.runtime.containers import stop_container

    return _for_each(options, lambda one: stop_container(one, options.time), running=True)


def kill(options: argparse.Namespace) -> int:
    """Send a signal to containers."""
    from imgfs.errors import MountError
    from imgfs.runtime.containers import send_signal
    from imgfs.runtime.signals import find_signal

    number = find_signal(options.signal)
    if number is None:
        raise UsageError(f"invalid signal: {options.signal}")

    def send(one: StoredContainer) -> None:
        if not one.is_running or not send_signal(one, number):
            raise MountError(f"can only kill running containers: {one.record.name} is {one.state}")

    return _for_each(options, send, running=True)


def wait(options: argparse.Namespace) -> int:
    """Wait for containers, and show their exit codes."""
    from imgfs.cli.options import open_store
    from imgfs.runtime.containers import find_container

    if not options.containers:
        raise UsageError("name the containers")
    root = open_store(options).root
    for container in [find_container(root, name) for name in options.containers]:
        say(container.wait(), flush=True)
    return 0


def rm(options: argparse.Namespace) -> int:
    """Remove containers."""
    from imgfs.cli.run import lent_ids
    from imgfs.runtime.containers import remove_container

    maps = lent_ids()

    def remove(one: StoredContainer) -> None:
        remove_container(one, maps, force=options.force, seconds=options.time)

    return _for_each(options, remove, ignored=options.ignore or options.force)


def _for_each(
    options: argparse.Namespace,
    work: Callable[[StoredContainer], None],
    *,
    running: bool = False,
    ignored: bool = False,
) -> int:
    """Do the work on each container, and show what it was called; what fails does not hold up the others."""
    from imgfs.runtime.containers import ContainerRuns, NoSuchContainer

    code = 0
    for called, find in _wanted(options, running=running):
        try:
            work(find())
            say(called, flush=True)
        except NoSuchContainer as error:
            if not ignored:
                complain(error)
                code = code or (_MISSING if work.__name__ == "remove" else _FAILED)
        except ContainerRuns as error:
            complain(error)
            code = code or _RUNS
        except ImgfsError as error:
            complain(error)
            code = _FAILED
    return code


def _wanted(
    options: argparse.Namespace, *, running: bool
) -> Iterator[tuple[str, Callable[[], StoredContainer]]]:
    """Yield what each container is called, and how it is found."""
    from functools import partial

    from imgfs.cli.options import open_store
    from imgfs.runtime.container_record import containers_in
    from imgfs.runtime.containers import find_container

    if bool(options.containers) == options.all:
        raise UsageError("name the containers, or --all")
    root = open_store(options).root
    if not options.all:
        for name in options.containers:
            yield name, partial(find_container, root, name)
        return
    for one in list(containers_in(root)):
        if not running or one.is_running:
            yield one.record.id, partial(_itself, one)


def _itself(container: StoredContainer) -> StoredContainer:
    return container
