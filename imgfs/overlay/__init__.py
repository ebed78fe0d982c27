"""The writable scratch: an upper directory, as overlayfs keeps it, over an image that does not change."""
