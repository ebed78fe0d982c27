"""imgfs copy, push: copy an image to a registry, an OCI layout or an archive."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from imgfs.cli.options import (
    IMAGE_HELP,
    Commands,
    add_command,
    registry_options,
)
from imgfs.cli.output import complain, say
from imgfs.errors import UsageError

if TYPE_CHECKING:
    from imgfs.config import Environment
    from imgfs.oci.reference import Reference
    from imgfs.transport.destination import Destination
    from imgfs.transport.source import Source


def add_copy(commands: Commands) -> None:
    """`imgfs copy`."""
    command = add_command(
        commands,
        "copy",
        copy,
        "copy an image to a registry, an OCI layout or an archive",
        """\
Copies what SRC names to DST byte for byte, so that it keeps its digest: an index with the images of all its
platforms, or with --platform only the image for that one. What DST has already is not sent again. Writes
DST and the digest to standard output.

An archive, oci-archive:FILE or docker-archive:FILE, is written beside FILE and renamed when it is complete:
what was in FILE is replaced. A docker-archive is for `docker load`: it has the image of one platform, its
layers unpacked, and no manifest, so no digest.

A Docker-format image gets OCI media types in a layout, where skopeo, podman and umoci read no others, and so
another digest; its layers and configs stay as they are. --preserve-digests, or a digest in DST, keeps it.

Examples:
  imgfs copy debian:12 registry.example.com/mirror/debian:12
  imgfs copy --platform linux/arm64 debian:12 oci:DIR:12
  imgfs copy oci:DIR:v1 registry.example.com/team/app:v1
  imgfs copy debian:12 docker-archive:debian.tar:debian:12
  imgfs copy docker-archive:app.tar registry.example.com/team/app:v1
""",
    )
    _transfer_options(command, IMAGE_HELP)
    command.add_argument(
        "--preserve-digests",
        action="store_true",
        help="write a Docker-format image into a layout as it is, under its own digest",
    )


def add_push(commands: Commands) -> None:
    """`imgfs push`."""
    command = add_command(
        commands,
        "push",
        push,
        "copy an image to a registry",
        """\
Copies what SRC names, an OCI layout for the most part, to the registry's repository that DST names. As
`imgfs copy`, which also writes layouts. DST may be an archive, too.

Examples:
  imgfs push oci:build:v1 registry.example.com/team/app:v1
  imgfs push registry.example.com/team/app:v1 registry.example.com/team/app:stable
""",
    )
    _transfer_options(command, f"what to push: {IMAGE_HELP}")
    command.set_defaults(preserve_digests=True)  # a registry takes both formats


def _transfer_options(command: argparse.ArgumentParser, source: str) -> None:
    command.add_argument("source", metavar="SRC", help=source)
    command.add_argument("destination", metavar="DST", help="the name it gets (tag: latest)")
    registry_options(command, platform="the image for this platform alone")


def copy(options: argparse.Namespace) -> int:
    """Copy an image from a registry or a layout to another."""
    from imgfs.registry.config.shortnames import parse_destination

    return _copy(options, parse_destination(options.destination))


def push(options: argparse.Namespace) -> int:
    """Copy an image to a registry."""
    from imgfs.oci.reference import LayoutReference
    from imgfs.registry.config.shortnames import parse_destination

    reference = parse_destination(options.destination)
    if isinstance(reference, LayoutReference):
        raise UsageError(f"{options.destination!r} is not in a registry; imgfs copy writes layouts")
    return _copy(options, reference)


def _copy(options: argparse.Namespace, target: Reference) -> int:
    from imgfs.cli.progress import Progress
    from imgfs.oci.descriptor import Platform
    from imgfs.oci.reference import RegistryReference, keeps_manifest
    from imgfs.transport.copy import mountable, put_image
    from imgfs.transport.destination import tag_of
    from imgfs.transport.parcel import convert_to_oci, image_of

    named = _select_source(options)
    is_layout = not isinstance(target, RegistryReference)
    converts = is_layout and not (target.digest or options.preserve_digests)
    platform = Platform.from_text(options.platform) if options.platform else None
    opened_source, opened_destination = _open(options, named, target)
    with (
        closing(opened_source) as source,
        closing(opened_destination) as destination,
        closing(Progress(doing="copying", done="copied")) as progress,
    ):
        parcel = image_of(source, platform, mount_from=mountable(named, target))
        before = parcel.documents[-1].descriptor.digest
        digest = put_image(destination, convert_to_oci(parcel) if converts else parcel, progress)
    if not keeps_manifest(target):
        say(target)
        return 0
    if digest != before:
        complain(f"converted to OCI media types: {before} is now {digest} (--preserve-digests keeps it)")
    say(replace(target, tag=tag_of(target), digest=digest))
    return 0


def _select_source(options: argparse.Namespace) -> Reference:
    """Return the image to copy; of a short name's candidates, the first that exists."""
    from imgfs.cli.connection import connect_to
    from imgfs.config import Environment
    from imgfs.registry.config.shortnames import candidates, first_found

    environment = Environment.read()

    def ask(reference: Reference) -> None:
        with closing(connect_to(reference, options, environment)) as source:
            source.resolve()

    return first_found(candidates(options.source, environment.registry_files.registries), ask)


def _open(options: argparse.Namespace, named: Reference, target: Reference) -> tuple[Source, Destination]:
    """Open both ends of the copy, as the options and the environment say."""
    from imgfs.cli.connection import connect_to
    from imgfs.config import Environment

    environment = Environment.read()
    return connect_to(named, options, environment), send_to(target, options, environment)


def send_to(reference: Reference, options: argparse.Namespace, environment: Environment) -> Destination:
    """Open the destination of an image as the options of its command say."""
    from imgfs.cli.connection import options_for, resolver_of, timeouts_of
    from imgfs.oci.reference import RegistryReference
    from imgfs.transport.open_destination import open_destination

    if isinstance(reference, RegistryReference):
        options = options_for(options, reference.registry)
    return open_destination(
        reference,
        resolver=resolver_of(options, environment),
        auth_files=environment.auth_sources,
        timeouts=timeouts_of(options.read_timeout),
        ca_bundle=environment.ca_bundle,
    )
