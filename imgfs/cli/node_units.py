"""Units of systemd, and other files of the machine, written, shown and removed by install and uninstall."""

from __future__ import annotations

import difflib
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.cli.output import say
from imgfs.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from imgfs.engines.node.changed_files import FileChange
    from imgfs.engines.node.unit import ServerUnits

_SYSTEM = "/etc/systemd/system"


def unit_options(command: argparse.ArgumentParser, name: str) -> None:
    """Add where the units are, whose service is `name`, and whether anything is changed."""
    place = f"{_SYSTEM}/{name}.service"
    command.add_argument(
        "--unit",
        metavar="FILE",
        default=place,
        help=f"the unit, and beside it its socket's (default: {place})",
    )
    command.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")


def written_units(server: ServerUnits, unit: str, command: list[str], address: Path) -> list[FileChange]:
    """Return the changes that have systemd run a command, and listen at `address` for it."""
    from imgfs.engines.node.changed_files import FileChange

    service, listening = _units(unit)
    return [
        FileChange(service, own_text(service, server), server.service_unit(command, listening.name)),
        FileChange(listening, own_text(listening, server), server.socket_unit(str(address))),
    ]


def removed_units(server: ServerUnits, unit: str, *others: Path) -> list[FileChange]:
    """Return the changes that remove the units, and `others`, as far as imgfs has written them."""
    from imgfs.engines.node.changed_files import FileChange, text_of

    found = ((path, text_of(path)) for path in (*_units(unit), *others))
    return [FileChange(path, text, None) for path, text in found if text and text.startswith(server.mark)]


def _units(unit: str) -> tuple[Path, Path]:
    """Return where the service's unit is, and its socket's."""
    service = Path(unit)
    return service, service.with_suffix(".socket")


def own_text(path: Path, server: ServerUnits) -> str | None:
    """Return what a file of imgfs says; None if it is not there. Raises UsageError if it is of another."""
    from imgfs.engines.node.changed_files import text_of

    known = text_of(path)
    if known is not None and not known.startswith(server.mark):
        raise UsageError(f"{path}: already exists, and is not of imgfs: move it away, or name another --unit")
    return known


def command_words(name: str, chosen: Mapping[str, tuple[str | None, str | None]]) -> list[str]:
    """Return the words that start a command by this very program, not another in the PATH.

    `chosen` are its options, each with its value and the usual one, which is left out.
    """
    called = os.path.abspath(sys.argv[0])
    program = called if os.path.basename(called) == "imgfs" else shutil.which("imgfs") or called
    given = ((option, value) for option, (value, usual) in chosen.items() if value != usual)
    return [program, name, *(word for option, value in given for word in (option, value or ""))]


def absolute(path: str | None) -> str | None:
    """Return a path from the root, None if there is none."""
    return path and os.path.abspath(path)


def carry_out(changes: Iterable[FileChange], *, is_dry: bool) -> bool:
    """Make the changes, or show them; return True if any was made."""
    found = [change for change in changes if change.is_change]
    for change in found:
        if is_dry:
            say("\n".join(_difference(change)))
        else:
            change.apply()
            say(f"{'removed' if change.after is None else 'wrote'} {change.path}")
    if not found:
        say("nothing to change")
    return bool(found) and not is_dry


def _difference(change: FileChange) -> Iterable[str]:
    if change.is_backup:
        return [f"{'remove' if change.after is None else 'write'} {change.path}"]
    before, after = ((text or "").splitlines() for text in (change.before, change.after))
    return difflib.unified_diff(before, after, str(change.path), str(change.path), lineterm="")


def say_how_to_stop(server: ServerUnits, restart: str = "") -> None:
    """Say what is to be done when the units are gone; `restart` is the service that has to hear of it."""
    units = " ".join(reversed(server.units))
    more = f"; systemctl restart {restart}" if restart else ""
    say(f"Next: systemctl stop {units}; systemctl disable {units}; systemctl daemon-reload{more}")
