"""imgfs commit: make an image of what a scratch shows."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from imgfs.cli.options import (
    Commands,
    add_command,
)
from imgfs.cli.output import say, warn
from imgfs.cli.scratch import scratch_options
from imgfs.errors import StoreError

if TYPE_CHECKING:
    from imgfs.cli.scratch import ScratchSelection
    from imgfs.commit import BaseImage, Committed, Record
    from imgfs.image.image import Image
    from imgfs.oci.descriptor import Digest
    from imgfs.oci.reference import Reference
    from imgfs.overlay.diff import Diff

_NAMED = 10  # files, in warnings


def add_commit(commands: Commands) -> None:
    """`imgfs commit`."""
    command = add_command(
        commands,
        "commit",
        commit,
        "make an image of what a scratch shows",
        """\
Makes one layer of what a scratch changes, puts it on the image's own and gives the result the name NEW: in a
registry, in an OCI layout, or in an archive (oci-archive:FILE, docker-archive:FILE). Only what is not there
yet is sent. The same changes make the same image.

Examples:
  imgfs commit /mnt registry.example.com/team/app:v2
  imgfs commit work oci:build:v2 --message "with curl" --author "A. U. Thor"
  imgfs commit work oci:build:v2 --change 'CMD ["python3", "-m", "app"]' --change 'ENV DEBUG=1'
  imgfs commit work oci:build:v2 --compression zstd
""",
    )
    scratch_options(command)
    command.add_argument("new", metavar="NEW", help="an image's name, oci:DIR[:TAG], oci-archive:FILE, …")
    command.add_argument("--message", "-m", default="", help="what the image's history says of it")
    command.add_argument("--author", "-a", default="", help="who made it")
    command.add_argument("--compression", choices=["gzip", "zstd"], default="gzip", help="default: gzip")
    command.add_argument(
        "--change",
        "-c",
        action="append",
        default=[],
        metavar="'INSTRUCTION …'",
        help="as in a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, VOLUME, WORKDIR, …",
    )


def commit(options: argparse.Namespace) -> int:
    """Make an image of what a scratch shows, and put it into a registry or layout."""
    from imgfs.cli.scratch import select_scratch
    from imgfs.commit import commit as make_image
    from imgfs.oci.change import parse_change
    from imgfs.oci.reference import keeps_manifest
    from imgfs.registry.config.shortnames import parse_destination
    from imgfs.transport.destination import tag_of

    target = parse_destination(options.new)
    changes_to_config = [parse_change(text) for text in options.change]
    selected = select_scratch(options)
    with (
        selected.open() as image,
        selected.changes(image) as changes,
        selected.store.workplace(".commit-") as directory,
    ):
        made = make_image(
            changes.members(),
            _base(image, selected, target),
            directory,
            record=_record(options, selected, changes),
            changes=changes_to_config,
            codec=options.compression,
        )
        digest = _put(made, image, selected, target)
        _warn_of(changes.left_out)
    say(replace(target, tag=tag_of(target), digest=digest) if keeps_manifest(target) else target)
    return 0


def _warn_of(left_out: Mapping[bytes, str]) -> None:
    """Name what the new image does not have of the scratch."""
    from imgfs.tree.paths import shown

    for path, what in itertools.islice(sorted(left_out.items()), _NAMED):
        warn(f"not in the new image, as no layer holds it: /{shown(path)}: {what}")
    if len(left_out) > _NAMED:
        warn(f"and of {len(left_out) - _NAMED} other files")


def _base(image: Image, selected: ScratchSelection, target: Reference) -> BaseImage:
    """Return the documents of the image below, cut to the layers that the scratch lies on."""
    from imgfs.commit import BaseImage
    from imgfs.oci.change import as_oci, truncate
    from imgfs.oci.reference import RegistryReference

    resolved = image.resolved
    whole = selected.store.document(resolved.digest)
    config = selected.store.document(resolved.manifest.config.digest)
    if whole is None or config is None:
        raise StoreError(f"{resolved.reference}: its documents have been removed meanwhile; try again")
    manifest, config = truncate(whole, config, len(resolved.manifest.layers))
    return BaseImage(manifest if isinstance(target, RegistryReference) else as_oci(manifest), config)


def _record(options: argparse.Namespace, selected: ScratchSelection, changes: Diff) -> Record:
    """Return the history entry: dated by the newest file, so that the same changes make the same image."""
    from datetime import UTC, datetime

    from imgfs.commit import Record

    newest = max((change.after.mtime_ns for change in changes if change.after), default=0) // 1_000_000_000
    date = newest if selected.environment.source_date is None else selected.environment.source_date
    return Record(
        created=datetime.fromtimestamp(min(max(date, 0), 253_402_300_799), UTC),  # until the year 9999
        created_by="imgfs commit",
        author=options.author,
        message=options.message,
    )


def _put(made: Committed, image: Image, selected: ScratchSelection, target: Reference) -> Digest:
    from imgfs.cli.copy import send_to
    from imgfs.cli.progress import Progress
    from imgfs.transport.copy import mountable, put_image
    from imgfs.transport.parcel import Document, Parcel, blob_in, blob_of, blob_with

    opened = send_to(target, selected.options, selected.environment)
    origin = mountable(selected.reference, target)
    layers = [blob_of(image.source, layer, mount_from=origin) for layer in image.resolved.manifest.layers]
    if made.layer and made.layer_path:
        layers.append(blob_in(made.layer_path, made.layer))
    config = blob_with(made.config, made.config_descriptor.media_type)
    parcel = Parcel(tuple(layers), (config,), (Document(made.manifest_descriptor, made.manifest),))
    with closing(opened) as destination, closing(Progress(doing="copying", done="copied")) as progress:
        return put_image(destination, parcel, progress)
