"""Which images are mounted from a store, as the daemons of their mounts say."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from imgfs.errors import InvalidImage, MountError
from imgfs.mounts.status_client import read_status
from imgfs.mounts.table import imgfs_mounts
from imgfs.oci.descriptor import Digest


def mounted_images(store: Path) -> dict[Digest, list[Digest]]:
    """Return the layers of each image that is mounted from the store in this directory, by its manifest.

    Mounts in other mount namespaces, and those whose daemons do not answer, are not among them: locks on
    their layers show what they use.
    """
    found: dict[Digest, list[Digest]] = {}
    for mount in imgfs_mounts():
        with suppress(MountError, InvalidImage):
            status = read_status(mount)
            if os.path.realpath(status.store) == os.path.realpath(store):
                found[Digest.parse(status.digest)] = [Digest.parse(layer.digest) for layer in status.layers]
    return found
