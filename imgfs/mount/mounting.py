"""A mount's daemon: forked, loaded, and then serving until somebody unmounts."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from imgfs.daemon import Daemon, run_in_foreground
from imgfs.errors import ImgfsError
from imgfs.mount.options import MountOptions
from imgfs.source import Source
from imgfs.store import Store

if TYPE_CHECKING:
    from imgfs.image import Image, Resolved
    from imgfs.metrics.address import Address
    from imgfs.metrics.endpoint import Endpoint

log = logging.getLogger("imgfs.mount")


class Mounting(contextlib.AbstractContextManager["Mounting"]):
    """A mount to be: its daemon gets ready while the caller prepares the image.

    `connect` opens the source of what the store lacks: in the daemon.
    """

    def __init__(self, connect: Callable[[], Source], store: Store) -> None:
        self._connect = connect
        self._store = store
        self._daemon = Daemon(_import_what_serves, self._serve)

    def mount(self, resolved: Resolved, options: MountOptions) -> None:
        """Mount a prepared image; returns when it answers. Raises ImgfsError."""
        name = f"{resolved.digest.short}-{os.getpid()}-{int(time.time())}.log"
        self._daemon.start((resolved, options), self._store.logs / name, options.log_level)

    def _serve(self, task: tuple[Resolved, MountOptions], on_ready: Callable[[], None]) -> None:
        resolved, options = task
        _serve(resolved, self._connect, self._store, options, on_ready)

    def __exit__(self, *_: object) -> None:
        self._daemon.__exit__()


def mount_in_foreground(
    resolved: Resolved, connect: Callable[[], Source], store: Store, options: MountOptions
) -> NoReturn:
    """Mount a prepared image and serve it in this process, which ends with the mount. Raises ImgfsError."""

    def serve(on_ready: Callable[[], None]) -> None:
        _serve(resolved, connect, store, options, on_ready)

    run_in_foreground(serve, options.log_level)


def _import_what_serves() -> None:
    """Load what takes longest: it costs as much as all else together."""
    import imgfs.image
    import imgfs.mount.byfuse
    import imgfs.mount.bykernel  # noqa: F401


def _serve(
    resolved: Resolved,
    connect: Callable[[], Source],
    store: Store,
    options: MountOptions,
    on_ready: Callable[[], None],
) -> None:
    """Mount and answer the kernel until it is unmounted or a signal comes."""
    # here, in the daemon: the caller has no use for all that
    from imgfs.image import Image
    from imgfs.image.proof import Prover
    from imgfs.image.recording import NONE, profile_for
    from imgfs.mount.byfuse import serve_by_fuse
    from imgfs.mount.bykernel import served_by_kernel
    from imgfs.mount.status import status

    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(connect()))
        image = stack.enter_context(Image(resolved, source, store))
        profile = None if options.replay == NONE else profile_for(resolved, store, options.replay)
        began = time.time()

        def tell() -> dict[str, Any]:
            return status(image, store, options, began)

        if options.metrics:
            endpoint = stack.enter_context(_endpoint(options.metrics, tell))
            options = replace(options, metrics=endpoint.address)
            endpoint.start()
        prover = Prover(image, store)
        stack.callback(prover.stop)
        prover.start()
        image.content.start(profile, options.fill)
        stack.callback(image.content.stop)
        if not served_by_kernel(image, options, tell, on_ready, store):
            serve_by_fuse(image, options, tell, on_ready)
        image.content.sync()
        _keep_recorded(image, store, options)
    log.info("unmounted %s", options.mountpoint)


def _endpoint(address: Address, tell: Callable[[], dict[str, Any]]) -> Endpoint:
    """The status of a mount, served to Prometheus; raises MountError if the address cannot be had."""
    from imgfs.metrics.endpoint import Endpoint
    from imgfs.metrics.exposition import exposition

    return Endpoint(address, lambda: exposition(tell()))


def _keep_recorded(image: Image, store: Store, options: MountOptions) -> None:
    from imgfs.image.recording import keep_recorded

    try:
        keep_recorded(image.content, image.resolved, store, options.record)
    except ImgfsError as error:
        log.warning("what was read is not recorded: %s", error)
