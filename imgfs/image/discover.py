"""Discovery of published indexes: imgfs's artifact, and SOCI indexes of version 1 and 2; each looked up once.

`early_discovery` begins to look while the image's config is fetched, before it is certain that it is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import cached_property

from imgfs.errors import ImgfsError, LimitReached, Unavailable
from imgfs.image.trust import Trust
from imgfs.layer.origin import soci_origin
from imgfs.oci.artifact import parse_artifact
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_MANIFEST, Manifest
from imgfs.oci.published import Published, latest, listed_first, listed_tree, published_in
from imgfs.oci.soci import SOCI_V1, SociIndex, parse_soci_index, soci_v2_digest
from imgfs.parallel import begun
from imgfs.starting import try_thread
from imgfs.store.store import Store
from imgfs.transport.ahead import AheadRange
from imgfs.transport.source import UNKNOWN_SIZE, Source

SMALL = 256 << 10  # bytes of layers that are streamed in less time than a lookup of indexes takes
_LARGEST_AHEAD = 4 << 20  # bytes of a tree that is fetched beside the artifact: it is held in memory


def early_discovery(
    digest: Digest,
    manifest: Manifest,
    source: Source,
    store: Store,
    trust: Trust,
    on_first: Callable[[Sequence[AheadRange]], None],
) -> IndexDiscovery | None:
    """Begin the discovery for an image in a thread, while its config, which `prepare` needs, is fetched.

    None if the store shows that `prepare` will not need it. `on_first` is called, in that thread, with what
    is said to be read first of the image, as far as its layers are new to the store.
    """
    missing = {layer.digest: layer for layer in manifest.layers if store.layer(layer.digest).index is None}
    if store.tree(digest) is not None or sum(layer.size for layer in missing.values()) <= SMALL:
        return None
    discovery = IndexDiscovery(digest, manifest, source, trust)
    discovery.start(lambda ranges: on_first([each for each in ranges if each.blob.digest in missing]))
    return discovery


@contextmanager
def doing_without(what: str, warns: Callable[[str], None]) -> Iterator[None]:
    """Warn and go on without what is published with an image, if it is broken, missing or refused.

    A registry that answers with an error is not away, even if it asks to come back: one before it, or a cache
    of it, may have the image alone. Raises Unavailable where there was no answer.
    """
    try:
        yield
    except ImgfsError as error:
        if isinstance(error, Unavailable) and error.status is None:
            raise
        warns(f"{what} is not used: {error}")


_NOTHING = Published(None, {})


class IndexDiscovery:
    """The indexes published for the image of a manifest, as far as `trust` allows. Safe in threads.

    A broken one is treated as missing; `refused` has the reasons, for the user.
    """

    def __init__(self, digest: Digest, manifest: Manifest, source: Source, trust: Trust) -> None:
        self._digest = digest
        self._manifest = manifest
        self._source = source
        self.trust = trust
        self._lock = threading.RLock()
        self.refused: list[str] = []
        self._on_first: Callable[[Sequence[AheadRange]], None] | None = None
        self._ahead: tuple[Digest, Future[bytes]] | None = None  # a tree that a list names

    def start(self, on_first: Callable[[Sequence[AheadRange]], None]) -> None:
        """Begin to look for imgfs's own artifact and the tree in it, in threads that end with that.

        `on_first` is called with what its list says is read first of the image.
        """
        self._on_first = on_first

        def look() -> None:
            with suppress(ImgfsError):  # raised again where it is used
                _ = self.published

        try_thread(look, "imgfs-offers")

    @property
    def published(self) -> Published:
        """Return what imgfs has published for the image."""
        with self._lock:
            return self._published

    def with_bytes(self, tree: Descriptor) -> Descriptor:
        """Return the published tree with its bytes, if they are fetched ahead; waits for them."""
        if self._ahead and self._ahead[0] == tree.digest:
            with suppress(ImgfsError):  # then it is fetched as if nothing had been
                return replace(tree, data=self._ahead[1].result())
        return tree

    def ztoc(self, layer: Digest) -> tuple[Descriptor, str] | None:
        """Return a layer's zTOC, and who vouches for it (`layer.origin`)."""
        with self._lock:
            for ztocs, origin in ((self._soci_v2, self._soci_v2_voucher), (self._soci_v1, self.trust.origin)):
                if layer in ztocs:
                    return ztocs[layer], origin
        return None

    @cached_property
    def _published(self) -> Published:
        artifact = latest(self._referrers)
        if artifact is None:
            return _NOTHING
        if self._on_first:
            layers = self._manifest.layers
            first = [
                AheadRange(layers[number], *bounds) for number, *bounds in listed_first(artifact, layers)
            ]
            self._on_first(first)
            self._fetch_tree(artifact)
        with self._doing_without("the index published with the image"):
            return published_in(parse_artifact(self._source.document(artifact), artifact.media_type))
        return _NOTHING

    def _fetch_tree(self, artifact: Descriptor) -> None:
        """Begin to fetch the tree that an artifact has by its list, a round trip before it says so itself."""
        tree = listed_tree(artifact)
        if tree is None or tree.size > _LARGEST_AHEAD:
            return
        with suppress(LimitReached):
            self._ahead = tree.digest, begun(lambda: b"".join(self._source.blob(tree)), "imgfs-tree")

    @cached_property
    def _soci_v2(self) -> Mapping[Digest, Descriptor]:
        """The zTOCs of SOCI version 2."""
        if not self.trust.in_digests:
            return {}
        with self._doing_without("the SOCI index"):
            digest = soci_v2_digest(self._manifest)
            return self._soci(Descriptor(OCI_MANIFEST, digest, UNKNOWN_SIZE)) if digest else {}
        return {}

    @cached_property
    def _soci_v2_voucher(self) -> str:
        digest = soci_v2_digest(self._manifest) if self._soci_v2 else None
        return soci_origin(digest) if digest else ""

    @cached_property
    def _soci_v1(self) -> Mapping[Digest, Descriptor]:
        """The zTOCs of SOCI version 1."""
        index = next((referrer for referrer in self._referrers if referrer.artifact_type == SOCI_V1), None)
        return self._soci(index) if index else {}

    def _soci(self, descriptor: Descriptor) -> Mapping[Digest, Descriptor]:
        with self._doing_without("the SOCI index"):
            index: SociIndex = parse_soci_index(self._source.document(descriptor), descriptor.media_type)
            return index.layers
        return {}

    @cached_property
    def _referrers(self) -> list[Descriptor]:
        if not self.trust.in_registry:
            return []
        with self._doing_without("the list of what refers to the image"):
            return self._source.referrers(self._digest)
        return []

    def _doing_without(self, what: str) -> AbstractContextManager[None]:
        return doing_without(what, self.refused.append)
