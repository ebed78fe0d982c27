"""An image, or the layers that a profile is replayed of, opened before the daemon is told what to mount.

The image: while its registry is asked whether it is still the one. The layers: while its tree is imported,
which takes long for many files.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from imgfs.errors import ImgfsError
from imgfs.image.image import Image, OpenLayers
from imgfs.mount.options import OpenOrder, ReplayOrder
from imgfs.mount.resume import connector
from imgfs.store.store import NO_PROFILE
from imgfs.transport.connect import DeferredSource

if TYPE_CHECKING:
    from imgfs.image.resolve import Resolved
    from imgfs.mount.resume import MountState
    from imgfs.transport.source import Source


class OpenedEarly(NamedTuple):
    """What is open, its source, and the descriptor of its statistics' memory (`content.stats_memory`)."""

    opened: Image | OpenLayers
    source: DeferredSource
    stats: int

    @classmethod
    def open(cls, order: OpenOrder | ReplayOrder, source: Source | None) -> OpenedEarly | None:
        """Open what an order names, by `source` if that is open already, and begin its replay.

        Return None if there is nothing to replay, or if it fails: the mount opens it again, and raises that.
        """
        profile, stats = None, -1
        try:
            if isinstance(order, ReplayOrder):
                from imgfs.image.profiles import profile_for  # here: most images are here, or have none

                is_wanted = order.profile != NO_PROFILE
                profile = profile_for(order.resolved, order.store, order.profile) if is_wanted else None
                if profile is None:
                    return None
            deferred = DeferredSource(connector(order.connect), source)
            stats = os.memfd_create("imgfs-stats")
            kind = OpenLayers if profile else Image
            opened = kind(order.resolved, deferred, order.store, order.trust, stats=stats)
        except (ImgfsError, OSError):
            if stats >= 0:
                os.close(stats)
            return None
        if profile:
            from imgfs.image.profiles import touches_without_tree

            opened.content.start(touches_without_tree(profile, opened.content))
        return cls(opened, deferred, stats)

    def image(self, state: MountState) -> Image:
        """Return the image to mount; its tree must be in the store by now. Raises StoreError."""
        if isinstance(self.opened, Image):
            return self.opened
        return Image(state.resolved, self.source, state.store, state.options.trust, opened=self.opened)

    def serves(self, resolved: Resolved) -> bool:
        """Return True if a mount of a prepared image may go on with this; else close it."""
        if resolved == self.opened.resolved and self.opened.is_current():
            return True
        self.close()
        return False

    def close(self) -> None:
        """Close all but the source, which nothing has been asked of unless a replay has begun."""
        self.opened.close()
        os.close(self.stats)
