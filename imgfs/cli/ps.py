"""imgfs ps: list the mounts and the containers."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from imgfs.cli.format import Column, age, size
from imgfs.cli.options import Commands, json_option, store_option
from imgfs.cli.output import say, say_table
from imgfs.errors import ImgfsError, MountError

if TYPE_CHECKING:
    import argparse

    from imgfs.mounts.table import Mount
    from imgfs.status import MountStatus

_IN_PLACE_OF_PID = {"served": "?", "unknown": "?"}  # a served mount tells no pid in another PID namespace


def add_ps(commands: Commands) -> None:
    """`imgfs ps`."""
    command = commands.add_parser(
        "ps",
        help="list the mounts and the containers",
        description="""\
Lists the mounts of imgfs, by either driver, with their daemons, how old they are, how many bytes they have
fetched, the versions of their daemons and how often those were restarted (see: imgfs mount --restart), and
their scratches; below them the containers that run, if there are any. In place of a daemon's pid stands
`idle` if it has ended as nothing was read (--exit-idle: it is not woken), `dead` if it was killed, `silent`
if it is stopped or does not answer, `?` if it is another user's and tells nothing. The options of podman's
ps, and -c, list containers alone.

Examples:
  imgfs ps
  imgfs ps --json | jq -r '.[].mountpoint'         the mounts
  imgfs ps -a                                      containers, those that have ended as well
  imgfs ps -q --filter name=web
  imgfs ps --format '{{.Names}} {{.Status}}'
""",
    )
    json_option(command)
    command.add_argument("-c", "--containers", action="store_true", help="list containers alone")
    add_listing(command)
    command.set_defaults(run=ps)


class MountRow(NamedTuple):
    """A mount as `imgfs ps --json` shows it: its age in `seconds`, and the bytes `fetched` for it.

    Its `state` is served, idle (its daemon has ended, the next reader has it started), dead, silent or
    unknown (another user's). What its daemon says is None unless it is served.
    """

    mountpoint: str
    image: str
    driver: str
    pid: int | None
    scratch: str | None
    seconds: float | None
    fetched: int | None
    version: str | None
    restarts: int | None
    idle: bool
    state: str


def add_listing(command: argparse.ArgumentParser) -> None:
    """Add podman's options for a list of containers."""
    add = command.add_argument
    add("-a", "--all", action="store_true", help="containers that have ended, too")
    add("-q", "--quiet", action="store_true", help="the ids of containers alone")
    add("--no-trunc", action="store_true", help="whole ids and commands")
    add("--noheading", action="store_true", help="no heads of columns")
    add("-l", "--latest", action="store_true", help="the container that was made last")
    add(
        "-f",
        "--filter",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        type=_filter,
        help="only containers with this name, id, status, exited, ancestor, volume or label",
    )
    add("--format", metavar="TEMPLATE", help="json, or a template: '{{.ID}} {{.Names}}'")
    store_option(command)


def _filter(text: str) -> tuple[str, str]:
    from imgfs.cli.container_list import container_filter  # here: mounts need none of it

    return container_filter(text)


def ps(options: argparse.Namespace) -> int:
    """List the mounts, and the containers that run."""
    asks = ("containers", "all", "quiet", "no_trunc", "noheading", "latest", "filter", "format")
    if any(getattr(options, name) for name in asks):
        return list_containers(options)
    _list_mounts(options)
    if not options.json and (lines := _running(options)):
        say("")
        say("\n".join(lines))
    return 0


def list_containers(options: argparse.Namespace) -> int:
    """List containers, as podman does."""
    from imgfs.cli.container_list import rows_of, table
    from imgfs.cli.options import store_root
    from imgfs.cli.template import check_format, dumped, filled
    from imgfs.runtime.container_record import containers_in

    every = options.all or options.latest
    rows = rows_of(list(containers_in(store_root(options))), options.filter, every=every)
    rows = rows[-1:] if options.latest else rows
    if options.format == "json" or getattr(options, "json", False):
        say(dumped([row.to_json() for row in rows]))
        return 0
    if options.format:
        check_format(options.format)
    if options.quiet:
        lines = [row.shown(whole=options.no_trunc)["ID"] for row in rows]
    elif options.format:
        lines = [
            filled(options.format, {**row.to_json(), **row.shown(whole=options.no_trunc)}) for row in rows
        ]
    else:
        lines = table(rows, whole=options.no_trunc)[1 if options.noheading else 0 :]
    for line in lines:
        say(line)
    return 0


def _running(options: argparse.Namespace) -> list[str]:
    """Return the lines on containers that run, none if there is none."""
    from imgfs.runtime.names import CONTAINERS
    from imgfs.variables import own_store

    names: list[str] = []
    with suppress(OSError):  # another user's: mounts are listed all the same
        names = os.listdir(os.path.join(options.store or own_store(), CONTAINERS))
    if not names:
        return []  # most machines have none: nothing more of this need be loaded
    from imgfs.cli.container_list import rows_of, table
    from imgfs.cli.options import store_root
    from imgfs.runtime.container_record import containers_in

    try:
        rows = rows_of(list(containers_in(store_root(options))), (), every=False)
    except ImgfsError:  # another user's store: mounts are listed all the same
        return []
    return table(rows) if rows else []


def _list_mounts(options: argparse.Namespace) -> int:
    """List the mounts."""
    from imgfs.mounts.table import imgfs_mounts

    mounts = imgfs_mounts()
    rows = _rows(mounts) if mounts else []
    if options.json:
        import json

        say(json.dumps([row._asdict() for row in rows], indent=2))
        return 0
    columns = (
        Column("MOUNTPOINT"),
        Column("IMAGE"),
        Column("DRIVER"),
        Column("PID", right=True),
        Column("AGE"),
        Column("FETCHED", right=True),
        Column("VERSION"),
        Column("RESTARTS", right=True),
        Column("SCRATCH"),
    )
    say_table(
        columns,
        [
            (
                row.mountpoint,
                row.image,
                row.driver,
                str(row.pid) if row.pid else _IN_PLACE_OF_PID.get(row.state, row.state),
                "?" if row.seconds is None else age(row.seconds),
                "?" if row.fetched is None else size(row.fetched),
                row.version or "?",
                "?" if row.restarts is None else str(row.restarts),
                row.scratch or "-",
            )
            for row in rows
        ],
    )
    return 0


def _rows(mounts: list[Mount]) -> list[MountRow]:
    """Return the mounts' rows."""
    from imgfs.mounts.holders import idle_mounts
    from imgfs.mounts.status_client import read_statuses

    idle = idle_mounts(mounts)  # not asked: that would wake them, all of a node's
    statuses = read_statuses([mount for mount in mounts if mount.mountpoint not in idle])
    return [_row(mount, None if mount.mountpoint in idle else next(statuses)) for mount in mounts]


def _scratch(status: MountStatus) -> str | None:
    """Return how a mount's scratch is called; one that goes with it has no name that a user could use."""
    if status.scratch is None:
        return None
    return status.scratch.name if status.scratch.kept else "(not kept)"


def _row(mount: Mount, found: MountStatus | MountError | None) -> MountRow:
    """Return a mount's row, with what its daemon says, or why it says nothing; None if the mount is idle."""
    row = MountRow(
        mountpoint=str(mount.mountpoint),
        image=mount.name,
        driver="kernel" if mount.runtime else "fuse",
        pid=None,
        scratch=None,
        seconds=None,
        fetched=None,
        version=None,
        restarts=None,
        idle=found is None,
        state=_state(found),
    )
    if found is None or isinstance(found, MountError):
        return row
    return row._replace(
        pid=found.pid or None,
        scratch=_scratch(found),
        seconds=found.seconds,
        fetched=found.bytes_fetched,
        version=found.version,
        restarts=found.restarts,
    )


def _state(found: object) -> str:
    """Return how a mount is served, or why its daemon says nothing."""
    from imgfs.mounts.status_client import DaemonDead, DaemonSilent

    if found is None:
        return "idle"
    kinds = ((DaemonDead, "dead"), (DaemonSilent, "silent"), (MountError, "unknown"))
    return next((state for kind, state in kinds if isinstance(found, kind)), "served")
