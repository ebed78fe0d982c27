"""imgfs index push: publish the index of an image beside it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from imgfs.cli.copy import send_to
from imgfs.cli.format import counted, size
from imgfs.cli.index import TOOL, indexes_beside, made_by_imgfs
from imgfs.cli.output import say
from imgfs.cli.progress import Progress
from imgfs.cli.selection import ImageSelection, select_image
from imgfs.errors import RegistryError, StoreError, UsageError
from imgfs.image.image import Image
from imgfs.image.resolve import Resolved
from imgfs.oci.artifact import Artifact, parse_artifact
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_INDEX, OCI_MANIFEST
from imgfs.oci.policy import Policy
from imgfs.oci.published import ARTIFACT_TYPE, CREATED, contents_of, listed_annotations
from imgfs.oci.reference import Reference
from imgfs.oci.soci import CONFIG_BODY, SOCI_V2, soci_index, with_soci_v2
from imgfs.publish import Publication, publication_of
from imgfs.registry.config.shortnames import parse_destination
from imgfs.store.store import Store
from imgfs.transport.copy import mountable, put_artifact, put_image
from imgfs.transport.destination import Destination, tag_of
from imgfs.transport.parcel import Document, Parcel, blob_in, blob_of, blob_with


def push(options: argparse.Namespace) -> int:
    """Publish the index of an image beside it."""
    if (options.soci == "v2") != bool(options.new):
        raise UsageError("index push: --soci v2 makes another image; say with --as what to call it")
    options.index = Policy.NONE  # what is published has been verified here, whatever others say
    image = select_image(options)
    with (
        image.open() as opened,
        image.store.workplace(".publish-") as made,
    ):
        published = _make(opened, image.store, made, options)
        with closing(send_to(image.reference, options, image.environment)) as destination:
            _put(published, opened, image, destination)
    return 0


def _make(image: Image, store: Store, directory: Path, options: argparse.Namespace) -> Publication:
    with closing(Progress(doing="packing", done="packed")) as progress:
        return publication_of(
            image,
            store,
            directory,
            repack=options.repack,
            soci=options.soci != "none",
            on_layer=progress.layer_ends,
        )


def _put(made: Publication, image: Image, named: ImageSelection, destination: Destination) -> None:
    """Push what has been made, then remove what it replaces, and say what it weighs."""
    subject = _subject(image.resolved, named.store)
    before = [one for one in indexes_beside(image.resolved, image.source) if made_by_imgfs(one)]
    new = [_put_imgfs(made, subject, named, destination)]
    if made.ztocs:
        ztocs = [
            made.ztocs[layer.digest] for layer in _distinct(image.resolved) if layer.digest in made.ztocs
        ]
        if named.options.soci == "v1":
            new.append(_put_soci(made, ztocs, subject, destination))
        else:
            say(_put_soci_v2(made, ztocs, image, named))
    for old in before:
        if old.digest not in [one.digest for one in new]:
            with suppress(RegistryError):  # a registry that does not delete: the newest counts
                destination.remove_artifact(old, image.resolved.digest)
    for line in _summary(made, image.resolved, new):
        say(line)


def _put_imgfs(
    made: Publication, subject: Descriptor, named: ImageSelection, destination: Destination
) -> Descriptor:
    seconds = named.environment.source_date
    when = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    created = {CREATED: when.strftime("%Y-%m-%dT%H:%M:%SZ")}
    annotations = {**created, **listed_annotations(made.published)}
    artifact = Artifact(ARTIFACT_TYPE, contents_of(made.published), subject, annotations=annotations)
    blobs = [blob_in(made.files[one.digest], one) for one in artifact.layers if one.data is None]
    with closing(Progress(doing="pushing", done="pushed")) as progress:
        return put_artifact(destination, artifact, blobs, progress)


def _put_soci(
    made: Publication, ztocs: list[Descriptor], subject: Descriptor, destination: Destination
) -> Descriptor:
    """Push a SOCI index of version 1, which refers to the image."""
    artifact = parse_artifact(soci_index(1, ztocs, subject=subject, tool=TOOL), OCI_MANIFEST)
    blobs = [blob_in(made.files[one.digest], one) for one in ztocs]
    blobs.append(blob_with(CONFIG_BODY, artifact.config.media_type))
    with closing(Progress(doing="pushing", done="pushed")) as progress:
        return put_artifact(destination, artifact, blobs, progress)


def _put_soci_v2(
    made: Publication, ztocs: list[Descriptor], image: Image, named: ImageSelection
) -> Reference:
    """Push an image that names its SOCI index, of version 2: the same layers in another manifest."""
    target = parse_destination(named.options.new)
    resolved, body = image.resolved, named.store.document(image.resolved.digest)
    if body is None:
        raise StoreError(f"{resolved.reference}: its documents have been removed meanwhile; try again")
    documents = with_soci_v2(body, ztocs, platform=resolved.config.platform, tool=TOOL)
    origin = mountable(named.reference, target)
    blobs = [blob_of(image.source, layer, mount_from=origin) for layer in resolved.manifest.layers]
    blobs += [blob_in(made.files[one.digest], one) for one in ztocs]
    configs = (blob_of(image.source, resolved.manifest.config), blob_with(CONFIG_BODY, SOCI_V2))
    named_last = [
        Document(Descriptor(media_type, Digest.of(text), len(text)), text)
        for media_type, text in zip((OCI_MANIFEST, OCI_MANIFEST, OCI_INDEX), documents, strict=True)
    ]
    with (
        closing(send_to(target, named.options, named.environment)) as destination,
        closing(Progress(doing="pushing", done="pushed")) as progress,
    ):
        digest = put_image(destination, Parcel(tuple(blobs), configs, tuple(named_last)), progress)
    return replace(target, tag=tag_of(target), digest=digest)


def _subject(resolved: Resolved, store: Store) -> Descriptor:
    """Return the image's manifest as an artifact's subject."""
    body = store.document(resolved.digest)
    if body is None:
        raise StoreError(f"{resolved.reference}: its documents have been removed meanwhile; try again")
    return Descriptor(resolved.media_type, resolved.digest, len(body))


def _distinct(resolved: Resolved) -> list[Descriptor]:
    """Return the image's layers in their order, each once."""
    return list({layer.digest: layer for layer in resolved.manifest.layers}.values())


def _summary(made: Publication, resolved: Resolved, new: list[Descriptor]) -> Iterator[str]:
    """Yield what was pushed, and what it costs those who use it."""
    whole = sum(layer.size for layer in _distinct(resolved))
    first = sum(layer.lean.size for layer in made.published.layers.values())
    first += made.published.tree.size if made.published.tree else 0
    soci = sum(ztoc.size for ztoc in made.ztocs.values())
    own = made.size() - soci
    yield f"{new[0].digest}  {size(own)} beside layers of {size(whole)} ({_share(own, whole)})"
    yield f"to be fetched before the first file is read: {size(first)} ({_share(first, whole)})"
    for one in new[1:]:
        yield f"{one.digest}  {size(soci)}, a SOCI index of {counted(len(made.ztocs), 'layer')}"
    for layer in _distinct(resolved):
        if layer.digest in made.unsaid:
            yield f"no zTOC for layer {layer.digest.short}: {made.unsaid[layer.digest]}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.2f} %"
