"""The composition root: builds what a mount needs, mounts, serves until it is unmounted, takes it all down.

The image is prepared in the calling process, where progress can be shown; the daemon is forked before, and
loads meanwhile what it will need. The caller returns when the kernel's greeting has been answered, or raises
what the daemon could not do. Nothing open crosses the fork: the daemon opens the store itself.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from imgfs.daemon import Daemon, run_in_foreground
from imgfs.errors import ImgfsError, MountError
from imgfs.mounts import mount_at
from imgfs.overlay.scratch import Base, Scratch
from imgfs.source import Source
from imgfs.store import Store

if TYPE_CHECKING:
    import trio

    from imgfs.content import FillOptions
    from imgfs.image import Image, Resolved
    from imgfs.kernel.assembled import Assembled
    from imgfs.kernel.driver import Driver
    from imgfs.metrics.address import Address
    from imgfs.metrics.endpoint import Endpoint
    from imgfs.overlay import Overlay

log = logging.getLogger(__name__)

READ_AHEAD_KIB = 1024  # the kernel's, where we may set it: as much as one FUSE request can carry
_SYNC_EVERY = 30.0  # seconds: how much cached data the power may take with it
_GRACE = 1.0  # seconds for requests under way when a signal ends the mount


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. `fuse` are options for libfuse and the kernel, `owner` whom all files are shown to belong
    to, `log_level` a name of the logging module's; with a `scratch` the mount can be written to.
    With `write_through` what is written is here at once, instead of waiting in the kernel for more. `record`
    names the profile that what is read is kept as, `replay` the one that is fetched ahead; with a `fill`
    everything is fetched. `metrics` is where Prometheus may ask for the status. `driver` is `fuse`, `kernel`,
    or `auto` for the kernel where it can."""

    mountpoint: Path
    fuse: frozenset[str] = frozenset()
    owner: tuple[int, int] | None = None
    log_level: str = "INFO"
    foreground: bool = False
    scratch: Scratch | None = None
    write_through: bool = False
    record: str | None = None
    replay: str | None = None
    fill: FillOptions | None = None
    metrics: Address | None = None
    driver: str = "fuse"


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
    import imgfs.fuse.writable
    import imgfs.image  # noqa: F401


def _serve(
    resolved: Resolved,
    connect: Callable[[], Source],
    store: Store,
    options: MountOptions,
    on_ready: Callable[[], None],
) -> None:
    """Mount and answer the kernel until it is unmounted or a signal comes."""
    import trio  # here, in the daemon: the caller has no use for it

    from imgfs.image import Image
    from imgfs.image.proof import Prover
    from imgfs.image.recording import NONE, profile_for

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
        if not _served_by_kernel(image, options, tell, on_ready, store):
            overlay = (
                stack.enter_context(_overlay(image, options.scratch, options.mountpoint))
                if options.scratch
                else None
            )
            trio.run(_serve_image, image, overlay, options, tell, on_ready)
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


@contextlib.contextmanager
def _overlay(image: Image, scratch: Scratch, mountpoint: Path) -> Iterator[Overlay]:
    """The scratch over an image, for as long as it is mounted."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))  # every file open in it is open here
    os.umask(0)  # the kernel has applied the caller's
    with scratch.overlay(image.tree, image.content, *_base(image, mountpoint)) as overlay:
        yield overlay


def _base(image: Image, mountpoint: Path) -> tuple[Base, str]:
    """What a scratch lies on, and what it is used for."""
    resolved = image.resolved
    base = Base(resolved.reference, str(resolved.digest), len(resolved.manifest.layers))
    return base, f"mounted at {mountpoint} (pid {os.getpid()})"


def _served_by_kernel(
    image: Image,
    options: MountOptions,
    tell: Callable[[], dict[str, Any]],
    on_ready: Callable[[], None],
    store: Store,
) -> bool:
    """Mount by the kernel's own file systems and serve, as `options.driver` says; False if FUSE has to."""
    if options.driver == "fuse":
        return False
    try:
        _serve_by_kernel(image, options, lambda: {**tell(), "driver": "kernel"}, on_ready, store)
    except ImgfsError as error:
        if options.driver == "kernel":
            raise
        log.info("by FUSE, not by EROFS: %s", error)
        return False
    return True


def _serve_by_kernel(
    image: Image,
    options: MountOptions,
    tell: Callable[[], dict[str, Any]],
    on_ready: Callable[[], None],
    store: Store,
) -> None:
    """Mount EROFS, with a scratch overlayfs over it, and serve it the flat layers. Raises ImgfsError."""
    from imgfs.kernel.driver import Driver, attributes_of, check_host, place
    from imgfs.kernel.metadata import metadata_of

    check_host(owner=options.owner)
    attributes = attributes_of(options.fuse)
    sizes = [layer.index.summary.flat_size for layer in image.content.layers]
    metadata = metadata_of(image.tree, image.resolved.tree, sizes, store)
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(place(image.resolved.reference, metadata.path))
        if options.scratch:
            base = _base(image, options.mountpoint)
            stack.enter_context(options.scratch.for_kernel(image.tree, image.content, *base))
        driver = Driver(link, len(sizes) + 1, options.mountpoint, attributes)
        stack.callback(driver.close)
        _serve_flat_files(image, metadata.assembled, driver, options, tell, on_ready)


def _serve_flat_files(
    image: Image,
    assembled: Assembled,
    driver: Driver,
    options: MountOptions,
    tell: Callable[[], dict[str, Any]],
    on_ready: Callable[[], None],
) -> None:
    import trio

    from imgfs.fuse.flatfiles import FlatFiles
    from imgfs.fuse.flatserver import serve_flat_files

    def attach() -> None:
        driver.attach(options.scratch, _raise_limits)
        log.info("mounted %s at %s, by EROFS", image.resolved.reference, options.mountpoint)
        on_ready()

    def detach() -> None:
        threading.Thread(target=driver.detach, daemon=True).start()

    async def until_signal(end: Callable[[], None]) -> None:
        await _end_on_signal(detach, end)

    async def sync(_: Callable[[], None]) -> None:
        await _sync_now_and_then(image)

    files, descriptor = FlatFiles(image, assembled), driver.open_flat_files()
    tasks = until_signal, sync
    trio.run(serve_flat_files, files, descriptor, attach, tell, driver.status_socket, tasks)


async def _serve_image(
    image: Image,
    overlay: Overlay | None,
    options: MountOptions,
    tell: Callable[[], dict[str, Any]],
    on_ready: Callable[[], None],
) -> None:
    import pyfuse3
    import trio

    from imgfs.fuse.operations import Operations
    from imgfs.fuse.turns import MOST_WORKERS, WORKERS, take_turns
    from imgfs.fuse.writable import WritableOperations

    greeted = trio.Event()
    operations = (
        WritableOperations(
            image,
            overlay,
            owner=options.owner,
            on_ready=greeted.set,
            status=tell,
            write_through=options.write_through,
        )
        if overlay
        else Operations(image, owner=options.owner, on_ready=greeted.set, status=tell)
    )
    fuse_options = {"default_permissions", "subtype=imgfs", *options.fuse} - {"rw"}
    fuse_options |= {f"fsname={_escaped(image.resolved.reference)}"} | (set() if overlay else {"ro"})
    with _library_messages() as messages:
        try:
            pyfuse3.init(operations, str(options.mountpoint), fuse_options - {"nonempty"})
        except RuntimeError as error:
            raise MountError(f"{options.mountpoint}: {messages() or error}") from error
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_on_signal, pyfuse3.terminate, nursery.cancel_scope.cancel)
            nursery.start_soon(_sync_now_and_then, image)
            nursery.start_soon(_announce, greeted, image.resolved.reference, options.mountpoint, on_ready)
            take_turns()
            await pyfuse3.main(WORKERS, MOST_WORKERS)
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


async def _announce(
    greeted: trio.Event, reference: str, mountpoint: Path, on_ready: Callable[[], None]
) -> None:
    """Say that the mount answers, once the kernel has its reply: taking that, it sets its own read-ahead."""
    await greeted.wait()
    log.info("mounted %s at %s", reference, mountpoint)
    if mounted := mount_at(mountpoint):
        _raise_limits(mounted.device)
    on_ready()


async def _end_on_signal(terminate: Callable[[], None], cancel: Callable[[], None]) -> None:
    """End well, or, where a request waits for a dead registry, without it."""
    import trio

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            log.info("%s: unmounting", signal.Signals(number).name)
            terminate()
            await trio.sleep(_GRACE)
            cancel()


async def _sync_now_and_then(image: Image) -> None:
    import trio

    while True:
        await trio.sleep(_SYNC_EVERY)
        await trio.to_thread.run_sync(image.content.sync, abandon_on_cancel=True)


def _raise_limits(device: str) -> None:
    """Let the kernel read ahead further than its 128 KiB, which only root may, and have more reads under way.

    The latter counts where fusectl is mounted: until then it is twelve that wait for a dead registry before
    others wait behind them (Documentation/filesystems/fuse.rst, "max_background").
    """
    from imgfs.fuse.turns import IN_BACKGROUND

    connection = Path("/sys/fs/fuse/connections", device.partition(":")[2])
    _write_setting(Path("/sys/class/bdi", device, "read_ahead_kb"), READ_AHEAD_KIB)
    _write_setting(connection / "max_background", IN_BACKGROUND)
    _write_setting(connection / "congestion_threshold", IN_BACKGROUND)


def _write_setting(path: Path, value: int) -> None:
    try:
        path.write_text(str(value))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            log.warning("cannot set %s to %d: %s", path, value, error)


def _escaped(text: str) -> str:
    """A comma would end the option; pyfuse3 takes ASCII only."""
    ascii_text = text.encode("ascii", "backslashreplace").decode("ascii")
    return ascii_text.replace("\\", "\\\\").replace(",", "\\,")


@contextlib.contextmanager
def _library_messages() -> Iterator[Callable[[], str]]:
    """What libfuse and fusermount3 write to standard error meanwhile: their last line is why they failed."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as capture:
        kept = os.dup(2)
        os.dup2(capture.fileno(), 2)

        def last_line() -> str:
            capture.seek(0)
            lines = capture.read().decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""

        try:
            yield last_line
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def status(image: Image, store: Store, options: MountOptions, began: float) -> dict[str, Any]:
    """What `imgfs status` shows. Sizes and counts of bytes are as their names say, times in seconds."""
    resolved, scratch = image.resolved, options.scratch
    traffic = image.source.traffic()
    counts = image.content.snapshot()
    return {
        "image": resolved.reference,
        "digest": str(resolved.digest),
        "platform": str(resolved.config.platform),
        "mountpoint": str(options.mountpoint),
        "store": str(store.root),
        "scratch": scratch
        and {"directory": str(scratch.directory), "name": scratch.name, "kept": not scratch.volatile},
        "tree": image.tree.origin or "verified",
        "metrics": str(options.metrics) if options.metrics else None,
        "endpoints": getattr(image.source, "health", list)(),
        "driver": "fuse",
        "pid": os.getpid(),
        "began": began,
        "seconds": round(time.time() - began, 3),
        "requests_fetched": traffic.requests,
        "bytes_fetched": traffic.bytes,
        "bytes_served": image.content.served,
        "spans_recorded": counts["recorded"],
        "fill": counts["fill"],
        "layers": [
            {
                "digest": str(content.layer.digest),
                "format": content.index.summary.format,
                "size": content.layer.size,
                "flat_size": content.index.summary.flat_size,
                "index": content.index.summary.origin or "verified",
                "bytes_fetched": content.fetched,
                **counted,
            }
            for content, counted in zip(image.content.layers, counts["layers"], strict=True)
        ],
    }
