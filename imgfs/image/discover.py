"""What others have found out about an image's layers: looked for once, when it is needed.

Looking for indexes of others before it is certain that they will be asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from imgfs.errors import ImgfsError, Unavailable
from imgfs.image.trust import Trust
from imgfs.layer.origin import soci_origin
from imgfs.oci.artifact import parse_artifact
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_MANIFEST, Manifest
from imgfs.oci.published import Published, latest, published_in
from imgfs.oci.soci import SOCI_V1, SociIndex, parse_soci_index, soci_v2_digest
from imgfs.store.store import Store
from imgfs.transport.source import UNKNOWN_SIZE, Source

if TYPE_CHECKING:
    pass  # MOVED

SMALL = 256 << 10  # bytes of layers that are streamed before anybody could say who has an index of them


class EarlyDiscovery:
    """Has what others offer for an image looked for while its config, which `prepare` needs, is fetched."""

    def __init__(self, source: Source, store: Store, trust: Trust) -> None:
        self._source = source
        self._store = store
        self._trust = trust
        self.discovery: IndexDiscovery | None = None

    def look(self, digest: Digest, manifest: Manifest) -> None:
        """Begin to look, in a thread, unless it can be seen that `prepare` will not ask."""
        store = self._store
        missing = sum(layer.size for layer in manifest.layers if store.layer(layer.digest).index is None)
        if store.tree(digest) is None and missing > SMALL:
            # MOVED

            self.discovery = IndexDiscovery(digest, manifest, self._source, self._trust)
            self.discovery.start()


_NOTHING = Published(None, {})


class IndexDiscovery:
    """The indexes of others for the image of a manifest, as far as `trust` goes. Safe in threads.

    An offer that is broken is as good as none: why is in `refused`, for the user.
    """

    def __init__(self, digest: Digest, manifest: Manifest, source: Source, trust: Trust) -> None:
        self._digest = digest
        self._manifest = manifest
        self._source = source
        self.trust = trust
        self._lock = threading.RLock()
        self.refused: list[str] = []

    def start(self) -> None:
        """Begin to look for what imgfs has published before that is asked for, in a thread that ends then."""

        def look() -> None:
            with suppress(ImgfsError):  # who asks for it will hear
                _ = self.published

        threading.Thread(target=look, name="imgfs-offers", daemon=True).start()

    @property
    def published(self) -> Published:
        """What imgfs has published of the image."""
        with self._lock:
            return self._published

    def ztoc(self, layer: Digest) -> tuple[Descriptor, str] | None:
        """A layer's zTOC, and who vouches for it (`layer.origin`)."""
        with self._lock:
            for ztocs, origin in ((self._bound, self._by_manifest), (self._referring, self.trust.origin)):
                if layer in ztocs:
                    return ztocs[layer], origin
        return None

    @cached_property
    def _published(self) -> Published:
        found = latest(self._referrers)
        if found is None:
            return _NOTHING
        try:
            return published_in(parse_artifact(self._source.document(found), found.media_type))
        except Unavailable:
            raise
        except ImgfsError as error:
            self._refuse("the index published with the image", error)
            return _NOTHING

    @cached_property
    def _bound(self) -> Mapping[Digest, Descriptor]:
        """The zTOCs of SOCI version 2."""
        if not self.trust.in_digests:
            return {}
        try:
            digest = soci_v2_digest(self._manifest)
        except ImgfsError as error:
            self._refuse("the SOCI index", error)
            return {}
        return self._soci(Descriptor(OCI_MANIFEST, digest, UNKNOWN_SIZE)) if digest else {}

    @cached_property
    def _by_manifest(self) -> str:
        digest = soci_v2_digest(self._manifest) if self._bound else None
        return soci_origin(digest) if digest else ""

    @cached_property
    def _referring(self) -> Mapping[Digest, Descriptor]:
        """The zTOCs of SOCI version 1."""
        found = next((one for one in self._referrers if one.artifact_type == SOCI_V1), None)
        return self._soci(found) if found else {}

    def _soci(self, descriptor: Descriptor) -> Mapping[Digest, Descriptor]:
        try:
            index: SociIndex = parse_soci_index(self._source.document(descriptor), descriptor.media_type)
        except Unavailable:
            raise
        except ImgfsError as error:
            self._refuse("the SOCI index", error)
            return {}
        return index.layers

    @cached_property
    def _referrers(self) -> list[Descriptor]:
        if not self.trust.in_registry:
            return []
        try:
            return self._source.referrers(self._digest)
        except Unavailable:
            raise
        except ImgfsError as error:
            self._refuse("the list of what refers to the image", error)
            return []

    def _refuse(self, what: str, error: ImgfsError) -> None:
        self.refused.append(f"{what} is not used: {error}")
