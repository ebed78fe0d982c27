"""Looking for indexes of others before it is certain that they will be asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgfs.image.trust import Trust
from imgfs.oci.descriptor import Digest
from imgfs.oci.image import Manifest
from imgfs.store.store import Store
from imgfs.transport.source import Source

if TYPE_CHECKING:
    from imgfs.image.offers import Offers

SMALL = 256 << 10  # bytes of layers that are streamed before anybody could say who has an index of them


class Lookahead:
    """Has what others offer for an image looked for while its config, which `prepare` needs, is fetched."""

    def __init__(self, source: Source, store: Store, trust: Trust) -> None:
        self._source = source
        self._store = store
        self._trust = trust
        self.offers: Offers | None = None

    def look(self, digest: Digest, manifest: Manifest) -> None:
        """Begin to look, in a thread, unless it can be seen that `prepare` will not ask."""
        store = self._store
        missing = sum(layer.size for layer in manifest.layers if store.layer(layer.digest).index is None)
        if store.tree(digest) is None and missing > SMALL:
            from imgfs.image.offers import Offers  # here: what is in the store needs none of it

            self.offers = Offers(digest, manifest, self._source, self._trust)
            self.offers.look_ahead()
