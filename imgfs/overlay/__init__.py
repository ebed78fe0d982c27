"""The writable scratch: an upper directory, as overlayfs keeps it, over an image that does not change."""

from __future__ import annotations

from imgfs.overlay.overlay import Overlay
from imgfs.overlay.upper import Upper

__all__ = ["Overlay", "Upper"]
