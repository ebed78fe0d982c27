"""imgfs index build, ls, rm: index an image, and manage the indexes beside it."""

from __future__ import annotations

import argparse
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from imgfs.cli.format import Column, counted, size
from imgfs.cli.options import (
    IMAGE_HELP,
    Commands,
    add_command,
    json_option,
    lazily,
    registry_options,
    store_option,
)
from imgfs.cli.output import say, say_table
from imgfs.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from imgfs.image.resolve import Resolved
    from imgfs.oci.descriptor import Descriptor
    from imgfs.store.store import Store
    from imgfs.transport.source import Source

TOOL = "imgfs"  # the build tool named in SOCI indexes that imgfs makes


def add_index(commands: Commands) -> None:
    """`imgfs index`."""
    command = commands.add_parser(
        "index",
        help="index images, and publish the indexes beside them",
        description="""\
The first mount of an image without an index streams its layers once. An index pushed beside the image, into
the same repository, makes that unnecessary: every mount finds it by itself. The image does not change.

Examples:
  imgfs index push registry.example.com/team/app:v2
  imgfs index ls registry.example.com/team/app:v2
  imgfs mount registry.example.com/team/app:v2 /mnt
  imgfs index build debian:12          into the store only
""",
    )
    actions = command.add_subparsers(metavar="build|push|ls|rm", required=True)
    _add_build(actions)
    _add_push(actions)
    _add_ls(actions)
    _add_rm(actions)


def _add_build(actions: Commands) -> None:
    from imgfs.oci.policy import Policy

    command = add_command(
        actions,
        "build",
        build,
        "index the layers of an image, in the store",
        """\
Streams those layers of IMAGE that have no index here yet, and merges them: a mount then has nothing to do.

Examples:
  imgfs index build debian:12
""",
    )
    _image_options(command)
    command.set_defaults(index=Policy.AUTO)


def _add_push(actions: Commands) -> None:
    from imgfs.oci.policy import Policy

    command = add_command(
        actions,
        "push",
        lazily("index_push", "push"),
        "publish the index of an image beside it",
        """\
Puts an artifact that refers to IMAGE into its repository: its tree, the spans of its layers, and what
recorded mounts have read. SOCI indexes are pushed with it, which soci-snapshotter can use as well. Only what
has been verified here is published. Replaces what imgfs has published of the image before.

Examples:
  imgfs index push registry.example.com/team/app:v2
  imgfs index push --repack registry.example.com/team/app:v2
  imgfs index push --soci none oci:build:v2
  imgfs index push --soci v2 --as registry.example.com/team/app:v2-soci registry.example.com/team/app:v2
""",
    )
    _image_options(command)
    command.add_argument(
        "--repack",
        action="store_true",
        help="with a seekable copy of each layer that can only be read from its start (zstd in one frame)",
    )
    command.add_argument(
        "--soci",
        choices=["v1", "v2", "none"],
        default="v1",
        help="with a SOCI index beside the image (v1, the default), or, with --as, in a new image (v2)",
    )
    command.add_argument(
        "--as", dest="new", metavar="NEW", help="the name of the image that names its SOCI index"
    )
    command.set_defaults(index=Policy.VERIFIED)


def _add_ls(actions: Commands) -> None:
    command = add_command(
        actions,
        "ls",
        ls,
        "list the indexes beside an image",
        """\
Lists the indexes that were published beside IMAGE, with the tool that made them and their size.

Examples:
  imgfs index ls registry.example.com/team/app:v2
  imgfs index ls --json registry.example.com/team/app:v2 | jq -r '.[].digest'
""",
    )
    _image_options(command)
    json_option(command)


def _add_rm(actions: Commands) -> None:
    command = add_command(
        actions,
        "rm",
        rm,
        "remove indexes from beside an image",
        """\
Removes what imgfs has published beside IMAGE, or the indexes that are named. Needs a registry that allows
deletion; where it does not, the indexes are at least not listed any more, if the registry keeps no list of
its own.

Examples:
  imgfs index rm registry.example.com/team/app:v2
  imgfs index rm registry.example.com/team/app:v2 sha256:0f3c…
""",
    )
    _image_options(command)
    command.add_argument(
        "digests", metavar="DIGEST", nargs="*", default=[], help="as `imgfs index ls` shows them"
    )


def _image_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    registry_options(command, platform="instead of this machine's")
    store_option(command)
    command.set_defaults(offline=None)  # nothing can stand in for the registry


def build(options: argparse.Namespace) -> int:
    """Index an image in the store."""
    from imgfs.cli.selection import select_image

    image = select_image(options)
    resolved = image.prepare()
    for layer in resolved.layers.values():
        say(_layer_line(layer[0], image.store))
    return 0


def ls(options: argparse.Namespace) -> int:
    """List the indexes beside an image."""
    import json

    from imgfs.cli.selection import select_image

    image = select_image(options)
    resolved = image.resolve()
    with closing(image.connect()) as source:
        found = list(_rows(indexes_beside(resolved, source), source))
    if options.json:
        say(json.dumps([asdict(one) for one in found], indent=2))
    elif found:
        columns = (Column("DIGEST"), Column("SIZE", right=True), Column("KIND"), Column("BY"), Column("MADE"))
        say_table(
            columns, [(one.digest, size(one.bytes), one.kind, one.by, one.created or "-") for one in found]
        )
    return 0


def rm(options: argparse.Namespace) -> int:
    """Remove indexes from beside an image."""
    from imgfs.cli.copy import send_to
    from imgfs.cli.selection import select_image
    from imgfs.oci.descriptor import Digest

    image = select_image(options)
    resolved = image.resolve()
    named = [Digest.parse(text) for text in options.digests]
    with closing(image.connect()) as source:
        found = indexes_beside(resolved, source)
    doomed = [one for one in found if (one.digest in named if named else made_by_imgfs(one))]
    missing = [str(digest) for digest in named if digest not in [one.digest for one in found]]
    if missing or not doomed:
        raise NotFound(
            f"{image.reference}: there is no index {missing[0] if missing else 'by imgfs'} beside it"
        )
    with closing(send_to(image.reference, options, image.environment)) as destination:
        for one in doomed:
            destination.remove_artifact(one, resolved.digest)
            say(one.digest)
    return 0


def indexes_beside(resolved: Resolved, source: Source) -> list[Descriptor]:
    """List the artifacts beside an image that are indexes."""
    from imgfs.oci.published import ARTIFACT_TYPE
    from imgfs.oci.soci import SOCI_V1

    return [one for one in source.referrers(resolved.digest) if one.artifact_type in (ARTIFACT_TYPE, SOCI_V1)]


def made_by_imgfs(one: Descriptor) -> bool:
    from imgfs.oci.published import ARTIFACT_TYPE
    from imgfs.oci.soci import BUILD_TOOL

    return one.artifact_type == ARTIFACT_TYPE or one.annotations.get(BUILD_TOOL) == TOOL


@dataclass(frozen=True, slots=True)
class IndexRow:
    """An index beside an image, as `imgfs index ls --json` shows it."""

    digest: str
    kind: str
    bytes: int
    created: str | None
    by: str
    profiles: list[str]


def _rows(listed: Iterable[Descriptor], source: Source) -> Iterator[IndexRow]:
    """Yield what `index ls` prints, without the indexes that a list names and that are gone."""
    for one in listed:
        with suppress(NotFound):
            yield _row(one, source)


def _row(one: Descriptor, source: Source) -> IndexRow:
    from imgfs.oci.artifact import parse_artifact
    from imgfs.oci.published import ARTIFACT_TYPE, CREATED, published_in
    from imgfs.oci.soci import BUILD_TOOL

    artifact = parse_artifact(source.document(one), one.media_type)
    ours = one.artifact_type == ARTIFACT_TYPE
    return IndexRow(
        digest=str(one.digest),
        kind="imgfs" if ours else "soci v1",
        bytes=sum(layer.size for layer in artifact.layers),
        created=one.annotations.get(CREATED),
        by=TOOL if ours else one.annotations.get(BUILD_TOOL, "unknown"),
        profiles=sorted(published_in(artifact).profiles) if ours else [],
    )


def _layer_line(layer: Descriptor, store: Store) -> str:
    from imgfs.image.trust import open_index

    with open_index(store.layer(layer.digest)) as index:
        summary, spans = index.summary, index.span_count()
    counts = (
        f"{spans:>7} {'span ' if spans == 1 else 'spans'}  {counted(summary.entries, 'entry', 'entries')}"
    )
    return f"{layer.digest.short}  {summary.format:13}  {size(layer.size):>8}  {counts}"
