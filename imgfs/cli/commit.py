"""imgfs commit: an image out of a scratch."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

from imgfs.cli.output import say
from imgfs.cli.progress import Progress
from imgfs.cli.scratch import Changed, changed
from imgfs.cli.transfer import send_to
from imgfs.commit import BaseImage, Committed, Record
from imgfs.commit import commit as make_image
from imgfs.errors import StoreError
from imgfs.image.image import Image
from imgfs.oci.change import as_oci, parse_change, truncate
from imgfs.oci.descriptor import Digest
from imgfs.oci.reference import LayoutReference, Reference
from imgfs.overlay.diff import Diff
from imgfs.registry.config.local_names import parse_destination
from imgfs.transport.copy import Document, Parcel, blob_in, blob_of, blob_with, mountable, put_image
from imgfs.transport.destination import tag_of


def commit(options: argparse.Namespace) -> int:
    """Make an image of what a scratch shows, and put it somewhere."""
    target = parse_destination(options.new)
    changes_to_config = [parse_change(text) for text in options.change]
    found = changed(options)
    with (
        found.open() as image,
        found.changes(image) as changes,
        found.store.workplace(".commit-") as directory,
    ):
        made = make_image(
            changes.members(),
            _base(image, found, target),
            directory,
            record=_record(options, found, changes),
            changes=changes_to_config,
            codec=options.compression,
        )
        digest = _put(made, image, found, target)
    say(replace(target, tag=tag_of(target), digest=digest))
    return 0


def _base(image: Image, found: Changed, target: Reference) -> BaseImage:
    """The documents of the image below, those of its layers only that the scratch lies on."""
    resolved = image.resolved
    whole = found.store.document(resolved.digest)
    config = found.store.document(resolved.manifest.config.digest)
    if whole is None or config is None:
        raise StoreError(f"{resolved.reference}: its documents have been removed meanwhile; try again")
    manifest, config = truncate(whole, config, len(resolved.manifest.layers))
    return BaseImage(as_oci(manifest) if isinstance(target, LayoutReference) else manifest, config)


def _record(options: argparse.Namespace, found: Changed, changes: Diff) -> Record:
    """What the image says of its making: on the date of its newest file, for the same image each time."""
    newest = max((change.after.mtime_ns for change in changes if change.after), default=0) // 1_000_000_000
    date = newest if found.environment.source_date is None else found.environment.source_date
    return Record(
        created=datetime.fromtimestamp(min(max(date, 0), 253_402_300_799), UTC),  # until the year 9999
        created_by="imgfs commit",
        author=options.author,
        message=options.message,
    )


def _put(made: Committed, image: Image, found: Changed, target: Reference) -> Digest:
    opened = send_to(target, found.options, found.environment)
    origin = mountable(found.reference, target)
    layers = [blob_of(image.source, layer, mount_from=origin) for layer in image.resolved.manifest.layers]
    if made.layer and made.layer_path:
        layers.append(blob_in(made.layer_path, made.layer))
    config = blob_with(made.config, made.config_descriptor.media_type)
    parcel = Parcel(tuple(layers), (config,), (Document(made.manifest_descriptor, made.manifest),))
    with closing(opened) as destination, closing(Progress(doing="copying", done="copied")) as progress:
        return put_image(destination, parcel, progress)
