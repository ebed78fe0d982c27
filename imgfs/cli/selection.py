"""From options to a store, a source and an image: what `mount`, `ls`, `cat` and `inspect` share."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imgfs.cli.format import ago
from imgfs.cli.output import complain
from imgfs.cli.progress import Progress
from imgfs.config import Environment
from imgfs.errors import NotFound, Unavailable
from imgfs.image.discover import EarlyDiscovery
from imgfs.image.readiness import is_ready
from imgfs.image.resolve import Earlier, Resolved, resolve, resolve_earlier
from imgfs.image.trust import Trust
from imgfs.oci.descriptor import Digest, Platform
from imgfs.oci.image import Manifest
from imgfs.oci.policy import Policy
from imgfs.oci.reference import LayoutReference, Reference, RegistryReference
from imgfs.store.store import Store
from imgfs.transport.offline import OfflineSource
from imgfs.transport.source import Source, open_source

if TYPE_CHECKING:  # what prepares images and speaks HTTP takes long to load: where it is needed
    from imgfs.image.image import Image
    from imgfs.image.indexing import PrepareReporter
    from imgfs.registry.config.resolver import Resolver
    from imgfs.registry.retry import Timeouts

_STEPS = 3  # that may fail one after the other before a read does
_HURRY = 3.0  # seconds for each step of asking a registry that something can stand in for


class _Found(NamedTuple):
    """An image's documents; if its registry `is_away`, as they were the last time."""

    resolved: Resolved
    is_away: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image somebody asked for, and where to keep it."""

    reference: Reference
    platform: Platform
    options: argparse.Namespace
    environment: Environment
    store: Store

    @property
    def is_offline(self) -> bool:
        """Whether its registry must not be asked."""
        return bool(self.options.offline) and isinstance(self.reference, RegistryReference)

    def connect(self, *, hurried: bool = False) -> Source:
        """Open its source anew; a `hurried` one is asked once, and not for long."""
        if self.is_offline and isinstance(self.reference, RegistryReference):
            return OfflineSource(self.reference)
        return connect_to(self.reference, self.options, self.environment, hurried=hurried)

    def look_for(self) -> None:
        """Raise NotFound if it is not there, or, with --offline, was never asked for."""
        earlier = self._earlier()
        if self.is_offline:
            if earlier is None:
                raise NotFound(f"{self.reference} is not in the store")
            return
        try:
            with closing(self.connect(hurried=earlier is not None)) as source:
                named = source.resolve()
                if self.reference.pinned:  # then resolving asks nobody
                    source.document(named)
        except Unavailable:
            if earlier is None:
                raise

    def resolve(self) -> Resolved:
        """Its documents."""
        with closing(self.connect()) as source, closing(Progress()) as progress:
            return self.found(source, progress).resolved

    def prepare(self, up_to: str | None = None) -> Resolved:
        """Its documents, with layers indexed and merged; shows progress on a terminal.

        `up_to` names the last layer to count (`Resolved.up_to`).
        """
        with ExitStack() as stack:
            progress = stack.enter_context(closing(Progress()))
            source = stack.enter_context(closing(self.connect()))
            lookahead = EarlyDiscovery(source, self.store, self.trust)
            resolved, is_away = self._find(source, progress, lookahead.look)
            if is_away:
                source = stack.enter_context(closing(self.connect(hurried=True)))
            if up_to is not None:
                resolved = resolved.up_to(up_to)
            if not is_ready(resolved, self.store, self.trust):
                from imgfs.image.prepare import prepare

                with needing_it() if is_away else nullcontext():
                    prepare(resolved, source, self.store, progress, self.trust, lookahead.discovery)
            return resolved

    def guess(self) -> Resolved | None:
        """What it meant the last time, if that is ready in the store, and its registry has to be asked."""
        earlier = None if self.is_offline else self._earlier()
        ready = earlier is not None and is_ready(earlier.resolved, self.store, self.trust)
        return earlier.resolved if earlier and ready else None

    @property
    def trust(self) -> Trust:
        """Which indexes of others count."""
        return Trust.of(self.reference, Policy(self.options.index))

    def found(self, source: Source, reporter: PrepareReporter) -> _Found:
        """Its documents; if its registry is away, those of earlier, and said to be so."""
        return self._find(source, reporter, lambda digest, manifest: None)  # noqa: ARG005

    def _find(
        self, source: Source, reporter: PrepareReporter, meanwhile: Callable[[Digest, Manifest], None]
    ) -> _Found:
        """Its documents; those of earlier, and said to be so, if nothing else can be had of a tag."""
        earlier = self._earlier()
        find = partial(resolve, str(self.reference), source, self.store, self.platform, meanwhile=meanwhile)
        if earlier is None:
            return _Found(find(), is_away=False)
        try:
            with closing(self.connect(hurried=True)) as hurried:
                named = hurried.resolve()
            return _Found(find(named=named), is_away=False)
        except Unavailable as error:
            when = f"{self.reference} as resolved {ago(time.time() - earlier.moment)}"
            if self.is_offline:
                complain(f"offline: using {when}")
            else:
                reporter.warns(f"its registry cannot be reached ({error}); using {when}")
            return _Found(earlier.resolved, is_away=not self.is_offline)

    def _earlier(self) -> Earlier | None:
        """What to fall back on; nothing for a digest, nor for a command about the registry itself."""
        reference = self.reference
        if self.options.offline is None or reference.pinned or not isinstance(reference, RegistryReference):
            return None
        return resolve_earlier(reference, self.store, self.platform)

    @contextmanager
    def open(self) -> Iterator[Image]:
        """Itself, prepared and open."""
        from imgfs.image.image import Image

        resolved = self.prepare()
        with closing(self.connect()) as source, Image(resolved, source, self.store, self.trust) as image:
            yield image


def wanted(options: argparse.Namespace, environment: Environment | None = None) -> Wanted:
    """What the options of an image's command ask for; raises ImgfsError."""
    from imgfs.registry.config.shortnames import candidates, first_found

    environment = environment or Environment.read()
    # before anything is made: the most likely mistake
    meant = candidates(options.image, environment.registry_files.registries)
    platform = Platform.from_text(options.platform) if options.platform else Platform.host()
    first = Wanted(meant[0], platform, options, environment, open_store(options, environment))
    return replace(first, reference=first_found(meant, lambda one: replace(first, reference=one).look_for()))


def connect_to(
    reference: Reference, options: argparse.Namespace, environment: Environment, *, hurried: bool = False
) -> Source:
    """Open the source of an image as the options of its command say; `hurried`: for one short attempt."""
    if isinstance(reference, LayoutReference):
        return open_source(reference)
    return open_source(
        reference,
        resolver=places_of(options, environment),
        auth_files=environment.auth_sources,
        timeouts=timeouts_of(options.read_timeout, hurried=hurried),
        ca_bundle=environment.ca_bundle,
    )


def places_of(options: argparse.Namespace, environment: Environment) -> Resolver:
    """Where registries are, as the options and the machine's files say."""
    from imgfs.registry.config.resolver import Resolver, TlsOptions

    ca_file = Path(options.tls_ca).absolute() if options.tls_ca else None
    asked = TlsOptions(plain_http=options.plain_http or None, insecure=options.insecure, ca_file=ca_file)
    return Resolver(environment.registry_files, asked)


def timeouts_of(seconds: float | None, *, hurried: bool = False) -> Timeouts:
    """How long to wait for a registry, if not as long as usual: each step no longer than the whole."""
    from imgfs.registry.retry import Timeouts

    usual = Timeouts()
    if hurried:
        wait = min(_HURRY, seconds or _HURRY)
        return Timeouts(connect=wait, read=wait, deadline=wait, tries=1)
    if seconds is None:
        return usual
    connect, read = min(usual.connect, seconds), min(usual.read, seconds / _STEPS)
    return replace(usual, connect=connect, read=read, deadline=seconds, helper=min(usual.helper, seconds))


@contextmanager
def needing_it() -> Iterator[None]:
    """Say that a registry which is away would have been needed after all."""
    try:
        yield
    except Unavailable as error:
        raise Unavailable(
            f"not all of the image is in the store, and its registry cannot be reached: {error}"
        ) from error


def open_store(options: argparse.Namespace, environment: Environment | None = None) -> Store:
    """The store that --store or the environment names."""
    environment = environment or Environment.read()
    return Store(Path(options.store).absolute() if options.store else environment.store_root)
