"""From options to a store, a source and an image: what `mount`, `ls`, `cat` and `inspect` share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from imgfs.cli.progress import Progress
from imgfs.config import Environment
from imgfs.image import Image, Resolved, Trust, prepare, resolve
from imgfs.oci.descriptor import Platform
from imgfs.oci.policy import Policy
from imgfs.oci.reference import Reference, parse_reference
from imgfs.source import Source, Timeouts, open_source
from imgfs.store import Store


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image somebody asked for, and where to keep it."""

    reference: Reference
    platform: Platform
    options: argparse.Namespace
    environment: Environment
    store: Store

    def connect(self) -> Source:
        """Open its source anew."""
        return connect_to(self.reference, self.options, self.environment)

    def resolve(self) -> Resolved:
        """Its documents."""
        with closing(self.connect()) as source:
            return resolve(str(self.reference), source, self.store, self.platform)

    def prepare(self, up_to: str | None = None) -> Resolved:
        """Its documents, with layers indexed and merged; shows progress on a terminal.

        `up_to` names the last layer to count (`Resolved.up_to`).
        """
        with closing(self.connect()) as source, closing(Progress()) as progress:
            resolved = resolve(str(self.reference), source, self.store, self.platform)
            if up_to is not None:
                resolved = resolved.up_to(up_to)
            trust = Trust.of(self.reference, Policy(self.options.index))
            prepare(resolved, source, self.store, progress, trust)
            return resolved

    @contextmanager
    def open(self) -> Iterator[Image]:
        """Itself, prepared and open."""
        resolved = self.prepare()
        with closing(self.connect()) as source, Image(resolved, source, self.store) as image:
            yield image


def wanted(options: argparse.Namespace) -> Wanted:
    """What the options of an image's command ask for; raises ImgfsError."""
    environment = Environment.read()
    reference = parse_reference(options.image)  # before anything is made: the most likely mistake
    platform = Platform.from_text(options.platform) if options.platform else Platform.host()
    return Wanted(reference, platform, options, environment, open_store(options, environment))


def connect_to(reference: Reference, options: argparse.Namespace, environment: Environment) -> Source:
    """Open the source of an image as the options of its command say."""
    return open_source(
        reference,
        plain_http=options.plain_http or None,
        auth_files=environment.auth_files,
        timeouts=timeouts_of(options.read_timeout),
        ca_bundle=environment.ca_bundle,
    )


def timeouts_of(seconds: float | None) -> Timeouts:
    """How long to wait for a registry, if not as long as usual: each step no longer than the whole."""
    usual = Timeouts()
    if seconds is None:
        return usual
    steps = {"connect": min(usual.connect, seconds), "read": min(usual.read, seconds)}
    return replace(usual, deadline=seconds, **steps)


def open_store(options: argparse.Namespace, environment: Environment | None = None) -> Store:
    """The store that --store or the environment names."""
    environment = environment or Environment.read()
    return Store(Path(options.store).absolute() if options.store else environment.store_root)
