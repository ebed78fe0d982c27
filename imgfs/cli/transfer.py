"""imgfs copy, push."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import replace

from imgfs.cli.images import connect_to, places_of, timeouts_of
from imgfs.cli.output import complain, say
from imgfs.cli.progress import Progress
from imgfs.config import Environment
from imgfs.errors import UsageError
from imgfs.oci.descriptor import Platform
from imgfs.oci.reference import LayoutReference, Reference, RegistryReference
from imgfs.registry.config.local_names import parse_destination
from imgfs.registry.config.shortnames import candidates, first_found
from imgfs.transport.convert import convert_to_oci
from imgfs.transport.copy import image_of, mountable, put_image
from imgfs.transport.destination import Destination, open_destination, tag_of
from imgfs.transport.source import Source


def copy(options: argparse.Namespace) -> int:
    """Copy an image from a registry or a layout to another."""
    return _copy(options, parse_destination(options.destination))


def push(options: argparse.Namespace) -> int:
    """Copy an image to a registry."""
    reference = parse_destination(options.destination)
    if not isinstance(reference, RegistryReference):
        raise UsageError(f"{options.destination!r} is no registry's; to write a layout there is imgfs copy")
    return _copy(options, reference)


def _copy(options: argparse.Namespace, target: Reference) -> int:
    named = _found(options)
    converts = isinstance(target, LayoutReference) and not (target.digest or options.preserve_digests)
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
    if digest != before:
        complain(f"converted to OCI media types: {before} is now {digest} (--preserve-digests keeps it)")
    say(replace(target, tag=tag_of(target), digest=digest))
    return 0


def _found(options: argparse.Namespace) -> Reference:
    """The image to copy; of a short name that may mean several, the first that is there."""
    environment = Environment.read()

    def ask(reference: Reference) -> None:
        with closing(connect_to(reference, options, environment)) as source:
            source.resolve()

    return first_found(candidates(options.source, environment.registry_files.registries), ask)


def _open(options: argparse.Namespace, named: Reference, target: Reference) -> tuple[Source, Destination]:
    """Both ends of the copy, as the options and the environment say."""
    environment = Environment.read()
    return connect_to(named, options, environment), send_to(target, options, environment)


def send_to(reference: Reference, options: argparse.Namespace, environment: Environment) -> Destination:
    """Open the destination of an image as the options of its command say."""
    return open_destination(
        reference,
        resolver=places_of(options, environment),
        auth_files=environment.auth_sources,
        timeouts=timeouts_of(options.read_timeout),
        ca_bundle=environment.ca_bundle,
    )
