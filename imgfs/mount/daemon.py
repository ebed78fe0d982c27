"""A mount's daemon: forked, loaded, and then serving until it is unmounted."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from imgfs.daemonize import Daemon, run_in_foreground
from imgfs.errors import ImgfsError
from imgfs.mount.serving import MountOptions

if TYPE_CHECKING:
    from imgfs.image.image import Image
    from imgfs.image.resolve import Resolved
    from imgfs.metrics.endpoint import MetricsAddress, MetricsEndpoint
    from imgfs.status import MountStatus
    from imgfs.store.store import Store
    from imgfs.transport.source import Source

log = logging.getLogger("imgfs.mount")

_ALWAYS = ("imgfs.fuse.operations", "imgfs.image.verify", "imgfs.mount.kernel", "imgfs.transport.wrapped")
_BY_KERNEL = ("imgfs.fuse.erofs_server", "imgfs.kernel.passthrough", "imgfs.kernel.writer")
_BY_FUSE = ("imgfs.mount.fuse",)


class Mounting(contextlib.AbstractContextManager["Mounting"]):
    """A mount to be: its daemon gets ready while the caller prepares the image.

    The sooner it is forked, the better: the daemon loads what takes longest, beside its caller.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @classmethod
    def fork(cls) -> Mounting:
        """Fork the daemon of a mount to be, which begins to load what it will need."""
        return cls(Daemon.fork(_load, _serve_task))

    def mount(
        self, resolved: Resolved, connect: Callable[[], Source], store: Store, options: MountOptions
    ) -> None:
        """Mount a prepared image; returns when it answers. Raises ImgfsError.

        `connect` opens the source of what the store lacks, in the daemon: it must be one that can be pickled.
        """
        self.begin(resolved, connect, store, options)
        self.wait()

    def begin(
        self, resolved: Resolved, connect: Callable[[], Source], store: Store, options: MountOptions
    ) -> None:
        """Begin to mount; the caller must call `wait` next."""
        name = f"{resolved.digest.short}-{os.getpid()}-{int(time.time())}.log"
        task = resolved, pickle.dumps(connect), store, options
        self._daemon.start(task, store.logs / name, options.log_level)

    def wait(self) -> None:
        """Return when what has been begun answers; raises ImgfsError if it cannot."""
        self._daemon.wait()

    def __exit__(self, *_: object) -> None:
        self._daemon.__exit__()


def mount_in_foreground(
    resolved: Resolved, connect: Callable[[], Source], store: Store, options: MountOptions
) -> NoReturn:
    """Mount a prepared image and serve it in this process, which ends with the mount. Raises ImgfsError."""

    def serve(on_ready: Callable[[], None]) -> None:
        _serve(resolved, connect, store, options, on_ready)

    run_in_foreground(serve, options.log_level)


def _load() -> Iterator[None]:
    """Load what serves, the more likely it is to be needed the sooner."""
    for modules in (_ALWAYS, *((_BY_KERNEL, _BY_FUSE) if os.geteuid() == 0 else (_BY_FUSE,))):
        for module in modules:
            importlib.import_module(module)
        yield
    from imgfs.transport.source import load_http

    load_http()


def _serve_task(task: tuple[Resolved, bytes, Store, MountOptions], on_ready: Callable[[], None]) -> None:
    resolved, connect, store, options = task

    def unpacked() -> Source:  # what that takes is loaded when it is needed
        source: Source = pickle.loads(connect)()
        return source

    _serve(resolved, unpacked, store, options, on_ready)


def _serve(
    resolved: Resolved,
    connect: Callable[[], Source],
    store: Store,
    options: MountOptions,
    on_ready: Callable[[], None],
) -> None:
    """Mount and answer the kernel until it is unmounted or a signal comes."""
    # here, in the daemon: the caller has no use for all that
    from imgfs.image.image import NONE, Image, profile_for
    from imgfs.image.verify import Verifier
    from imgfs.mount.kernel import served_by_kernel
    from imgfs.mount.status import status
    from imgfs.transport.wrapped import DeferredSource

    _never_import_from(options.mountpoint)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(DeferredSource(connect)))
        image = stack.enter_context(Image(resolved, source, store, options.trust))
        profile = None if options.replay == NONE else profile_for(resolved, store, options.replay)
        began = time.time()

        def tell() -> MountStatus:
            return status(image, store, options, began)

        if options.metrics:
            endpoint = stack.enter_context(_endpoint(options.metrics, tell))
            options = replace(options, metrics=endpoint.address)
            endpoint.start()
        prover = Verifier(image, store)
        stack.callback(prover.stop)
        prover.start()
        image.content.start(profile, options.fill)
        stack.callback(image.content.stop)
        if not served_by_kernel(image, options, tell, on_ready, store):
            from imgfs.mount.fuse import serve_by_fuse

            serve_by_fuse(image, options, tell, on_ready, store)
        image.content.sync()
        _keep_recorded(image, store, options)
    log.info("unmounted %s", options.mountpoint)


def _never_import_from(mountpoint: Path) -> None:
    """Keep Python from importing out of the mount: the daemon would wait for itself."""
    sys.path[:] = [entry for entry in sys.path if not Path(entry).is_relative_to(mountpoint)]


def _endpoint(address: MetricsAddress, tell: Callable[[], MountStatus]) -> MetricsEndpoint:
    """The status of a mount, served to Prometheus; raises MountError if the address cannot be had."""
    from imgfs.metrics.endpoint import MetricsEndpoint
    from imgfs.metrics.exposition import exposition

    return MetricsEndpoint.bind(address, lambda: exposition(tell()))


def _keep_recorded(image: Image, store: Store, options: MountOptions) -> None:
    from imgfs.image.image import save_recorded

    try:
        save_recorded(image.content, image.resolved, store, options.record)
    except ImgfsError as error:
        log.warning("what was read is not recorded: %s", error)
