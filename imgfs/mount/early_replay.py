"""Replay of an image's profile while its tree is still imported, which takes long for many files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgfs.errors import ImgfsError
from imgfs.image.image import Image, OpenLayers
from imgfs.image.profiles import profile_for, touches_without_tree
from imgfs.mount.options import ReplayOrder
from imgfs.mount.resume import connector
from imgfs.store.store import NO_PROFILE
from imgfs.transport.connect import DeferredSource

if TYPE_CHECKING:
    from imgfs.image.resolve import Resolved
    from imgfs.mount.resume import MountState
    from imgfs.transport.source import Source


@dataclass(frozen=True, slots=True)
class EarlyReplay:
    """A replay under way: the layers that it brings, where from, and their statistics' file."""

    layers: OpenLayers
    source: DeferredSource
    stats: int

    @classmethod
    def begin(cls, order: ReplayOrder, opened: Source | None) -> EarlyReplay | None:
        """Begin it; None if there is nothing to replay. `opened` is the source, if it is open already."""
        if order.profile == NO_PROFILE:
            return None
        stats = -1
        try:
            profile = profile_for(order.resolved, order.store, order.profile)
            if profile is None:
                return None
            source = DeferredSource(connector(order.connect), opened)
            stats = os.memfd_create("imgfs-stats")
            layers = OpenLayers(order.resolved, source, order.store, order.trust, stats)
        except (ImgfsError, OSError):  # raised again where the image is opened
            if stats >= 0:
                os.close(stats)
            return None
        layers.content.start(touches_without_tree(profile, layers.content))
        return cls(layers, source, stats)

    def image_of(self, state: MountState) -> Image:
        """Return the image that a mount is of, once its tree is here. Raises StoreError."""
        return Image(state.resolved, self.source, state.store, state.options.trust, opened=self.layers)

    def serves(self, resolved: Resolved) -> bool:
        """Return True if a mount of an image, prepared by now, may go on with this; else it is closed."""
        if resolved == self.layers.resolved and self.layers.are_current():
            return True
        self.close()
        return False

    def close(self) -> None:
        """End it."""
        self.layers.close()
        os.close(self.stats)
