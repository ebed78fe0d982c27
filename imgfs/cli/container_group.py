"""imgfs container: list and inspect containers; commands for a container are here, too, as with podman."""

from __future__ import annotations

import argparse

from imgfs.cli.exec import add_exec
from imgfs.cli.logs import add_logs
from imgfs.cli.options import Commands, Run, add_command, store_option
from imgfs.cli.output import complain, say
from imgfs.cli.ps import add_listing, list_containers
from imgfs.cli.stop import add_kill, add_rm, add_stop, add_wait
from imgfs.errors import ImgfsError

_FAILED = 125


def add_container(commands: Commands) -> None:
    """`imgfs container`."""
    command = commands.add_parser(
        "container",
        help="list and inspect containers",
        description="""\
Containers of imgfs run, as podman's commands have them. The ones for a single container are commands of
their own as well: imgfs logs is imgfs container logs.

Examples:
  imgfs run -d --name web -p 8080:80 nginx
  imgfs container ls -a
  imgfs container inspect --format '{{.State.Status}}' web
  imgfs container prune
""",
    )
    actions = command.add_subparsers(
        metavar="ls|inspect|prune|exists|exec|logs|stop|kill|wait|rm", required=True
    )
    for name in ("ls", "ps", "list"):
        listing = add_command(actions, name, list_containers, "list containers", "Lists containers.\n")
        add_listing(listing)
    _add_action(actions, "inspect", inspect, "show what is known of containers, as JSON")
    _add_action(actions, "exists", exists, "end with 0 if there is such a container, with 1 if not")
    pruning = _add_action(actions, "prune", prune, "remove all containers that have ended", names=False)
    pruning.add_argument(
        "-f", "--force", action="store_true", help="accepted as podman has it: nothing is asked"
    )
    for add in (add_exec, add_logs, add_stop, add_kill, add_wait, add_rm):
        add(actions)


def _add_action(
    actions: Commands, name: str, run: Run, summary: str, *, names: bool = True
) -> argparse.ArgumentParser:
    action = add_command(actions, name, run, summary, f"{summary[:1].upper()}{summary[1:]}.\n")
    store_option(action)
    if name == "inspect":
        action.add_argument(
            "-f", "--format", metavar="TEMPLATE", help="json, or a template: '{{.State.Pid}}'"
        )
    if names:
        action.add_argument(
            "containers", metavar="CONTAINER", nargs="+", help="names, ids, or their beginnings"
        )
    return action


def inspect(options: argparse.Namespace) -> int:
    """Show what is known of containers."""
    from imgfs.cli.container_inspect import inspected
    from imgfs.cli.options import open_store
    from imgfs.cli.template import dumped, filled
    from imgfs.runtime.containers import find_container

    root = open_store(options, writable=False).root
    found = [inspected(find_container(root, name)) for name in options.containers]
    if options.format in (None, "json"):
        say(dumped(found))
        return 0
    for one in found:
        say(filled(options.format, one))
    return 0


def exists(options: argparse.Namespace) -> int:
    """Tell by the exit code whether there are such containers."""
    from imgfs.cli.options import open_store
    from imgfs.runtime.containers import NoSuchContainer, find_container

    root = open_store(options, writable=False).root
    try:
        for name in options.containers:
            find_container(root, name)
    except NoSuchContainer:
        return 1
    return 0


def prune(options: argparse.Namespace) -> int:
    """Remove all containers that have ended; show their ids."""
    from imgfs.cli.options import open_store
    from imgfs.cli.run import lent_ids
    from imgfs.runtime.container_record import containers_in
    from imgfs.runtime.containers import remove_container

    code, maps = 0, lent_ids()
    for one in list(containers_in(open_store(options).root)):
        if one.state not in ("exited", "unknown"):
            continue
        try:
            remove_container(one, maps)
            say(one.record.id)
        except ImgfsError as error:
            complain(error)
            code = _FAILED
    return code
