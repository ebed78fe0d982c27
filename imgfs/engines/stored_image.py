"""What an engine has removed, removed from the store, too: but not what others use by the same name."""

from __future__ import annotations

import logging
import math

from imgfs.errors import StoreError
from imgfs.maintenance.gc import ended_logs, refuse_if_used, remove_unreachable
from imgfs.mounts.table import imgfs_mounts
from imgfs.oci.descriptor import Digest
from imgfs.store.store import Store

log = logging.getLogger(__name__)


def remove_image(reference: str, manifest: Digest, store: Store) -> bool:
    """Remove an image, and the layers that only it has; False if it is mounted still. Raises StoreError.

    What is mounted by another reference has that in the store, which keeps what it needs. Of mounts that are
    not visible here locks tell.
    """
    if any(mount.name == reference for mount in imgfs_mounts()):
        return False
    found = [each for each in store.resolved(reference) if each.manifest == manifest]
    try:
        for resolution in found:
            refuse_if_used(resolution, store)
    except StoreError as error:
        log.debug("stays in the store: %s", error)
        return False
    for resolution in found:
        store.forget(resolution)
    remove_unreachable(store, force=False)
    for log_file, _ in ended_logs(store, math.inf, manifest.short):
        log_file.unlink(missing_ok=True)
    return True
