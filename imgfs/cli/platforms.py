"""imgfs platforms: the platforms of an image."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from typing import TYPE_CHECKING

from imgfs.cli.options import Commands, add_command, image_options, json_option
from imgfs.cli.output import say
from imgfs.errors import InvalidImage

if TYPE_CHECKING:
    from imgfs.oci.descriptor import Descriptor
    from imgfs.transport.source import Source

_NESTING = 4  # indexes inside indexes


def add_platforms(commands: Commands) -> None:
    """`imgfs platforms`."""
    command = add_command(
        commands,
        "platforms",
        platforms,
        "list the platforms of an image",
        """\
Lists the platforms that IMAGE is for, each with the digest of its manifest. Attestations and signatures are
left out.

Examples:
  imgfs platforms debian:12
  imgfs platforms --json debian:12 | jq -r '.[].platform'
""",
    )
    image_options(command, offline=False)
    json_option(command)


def platforms(options: argparse.Namespace) -> int:
    """List the platforms of an image."""
    from imgfs.cli.selection import select_image

    with closing(select_image(options).connect()) as source:
        found = _found(source, source.resolve(whole=True), 0)
    if options.json:
        say(json.dumps([{"platform": name, "digest": digest} for name, digest in found], indent=2))
    else:
        for name, digest in found:
            say(f"{name:<16} {digest}")
    return 0


def _found(source: Source, named: Descriptor, depth: int) -> list[tuple[str, str]]:
    """Return (platform, digest) of the images that a document is or leads to."""
    from imgfs.oci.image import INDEX_TYPES, Index, parse_config, parse_document
    from imgfs.oci.select import is_image_entry

    document = parse_document(source.document(named), named.media_type)
    if not isinstance(document, Index):
        config = parse_config(source.document(document.config), document.config.media_type)
        return [(str(config.platform), str(named.digest))]
    if depth > _NESTING:
        raise InvalidImage(f"indexes of more than {_NESTING} deep", where=str(named.digest))
    found = []
    for entry in document.manifests:
        if entry.platform and entry.media_type not in INDEX_TYPES and is_image_entry(entry):
            found.append((str(entry.platform), str(entry.digest)))
        elif is_image_entry(entry):
            found += _found(source, entry, depth + 1)
    return found
