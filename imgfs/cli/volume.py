"""imgfs volume: the volumes with names that containers share and leave behind."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from imgfs.cli.options import Commands, Run, add_command, open_store, store_option
from imgfs.cli.output import complain, say
from imgfs.errors import ImgfsError

if TYPE_CHECKING:
    from imgfs.runtime.named_volumes import NamedVolume

_FAILED, _MISSING, _IN_USE = 125, 1, 2  # podman's


def add_volume(commands: Commands) -> None:
    """`imgfs volume`."""
    command = commands.add_parser(
        "volume",
        help="list, make and remove volumes with names",
        description="""\
A volume that has a name is kept in the store. It is made when a container names it for the first time, and
begins with what that container's image has there.

Examples:
  imgfs run -v data:/var/lib/data app:v2
  imgfs volume ls
  imgfs volume inspect data
  imgfs volume rm data                 not while a container uses it
""",
    )
    actions = command.add_subparsers(metavar="ls|create|inspect|rm|prune", required=True)
    listing = _add_action(actions, "ls", ls, "list volumes", names="")
    listing.add_argument("-q", "--quiet", action="store_true", help="the names alone")
    _add_action(actions, "create", create, "make empty volumes", names="+")
    _add_action(actions, "inspect", inspect, "show what is known of volumes, as JSON", names="+")
    removing = _add_action(actions, "rm", rm, "remove volumes, and all that is in them", names="+")
    removing.add_argument("-f", "--force", action="store_true", help="names that no volume has are no error")
    pruning = _add_action(actions, "prune", prune, "remove all volumes that no container uses", names="")
    pruning.add_argument("-f", "--force", action="store_true", help="accepted: nothing is asked")


def _add_action(
    actions: Commands, name: str, run: Run, summary: str, *, names: str
) -> argparse.ArgumentParser:
    example = f"  imgfs volume {name}{' data' if names else ''}\n"
    action = add_command(
        actions, name, run, summary, f"{summary[:1].upper()}{summary[1:]}.\n\nExamples:\n{example}"
    )
    store_option(action)
    if names:
        action.add_argument("names", metavar="VOLUME", nargs=names, help="its name")
    return action


def ls(options: argparse.Namespace) -> int:
    """List volumes."""
    from imgfs.runtime.named_volumes import volumes_in

    root = open_store(options, writable=False).root
    if not options.quiet:
        say("DRIVER      VOLUME NAME")
    for volume in volumes_in(root):
        say(volume.name if options.quiet else f"local       {volume.name}")
    return 0


def create(options: argparse.Namespace) -> int:
    """Make volumes."""
    from imgfs.runtime.named_volumes import NamedVolume

    root = open_store(options).root
    for name in options.names:
        say(NamedVolume.make(root, name).name)
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Show what is known of volumes."""
    from imgfs.runtime.named_volumes import find_volume

    root = open_store(options).root
    found = [find_volume(root, name) for name in options.names]
    rows = [
        {
            "Name": one.name,
            "Driver": "local",
            "Mountpoint": str(one.data),
            "CreatedAt": datetime.fromtimestamp(one.created, UTC).isoformat(),
            "Labels": {},
            "Scope": "local",
            "Options": {},
            "UsedBy": one.users(root),
        }
        for one in found
    ]
    say(json.dumps(rows, indent=4))
    return 0


def rm(options: argparse.Namespace) -> int:
    """Remove volumes."""
    from imgfs.runtime.named_volumes import find_volume

    root, code = open_store(options).root, 0
    for name in options.names:
        try:
            volume = find_volume(root, name)
        except ImgfsError as error:
            if not options.force:
                complain(error)
                code = code or _MISSING
            continue
        code = _remove(options, [volume]) or code
    return code


def prune(options: argparse.Namespace) -> int:
    """Remove volumes that no container uses."""
    from imgfs.runtime.named_volumes import volumes_in

    root = open_store(options).root
    return _remove(options, [one for one in volumes_in(root) if not one.users(root)])


def _remove(options: argparse.Namespace, volumes: Sequence[NamedVolume]) -> int:
    """Remove volumes: an ordinary user's have files of lent ids in them, which he has as root alone."""
    from imgfs.cli.run import lent_ids
    from imgfs.runtime.containers import in_namespaces

    root, maps, code = open_store(options).root, lent_ids(), 0
    for volume in volumes:
        try:
            if maps is None:
                volume.remove(root)
            else:
                in_namespaces(partial(volume.remove, root), maps)
            say(volume.name)
        except ImgfsError as error:
            complain(error)
            code = _IN_USE
    return code
