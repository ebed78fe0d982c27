"""The composition root: builds what a mount needs, mounts, serves until it is unmounted, takes it all down.

`mount` prepares the image in the calling process, where progress can be shown, then forks the daemon. The
caller returns when the kernel's greeting has been answered, or raises what the daemon could not do. Nothing
open crosses the fork: the daemon opens the store anew.
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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgfs.daemon import run_as_daemon, run_in_foreground
from imgfs.errors import ImgfsError, MountError
from imgfs.mounts import mount_at
from imgfs.overlay.scratch import Base, Scratch
from imgfs.source import Source
from imgfs.store import Store

if TYPE_CHECKING:
    import trio

    from imgfs.content import FillOptions
    from imgfs.image import Image, Resolved
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
    everything is fetched."""

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


def mount(resolved: Resolved, connect: Callable[[], Source], store: Store, options: MountOptions) -> None:
    """Mount a prepared image; returns when it answers. In the foreground the process ends with the mount.

    `connect` opens the source of what the store lacks: in the daemon. Raises ImgfsError.
    """

    def serve(on_ready: Callable[[], None]) -> None:
        _serve(resolved, connect, store, options, on_ready)

    if options.foreground:
        run_in_foreground(serve, options.log_level)
    name = f"{resolved.digest.short}-{os.getpid()}-{int(time.time())}.log"
    run_as_daemon(serve, store.logs / name, options.log_level)


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
    from imgfs.image.recording import NONE, profile_for

    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(connect()))
        image = stack.enter_context(Image(resolved, source, store))
        overlay = (
            stack.enter_context(_overlay(image, options.scratch, options.mountpoint))
            if options.scratch
            else None
        )
        profile = None if options.replay == NONE else profile_for(resolved, store, options.replay)
        image.content.start(profile, options.fill)
        stack.callback(image.content.stop)
        trio.run(_serve_image, image, overlay, store, options, on_ready)
        image.content.sync()
        _keep_recorded(image, store, options)
    log.info("unmounted %s", options.mountpoint)


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
    base = Base(image.resolved.reference, str(image.resolved.digest), len(image.resolved.manifest.layers))
    use = f"mounted at {mountpoint} (pid {os.getpid()})"
    with scratch.overlay(image.tree, image.content, base, use) as overlay:
        yield overlay


async def _serve_image(
    image: Image, overlay: Overlay | None, store: Store, options: MountOptions, on_ready: Callable[[], None]
) -> None:
    import pyfuse3
    import trio

    from imgfs.fuse.operations import Operations
    from imgfs.fuse.turns import WORKERS, take_turns
    from imgfs.fuse.writable import WritableOperations

    began = time.time()
    greeted = trio.Event()

    def tell() -> dict[str, Any]:
        return status(image, store, options, began)

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
            await pyfuse3.main(WORKERS, WORKERS)
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


async def _announce(
    greeted: trio.Event, reference: str, mountpoint: Path, on_ready: Callable[[], None]
) -> None:
    """Say that the mount answers, once the kernel has its reply: taking that, it sets its own read-ahead."""
    await greeted.wait()
    log.info("mounted %s at %s", reference, mountpoint)
    _raise_read_ahead(mountpoint)
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


def _raise_read_ahead(mountpoint: Path) -> None:
    """Let the kernel read ahead further than its 128 KiB; only root may."""
    mounted = mount_at(mountpoint)
    if mounted is None:
        return
    try:
        path = Path("/sys/class/bdi", mounted.device, "read_ahead_kb")
        path.write_text(str(READ_AHEAD_KIB))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            log.warning("cannot raise the kernel's read-ahead: %s", error)


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
        "pid": os.getpid(),
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
