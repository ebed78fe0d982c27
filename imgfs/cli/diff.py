"""imgfs diff: list what a scratch has changed."""

from __future__ import annotations

import argparse
import base64
import stat
from typing import TYPE_CHECKING, Any

from imgfs.cli.format import size
from imgfs.cli.options import (
    Commands,
    add_command,
    json_option,
)
from imgfs.cli.output import say
from imgfs.cli.scratch_selection import scratch_options
from imgfs.quoting import printable_path

if TYPE_CHECKING:
    from imgfs.overlay.diff import DiffEntry


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def add_diff(commands: Commands) -> None:
    """`imgfs diff`."""
    command = add_command(
        commands,
        "diff",
        diff,
        "list what a scratch has changed",
        """\
Lists what the scratch of a mount, or a scratch that is kept, changes in its image: A added, C changed,
D deleted.

Examples:
  imgfs diff /mnt
  imgfs diff --stat work
  imgfs diff --json work | jq -r '.[] | select(.change == "added").path'
""",
    )
    scratch_options(command)
    command.add_argument(
        "--stat", action="store_true", help="with how much each file has grown, and a summary"
    )
    json_option(command)


def diff(options: argparse.Namespace) -> int:
    """List what a scratch has changed."""
    import json

    from imgfs.cli.scratch_selection import select_scratch

    selected = select_scratch(options)
    with selected.open() as image, selected.changes(image) as changes:
        if options.json:
            say(json.dumps([_fields(change) for change in changes], indent=2))
        elif options.stat:
            say("\n".join(_statistics(list(changes))))
        else:
            for change in changes:
                say(f"{change.kind.value} /{printable_path(change.path)}")
    return 0


def _fields(change: DiffEntry) -> dict[str, Any]:
    now = change.after or change.before
    assert now is not None
    return {
        **_named(b"/" + change.path),
        "change": change.kind.name.lower(),
        "kind": _KINDS[stat.S_IFMT(now.mode)],
        "size": _size(change.after),
        "size_before": _size(change.before),
    }


def _named(path: bytes) -> dict[str, str]:
    """Return a path for JSON; one that is not UTF-8 also in base64."""
    try:
        return {"path": path.decode()}
    except UnicodeDecodeError:
        return {"path": path.decode(errors="replace"), "path_base64": base64.b64encode(path).decode()}


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


def _size(file: Any) -> int | None:
    """Return a regular file's size in bytes; None for others."""
    return file.size if file is not None and stat.S_ISREG(file.mode) else None
