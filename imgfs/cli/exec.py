"""imgfs exec: run a command in a container that runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from imgfs.cli.options import Commands, add_command, in_image, store_option
from imgfs.cli.output import complain, say
from imgfs.errors import ImgfsError

if TYPE_CHECKING:
    from imgfs.runtime.container_record import StoredContainer
    from imgfs.runtime.exec_process import ExecRequest

_FAILED, _NOT_RUNNING = 125, 255  # podman's


def add_exec(commands: Commands) -> None:
    """`imgfs exec`."""
    command = add_command(
        commands,
        "exec",
        run,
        "run a command in a container that runs",
        """\
Runs CMD in a container beside its first process, confined as that is. The exit code is the command's; 125 if
imgfs or the runtime failed, 126 if the command cannot be executed, 127 if it is not found, 255 if the
container does not run.

Examples:
  imgfs exec web cat /etc/hosts
  imgfs exec -it -u www-data -w /srv web sh
  imgfs exec -d -e LEVEL=debug web /srv/reload
""",
    )
    command.usage = "imgfs exec [OPTIONS] CONTAINER CMD…"
    add = command.add_argument
    add("-i", "--interactive", action="store_true", help="pass standard input on (otherwise it is empty)")
    add("-t", "--tty", action="store_true", help="give it a terminal")
    add("-d", "--detach", action="store_true", help="do not wait for its end; it has no input and no output")
    add("-e", "--env", metavar="K[=V]", action="append", default=[], help="set a variable")
    add("--env-file", metavar="FILE", action="append", default=[], help="set variables from a file")
    add("-u", "--user", metavar="USER[:GROUP]", help="run as this user (default: the container's)")
    add(
        "-w",
        "--workdir",
        metavar="DIR",
        type=in_image,
        help="its working directory",
    )
    store_option(command)
    add("container", metavar="CONTAINER", help="its name, id, or the beginning of its id")
    add("command", metavar="CMD", nargs=argparse.REMAINDER, help="the command")


def run(options: argparse.Namespace) -> int:
    """Run a command in a container; its exit code."""
    import os

    from imgfs.cli.container_request import variables_of
    from imgfs.cli.options import open_store
    from imgfs.errors import UsageError
    from imgfs.runtime.containers import find_container
    from imgfs.runtime.exec_process import ExecRequest

    if not options.command:
        raise UsageError("say the command to run after the container")
    if options.tty and not options.detach and not os.isatty(0):
        raise UsageError("-t: standard input is not a terminal")
    container = find_container(open_store(options).root, options.container)
    if not container.is_running:
        complain(f"{container.record.name} does not run (it is {container.state}): nothing can be run in it")
        return _NOT_RUNNING
    request = ExecRequest(
        command=tuple(options.command),
        env={**({"TERM": "xterm"} if options.tty else {}), **variables_of(options)},
        user=options.user,
        workdir=options.workdir,
        terminal=options.tty and not options.detach,
        interactive=options.interactive,
        detach=options.detach,
    )
    return _run(container, request)


def _run(container: StoredContainer, request: ExecRequest) -> int:
    from imgfs.cli.run import terminal_as_it_was
    from imgfs.runtime.names import new_id
    from imgfs.runtime.namespace import JoinedChild
    from imgfs.runtime.signals import SignalRelay

    child = JoinedChild.fork(lambda: _inside(container, request))
    with terminal_as_it_was(), SignalRelay() as relay:
        code = child.wait(relay)
    if request.detach and code == 0:
        say(new_id())  # podman's, of a session; the process has no other name here
    return code


def _inside(container: StoredContainer, request: ExecRequest) -> int:
    """Run the child's part, in the namespaces of the container's monitor; it prints its errors itself."""
    from imgfs.runtime.exec_process import check_exec, exec_process, join, look_up, root_of, run_exec
    from imgfs.runtime.rootfs import Refused

    try:
        join(container)
        with root_of(container) as top:
            process = exec_process(container.record, request, look_up(top, request.user))
            check_exec(top, process)
        return run_exec(container, request, process)
    except Refused as refused:
        complain(refused)
        return refused.code
    except ImgfsError as error:
        complain(error)
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else error)
    return _FAILED
