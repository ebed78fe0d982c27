"""imgfs which: which layers brought, changed and deleted a file."""

from __future__ import annotations

import argparse
import errno
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.cli.format import size
from imgfs.cli.history import shortened
from imgfs.cli.layers import open_layers
from imgfs.cli.options import Commands, count, json_option
from imgfs.cli.output import say, warn
from imgfs.cli.paths import add_look, file_fields, take_paths
from imgfs.errors import UsageError
from imgfs.quoting import printable, printable_path

if TYPE_CHECKING:
    from imgfs.cli.layers import LayerTrees
    from imgfs.image.versions import Version


def add_which(commands: Commands) -> None:
    """`imgfs which`."""
    command = add_look(
        commands,
        "which",
        which,
        "show which layers brought, changed and deleted a file",
        """\
Shows what the layers of IMAGE do to PATH, the uppermost first, each with the step that made the layer:
A added, C changed, D deleted. With --restore an earlier version, or one that is deleted, is written to DEST:
that of --layer, else the newest that the image does not show.

Examples:
  imgfs which debian:12 /etc/passwd
  imgfs which app:v2:/app/secret.key --restore secret.key
  imgfs which app:v2 /etc/motd --restore motd.1 --layer 1
""",
    )
    command.add_argument("--restore", metavar="DEST", help="write a version to DEST, which must not be there")
    command.add_argument("--layer", metavar="N", type=count, help="the version that this layer brought")
    json_option(command)


def which(options: argparse.Namespace) -> int:
    """Show which layers brought, changed and deleted files."""
    paths = take_paths(options, required=True)
    if options.restore and len(paths) > 1:
        raise UsageError("--restore writes one file: name one PATH")
    with open_layers(options) as layers:
        provenance = _Provenance(layers)
        found = [(path, provenance.versions(path)) for path in paths]
        if options.json:
            say(json.dumps([provenance.fields(path, versions) for path, versions in found], indent=2))
        elif not options.restore:
            say("\n\n".join(provenance.shown(path, versions) for path, versions in found))
        for path, versions in found if options.restore else ():
            provenance.restore(path, _chosen(versions, options), options.restore)
    return 0


class _Provenance:
    """The versions of an image's files, and the steps that brought them."""

    def __init__(self, layers: LayerTrees) -> None:
        from imgfs.image.versions import steps_of

        self._layers = layers
        self._commands = {step.layer: step.command for step in steps_of(layers.resolved)}

    def versions(self, path: bytes) -> list[Version]:
        """Return the versions of a path, the uppermost first; raises OSError if there is none."""
        from imgfs.image.versions import versions_of

        found = list(versions_of(path, self._layers.count, self._layers.at))
        if not found:
            raise OSError(errno.ENOENT, "in no layer", os.fsdecode(path))
        return found

    def shown(self, path: bytes, versions: list[Version]) -> str:
        """Return versions for a person."""
        lines = [printable_path(b"/" + path.strip(b"/"))]
        for version in versions:
            node = version.found.node if version.found else None
            what = f"{stat.filemode(node.mode)} {node.uid}:{node.gid} {size(node.size):>7}" if node else ""
            step = printable(shortened(self._commands.get(version.layer, "")))
            lines.append(f"{version.change[0].upper()}  layer {version.layer:<3} {what:<26}  {step}")
        return "\n".join(lines)

    def fields(self, path: bytes, versions: list[Version]) -> dict[str, object]:
        """Return versions for JSON."""
        listed = []
        for version in versions:
            fields: dict[str, object] = {
                "layer": version.layer,
                "change": version.change,
                "step": self._commands.get(version.layer, ""),
            }
            if version.found:
                with self._layers.at(version.layer) as files:
                    fields["file"] = file_fields(files, version.found)
            listed.append(fields)
        return {"path": os.fsdecode(b"/" + path.strip(b"/")), "versions": listed}

    def restore(self, path: bytes, version: Version, destination: str) -> None:
        """Write a version out. Raises UsageError if something is there already."""
        from imgfs.image.extract import Extraction

        target = Path(destination)
        if os.path.lexists(target):
            raise UsageError(f"{target}: already exists")
        with self._layers.at(version.layer) as files:
            found = files.at(path)
            if found is not None:
                Extraction(files, warn).write(found, target.parent, os.fsencode(target.name))


def _chosen(versions: list[Version], options: argparse.Namespace) -> Version:
    """Return the version to write; raises UsageError if there is none."""
    there = [version for version in versions if version.found]
    if options.layer is not None:
        there = [version for version in there if version.layer == options.layer]
        if not there:
            raise UsageError(f"layer {options.layer} does not bring that file (see without --restore)")
        return there[0]
    hidden = there if versions[0].found is None else there[1:]
    if not hidden:
        raise UsageError("there is no earlier version: the image shows the only one")
    return hidden[0]
