"""imgfs diff: list what a scratch has changed."""

from __future__ import annotations

import argparse
import errno
import stat
from typing import TYPE_CHECKING

from imgfs.cli.format import size
from imgfs.cli.options import (
    Commands,
    add_command,
    json_option,
)
from imgfs.cli.output import say
from imgfs.cli.paths import KINDS, named
from imgfs.cli.scratch import ScratchSelection, scratch_options
from imgfs.errors import StoreError
from imgfs.quoting import printable_path

if TYPE_CHECKING:
    from imgfs.image.image import Image
    from imgfs.overlay.diff import DiffEntry
    from imgfs.tree.database import Attributes, Node

_GONE = (errno.ENOENT, errno.ESTALE)
_TRIES = 5  # at reading a scratch whose programs remove files meanwhile


def add_diff(commands: Commands) -> None:
    """`imgfs diff`."""
    command = add_command(
        commands,
        "diff",
        diff,
        "list what a scratch has changed, or how two images differ",
        """\
Lists what the scratch of a mount, or a scratch that is kept, changes in its image: A added, C changed,
D deleted.

With OTHER both are images: their files are compared, and their configs. What comes from the same layer is not
read, and nothing is whose size differs. Exit code 0 if they are the same, 1 if not, 2 for trouble.

Examples:
  imgfs diff /mnt
  imgfs diff --stat work
  imgfs diff app:v1 app:v2
  imgfs diff -u app:v1 app:v2
  imgfs diff --packages app:v1 app:v2
  imgfs diff --json work | jq -r '.[] | select(.change == "added").path'
""",
    )
    images = command.add_argument_group("of two images")
    scratch_options(command)
    command.add_argument(
        "--stat", action="store_true", help="with how much each file has grown, and a summary"
    )
    command.add_argument("other", metavar="OTHER", nargs="?", help="an image; MNT|NAME is one then, too")
    images.add_argument("-u", dest="unified", action="store_true", help="with the lines of texts that differ")
    images.add_argument("--times", action="store_true", help="times of modification count, too")
    images.add_argument(
        "--packages", action="store_true", help="with the packages that differ, as imgfs packages finds them"
    )
    images.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="instead of this machine's")
    command.set_defaults(index="auto", offline=False)
    json_option(command)


def diff(options: argparse.Namespace) -> int:
    """List what a scratch has changed."""
    import json

    from imgfs.cli.scratch import select_scratch

    if options.other is not None:
        from imgfs.cli.diff_images import diff_images

        return diff_images(options)
    is_image = ":" in options.scratch  # which no name of a scratch has
    selected = select_scratch(options, "; to compare two images, name both" if is_image else "")
    with selected.open() as image:
        changes = _changes(selected, image)
    if options.json:
        say(json.dumps([_fields(change) for change in changes], indent=2))
    elif options.stat:
        say("\n".join(_statistics(changes)))
    else:
        for change in changes:
            say(f"{change.kind.value} /{printable_path(change.path)}")
    return 0


def _changes(selected: ScratchSelection, image: Image) -> list[DiffEntry]:
    """List the changes; anew if a program removes what is being read. Raises StoreError, OSError."""
    for _ in range(_TRIES):
        try:
            with selected.changes(image) as changes:
                return list(changes)
        except OSError as error:
            if error.errno not in _GONE or selected.scratch.holder() is None:
                raise
    raise StoreError(f"scratch {selected.scratch.name}: its files change while they are read: try again")


def _fields(change: DiffEntry) -> dict[str, object]:
    now = change.after or change.before
    assert now is not None
    return {
        **named(b"/" + change.path),
        "change": change.kind.name.lower(),
        "kind": KINDS[stat.S_IFMT(now.mode)],
        "size": _size(change.after),
        "size_before": _size(change.before),
    }


def _statistics(changes: list[DiffEntry]) -> list[str]:
    """Return a line for each changed file with its growth, and a summary."""
    from imgfs.overlay.diff import ChangeKind

    files = [
        change for change in changes if _size(change.after) is not None or change.kind is ChangeKind.DELETED
    ]
    lines = [f"{change.kind.value} {_growth(change):>9}  /{printable_path(change.path)}" for change in files]
    counts = {kind: sum(change.kind is kind for change in changes) for kind in ChangeKind}
    total = sum(_size(change.after) or 0 for change in files)
    summary = ", ".join(f"{count} {kind.name.lower()}" for kind, count in counts.items())
    return [*lines, f"{summary}; {size(total)} in new and changed files"]


def _growth(change: DiffEntry) -> str:
    grown = (_size(change.after) or 0) - (_size(change.before) or 0)
    return f"{'-' if grown < 0 else '+'}{size(abs(grown))}"


def _size(file: Node | Attributes | None) -> int | None:
    """Return a regular file's size in bytes; None for others."""
    return file.size if file is not None and stat.S_ISREG(file.mode) else None
