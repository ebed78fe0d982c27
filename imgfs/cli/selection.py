"""Select an image on the command line: from options to a store, a source and an image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from imgfs.cli.connection import Connection, connect_to, connect_to_registry
from imgfs.cli.format import ago
from imgfs.cli.options import open_store
from imgfs.cli.progress import Progress
from imgfs.config import Environment
from imgfs.errors import NotFound, Unavailable
from imgfs.image.resolve import Earlier, Resolved, resolve, resolve_earlier
from imgfs.image.trust import Trust, is_ready
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.image import Manifest
from imgfs.oci.policy import Policy
from imgfs.oci.reference import EngineReference, Reference, RegistryReference
from imgfs.oci.select import is_for, runs
from imgfs.starting import try_thread
from imgfs.store.store import Store
from imgfs.transport.connect import DeferredSource, OfflineSource
from imgfs.transport.source import Source

if TYPE_CHECKING:  # what prepares images and speaks HTTP takes long to load: where it is needed
    import argparse

    from imgfs.cli.first_request import FirstRequest
    from imgfs.cli.tag_question import TagQuestion
    from imgfs.image.discover import IndexDiscovery
    from imgfs.image.image import Image
    from imgfs.mount.daemon import Mounting
    from imgfs.transport.ahead import AheadRange

_AT_ONCE = 3  # requests for an image's config and, by API and by tag, for what refers to it


class _Resolution(NamedTuple):
    """An image's documents; if its registry `is_away`, as it was resolved last."""

    resolved: Resolved
    is_away: bool


@dataclass(frozen=True, slots=True)
class ImageSelection:
    """An image selected on the command line, and its store.

    One that `must_run` is refused if this machine cannot run it.
    """

    reference: Reference
    platform: Platform
    options: argparse.Namespace
    environment: Environment
    store: Store
    must_run: bool = False
    progress: Callable[[], Progress] = Progress  # what it is reported by

    @property
    def is_offline(self) -> bool:
        """Return True if the registry must not be asked."""
        return bool(self.options.offline) and isinstance(self.reference, RegistryReference)

    def connect(self, *, hurried: bool = False) -> Source:
        """Open a new connection to its source; `hurried`: with one short attempt."""
        if self.is_offline and isinstance(self.reference, RegistryReference):
            return OfflineSource(self.reference)
        return connect_to(self.reference, self.options, self.environment, hurried=hurried)

    def check_exists(self) -> None:
        """Raise NotFound if it does not exist, or, with --offline, was never resolved here."""
        earlier = self._last_resolved()
        if self.is_offline:
            if earlier is None:
                raise NotFound(f"{self.reference} is not in the store")
            return
        try:
            with closing(self.connect(hurried=earlier is not None)) as source:
                named = source.resolve()
                if self.reference.pinned:  # then resolving sends no request
                    source.document(named)
        except Unavailable:
            if earlier is None:
                raise

    def resolve(self) -> Resolved:
        """Resolve it to its documents."""
        with closing(self.connect()) as source, closing(self.progress()) as progress:
            return self.resolve_with(source, progress).resolved

    def prepare(
        self,
        up_to: str | None = None,
        *,
        lean: bool = True,
        mounting: Mounting | None = None,
        replay: str | None = None,
        question: TagQuestion | None = None,
        ready: Resolved | None = None,
        first: FirstRequest | None = None,
    ) -> Resolved:
        """Resolve it, by what has been asked `first`, index its layers and merge them; shows progress.

        `up_to` names the last layer to count (`Resolved.up_to`). Unless `lean`, each layer's index has its
        entries afterwards, although the tree has all that a mount needs. If it is not ready, the daemon of
        `mounting` is told of the source as soon as that is known, again once the config has come, and of the
        spans: then it may begin to replay what `replay` names. What the tag was resolved to last it opens
        while the registry is asked, by `question` if there is one; what is `ready` is open already.
        """
        with ExitStack() as stack:
            stack.callback(question.end if question else lambda: None)
            progress = stack.enter_context(closing(self.progress()))
            source: Source = first.source if first else DeferredSource(self.connect)
            stack.enter_context(closing(source))
            discovery: IndexDiscovery | None = None
            early = _Early(self, mounting, question, ready, replay, lean=lean, is_part=up_to is not None)
            if not first and not self.store.resolved(str(self.reference)):
                early.expect_more(source)

            def look(digest: Digest, manifest: Manifest) -> None:
                nonlocal discovery
                if self.store.tree(digest) is None:  # else nothing of this need be loaded
                    early.tell_source(source)
                    discovery = self._discovery(digest, manifest, source, early)

            resolved, is_away = self._resolve(source, progress, look, early.ask)
            if resolved == early.ready:
                return resolved
            if is_away:
                source = stack.enter_context(closing(self.connect(hurried=True)))
            resolved = resolved if up_to is None else resolved.up_to(up_to)
            if not is_ready(resolved, self.store, self.trust, lean=lean):
                from imgfs.image.prepare import prepare

                if not is_away:
                    early.tell_source(source)
                preparing = partial(prepare, lean=lean, on_spans=partial(early.replay, resolved))
                with requiring_registry() if is_away else nullcontext():
                    preparing(resolved, source, self.store, progress, self.trust, discovery)
            return resolved

    def _discovery(
        self, digest: Digest, manifest: Manifest, source: Source, early: _Early
    ) -> IndexDiscovery | None:
        """Begin to ask what indexes there are of an image, and load what imports them; None if not needed."""
        from imgfs.image.discover import early_discovery

        begun = early_discovery(digest, manifest, source, self.store, self.trust, early.fetch_ahead)
        if begun:
            try_thread(_load_preparation, "imgfs-load")
        return begun

    def prepare_states(self, resolved: Resolved) -> None:
        """Merge the trees of a prepared image as it was after each of its layers; shows progress."""
        parts = [resolved.up_to(str(number + 1)) for number in range(len(resolved.manifest.layers))]
        missing = [part for part in parts if not is_ready(part, self.store, self.trust)]
        if missing:
            from imgfs.image.prepare import prepare

            with closing(Progress()) as progress, closing(self.connect()) as source:
                for part in missing:
                    prepare(part, source, self.store, progress, self.trust)

    def open_early(self, mounting: Mounting, question: TagQuestion | None) -> Resolved | None:
        """Have a daemon open what the tag was resolved to last, and return it: `question` is to confirm it.

        None if there is no such image, or if it is not ready.
        """
        earlier = self._last_resolved()
        if earlier is None or not is_ready(earlier.resolved, self.store, self.trust):
            return None
        self.begin(question)
        mounting.open_early(earlier.resolved, self.connect, self.store, self.trust)
        return earlier.resolved

    def begin(self, question: TagQuestion | None) -> None:
        """Have a question, if there is one, ask the registry what the tag names now."""
        reference = self.reference
        if question and isinstance(reference, RegistryReference) and not self.is_offline:
            how = Connection.of(self.options, reference.registry)
            question.begin(partial(connect_to_registry, reference, how, self.environment, hurried=True))

    @property
    def trust(self) -> Trust:
        """Return which published indexes are used."""
        return Trust.of(self.reference, Policy(self.options.index))

    def resolve_with(self, source: Source, reporter: Progress) -> _Resolution:
        """Resolve it; if its registry is away, as it was resolved last, with a warning."""
        return self._resolve(source, reporter, lambda digest, manifest: None, self.ask)  # noqa: ARG005

    def _resolve(
        self,
        source: Source,
        reporter: Progress,
        meanwhile: Callable[[Digest, Manifest], None],
        ask: Callable[[Resolved], Descriptor],
    ) -> _Resolution:
        """Resolve it, and see whether it is for the platform that is wanted."""
        resolution = self._resolve_documents(reporter, source, meanwhile, ask)
        platform = resolution.resolved.config.platform
        if self.must_run:
            from imgfs.runtime.emulation import check_platform

            check_platform(platform, Platform.host())
        if self.options.platform and not is_for(self.platform, platform):
            reporter.warns(f"the image is for {platform}, not for {self.platform} as asked")
        elif not (self.options.platform or self.must_run or runs(self.platform, platform)):
            reporter.warns(f"the image is for {platform}, and this machine is {self.platform}")
        return resolution

    def _resolve_documents(
        self,
        reporter: Progress,
        source: Source,
        meanwhile: Callable[[Digest, Manifest], None],
        ask: Callable[[Resolved], Descriptor],
    ) -> _Resolution:
        """Resolve it; a tag whose registry is away as it was resolved last, with a warning.

        `ask` returns what the tag names now; it is given what that was resolved to last.
        """
        self._have_exported()
        earlier = self._last_resolved()
        resolve_now = partial(
            resolve, str(self.reference), source, self.store, self.platform, meanwhile=meanwhile
        )
        if earlier is None:
            return _Resolution(resolve_now(), is_away=False)
        try:
            named = ask(earlier.resolved)
            if named.digest != earlier.resolved.named:
                return _Resolution(resolve_now(named=named), is_away=False)
            same = earlier.resolved
            meanwhile(same.digest, same.manifest)
            self.store.put_resolution(same.reference, same.named, same.digest)
            return _Resolution(same, is_away=False)
        except Unavailable as error:
            when = f"{self.reference} as resolved {ago(time.time() - earlier.moment)}"
            if self.is_offline:
                reporter.notes(f"offline: using {when}")
            else:
                reporter.warns(f"its registry cannot be reached ({error}); using {when}")
            return _Resolution(earlier.resolved, is_away=not self.is_offline)

    def ask(self, _earlier: Resolved | None = None) -> Descriptor:
        """Ask the registry, by one short attempt, what the tag names now."""
        with closing(self.connect(hurried=True)) as hurried:
            return hurried.resolve()

    def _have_exported(self) -> None:
        """Have an engine without ranges export the image, if it is not here, and show how far that is."""
        reference = self.reference
        if not isinstance(reference, EngineReference) or self.progress is not Progress:
            return
        from imgfs.transport.open_engine import export_first

        with (
            closing(self.connect()) as source,
            closing(Progress(doing="exporting", done="exported")) as progress,
        ):
            export_first(source, progress)

    def _last_resolved(self) -> Earlier | None:
        """Return what the tag resolved to last; None for a digest, and for commands about the registry."""
        reference = self.reference
        if self.options.offline is None or reference.pinned or not isinstance(reference, RegistryReference):
            return None
        return resolve_earlier(reference, self.store, self.platform)

    @contextmanager
    def open(self) -> Iterator[Image]:
        """Prepare and open it."""
        from imgfs.image.image import Image

        resolved = self.prepare()
        with closing(self.connect()) as source, Image(resolved, source, self.store, self.trust) as image:
            yield image


class _Early:
    """What a mount's daemon is told while its image is prepared, of which it replays a `profile`.

    While a registry is asked about a tag, it opens what that was resolved to last: `ready`, if it is. That is
    all of an image, so nothing where one `is_part`.
    """

    def __init__(
        self,
        image: ImageSelection,
        mounting: Mounting | None,
        question: TagQuestion | None,
        ready: Resolved | None,
        profile: str | None,
        *,
        lean: bool,
        is_part: bool,
    ) -> None:
        self._image = image
        self._mounting = mounting
        self._question = question
        self._profile = profile
        self._lean = lean
        self._is_part = is_part
        self.ready = ready

    def expect_more(self, source: Source) -> None:
        """Ask nothing by another process, as this one will have to know more than it would."""
        if self._question:
            self._question.end()
        if self._image.trust.in_registry:
            source.expect(_AT_ONCE)

    def tell_source(self, source: Source) -> None:
        """Have it get ready to fetch."""
        if self._mounting:
            self._mounting.expect_fetches(self._image.connect, source)

    def fetch_ahead(self, ranges: Sequence[AheadRange]) -> None:
        """Have it fetch what the usual profile begins with, unless another is to be replayed."""
        if self._mounting and ranges and self._profile is None and not self._is_part:
            self._mounting.fetch_ahead(ranges)

    def replay(self, resolved: Resolved) -> None:
        """Have it replay the profile."""
        image = self._image
        if self._mounting:
            self._mounting.replay_early(resolved, image.connect, image.store, image.trust, self._profile)

    def ask(self, earlier: Resolved) -> Descriptor:
        """Return what the tag names now. Raises ImgfsError."""
        image, question = self._image, self._question
        if image.is_offline or not isinstance(image.reference, RegistryReference):
            return image.ask()
        image.begin(question)
        mounting = None if self._is_part else self._mounting
        is_known = earlier == self.ready
        if mounting and not is_known and is_ready(earlier, image.store, image.trust, lean=self._lean):
            mounting.open_early(earlier, image.connect, image.store, image.trust)
            self.ready = earlier
        return (question and question.answer()) or image.ask()


def select_image(options: argparse.Namespace, environment: Environment | None = None) -> ImageSelection:
    """Select the image that the options name; raises ImgfsError."""
    from imgfs.registry.config.shortnames import candidates, first_found

    environment = environment or Environment.read()
    # before anything is created: a wrong name is the most likely mistake
    references = candidates(options.image, environment.registry_files.registries)
    platform = Platform.from_text(options.platform) if options.platform else Platform.host()
    first = ImageSelection(references[0], platform, options, environment, open_store(options, environment))
    return replace(
        first,
        reference=first_found(
            references, lambda reference: replace(first, reference=reference).check_exists()
        ),
    )


def _load_preparation() -> None:
    """Load what prepares an image, while its config is fetched."""
    import imgfs.image.prepare  # noqa: F401


@contextmanager
def requiring_registry() -> Iterator[None]:
    """Turn Unavailable into "not all of the image is in the store, and its registry cannot be reached"."""
    try:
        yield
    except Unavailable as error:
        raise Unavailable(
            f"not all of the image is in the store, and its registry cannot be reached: {error}"
        ) from error
