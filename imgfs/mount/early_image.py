"""An image opened before it is known to be the one that is mounted: its registry is asked that meanwhile."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgfs.errors import ImgfsError
from imgfs.image.image import Image
from imgfs.mount.resume import connector
from imgfs.transport.connect import DeferredSource

if TYPE_CHECKING:
    from imgfs.image.resolve import Resolved
    from imgfs.mount.options import OpenOrder
    from imgfs.mount.resume import MountState
    from imgfs.transport.source import Source


@dataclass(frozen=True, slots=True)
class EarlyImage:
    """The image, its source, which nothing has been asked of, and the file of its statistics."""

    image: Image
    source: DeferredSource
    stats: int

    @classmethod
    def open(cls, order: OpenOrder, opened: Source | None) -> EarlyImage | None:
        """Open it; None if that fails. `opened` is the source, if it is open already."""
        source = DeferredSource(connector(order.connect), opened)
        stats = os.memfd_create("imgfs-stats")
        try:
            image = Image(order.resolved, source, order.store, order.trust, stats=stats)
        except (ImgfsError, OSError):  # raised again when it is opened to be mounted
            os.close(stats)
            return None
        return cls(image, source, stats)

    def image_of(self, _state: MountState) -> Image:
        """Return the image that a mount is of."""
        return self.image

    def serves(self, resolved: Resolved) -> bool:
        """Return True if it is the image to mount; else it is closed."""
        if resolved == self.image.resolved and self.image.is_current():
            return True
        self.close()
        return False

    def close(self) -> None:
        """Let go of it."""
        self.image.close()
        os.close(self.stats)
