"""imgfs shared: what images have in common."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

from imgfs.cli.format import Column, counted, short, size
from imgfs.cli.options import IMAGE_HELP, Commands, add_command, image_options, json_option
from imgfs.cli.output import say, say_line, say_table
from imgfs.quoting import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imgfs.image.files import Found
    from imgfs.image.image import Image
    from imgfs.image.shared import SharedLayer


def add_shared(commands: Commands) -> None:
    """`imgfs shared`."""
    command = add_command(
        commands,
        "shared",
        shared,
        "show what images have in common",
        """\
Shows the layers that at least two of the images have, by DiffID and digest, and how many files, with how many
bytes, all of them have at the same path. Nothing of files is read: files are the same if they are the same
part of the same layer. With --content equal files of different layers count, too; those of the same size are
read.

Examples:
  imgfs shared app:v1 app:v2
  imgfs shared --json app:v1 app:v2 app:v3
  imgfs shared --files app:v1 app:v2               the files
""",
    )
    image_options(command)
    command.add_argument("others", metavar="IMAGE", nargs="+", help=IMAGE_HELP)
    command.add_argument("--content", action="store_true", help="compare what files hold, too")
    command.add_argument("--files", action="store_true", help="list the files that all images have")
    json_option(command)


def shared(options: argparse.Namespace) -> int:
    """Show what images have in common."""
    from imgfs.cli.selection import select_image
    from imgfs.image.files import ImageFiles
    from imgfs.image.shared import shared_files, shared_layers

    with ExitStack() as stack:
        images = []
        for name in (options.image, *options.others):
            meant = argparse.Namespace(**{**vars(options), "image": name})
            images.append(stack.enter_context(select_image(meant).open()))
        found = shared_files([ImageFiles(image) for image in images], reads=options.content)
        if options.files and not options.json:
            for file in found:
                say_line(file.path)
            return 0
        layers = shared_layers([image.resolved for image in images])
        files, total = _sum(found)
        if options.json:
            _say_json(images, layers, files, total)
        else:
            _say(images, layers, files, total)
    return 0


def _sum(found: Iterable[Found]) -> tuple[int, int]:
    """Return the number of files and their bytes; one with several names has its bytes once."""
    files = total = 0
    seen: set[int] = set()
    for file in found:
        files += 1
        if file.node.nlink > 1:
            if file.node.ino in seen:
                continue
            seen.add(file.node.ino)
        total += file.node.size
    return files, total


def _say(images: list[Image], layers: list[SharedLayer], files: int, total: int) -> None:
    for number, image in enumerate(images, 1):
        manifest, tree = image.resolved.manifest, image.tree
        stored = size(sum(layer.size for layer in manifest.layers))
        holds = f"{counted(len(manifest.layers), 'layer')}, {stored}; files hold {size(tree.total_size)}"
        say(f"{number}  {printable(image.resolved.reference)}: {holds}")
    say("")
    if layers:
        columns = (Column("DIFFID"), Column("DIGEST"), Column("SIZE", right=True), Column("IMAGES"))
        say_table(
            columns,
            [
                (
                    short(str(layer.diff_id)),
                    " ".join(short(str(digest)) for digest in layer.blobs),
                    size(max(layer.blobs.values())),
                    " ".join(map(str, layer.images)),
                )
                for layer in layers
            ],
        )
        say("")
    say(f"{counted(len(layers), 'shared layer')}, {size(sum(layer.saved for layer in layers))} stored once")
    say(f"{counted(files, 'file')} in all images, {size(total)}")


def _say_json(images: list[Image], layers: list[SharedLayer], files: int, total: int) -> None:
    fields = {
        "images": [
            {
                "image": image.resolved.reference,
                "digest": str(image.resolved.digest),
                "layers": len(image.resolved.manifest.layers),
                "stored": sum(layer.size for layer in image.resolved.manifest.layers),
                "size": image.tree.total_size,
            }
            for image in images
        ],
        "layers": [
            {
                "diff_id": str(layer.diff_id),
                "blobs": [{"digest": str(digest), "size": each} for digest, each in layer.blobs.items()],
                "images": list(layer.images),
            }
            for layer in layers
        ],
        "files": {"count": files, "size": total},
    }
    say(json.dumps(fields, indent=2))
