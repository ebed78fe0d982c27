"""A mount's daemon: forked, loaded, and then serving until it is unmounted."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from imgfs.daemonize import Daemon, run_in_foreground
from imgfs.errors import ImgfsError
from imgfs.mount.loading import BY_FETCHES, load_in_steps, load_what_both_need, load_what_fetches
from imgfs.mount.options import AheadOrder, MountOptions, OpenOrder, ReplayOrder
from imgfs.starting import try_thread

if TYPE_CHECKING:
    from imgfs.image.image import Image
    from imgfs.image.resolve import Resolved
    from imgfs.image.trust import Trust
    from imgfs.metrics.endpoint import MetricsAddress, MetricsEndpoint
    from imgfs.mount.early import OpenedEarly
    from imgfs.mount.resume import MountState, Succession
    from imgfs.registry.auth import KnownAuth
    from imgfs.registry.endpoint import RegistryEndpoint
    from imgfs.status import MountStatus
    from imgfs.store.store import Store
    from imgfs.transport.ahead import AheadRange
    from imgfs.transport.connect import DeferredSource
    from imgfs.transport.source import Source

log = logging.getLogger("imgfs.mount")

_MANY_FILES = 500_000  # of an image, in which nothing is guessed: for paths all names are read
_SWITCH = 0.0005  # seconds until a thread that computes makes way for another


class Mounting(contextlib.AbstractContextManager["Mounting"]):
    """A mount to be: its daemon gets ready while the caller prepares the image.

    The sooner it is forked, the better: the daemon loads what takes longest, beside its caller.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @property
    def pid(self) -> int:
        """The daemon's pid."""
        return self._daemon.pid

    @classmethod
    def fork(
        cls, *, writable: bool, offline: bool = False, driver: str = "auto", fetches: bool = False
    ) -> Mounting:
        """Fork the daemon of a mount to be, which begins to load what it will need.

        Unless `offline`, a third process gets ready to ask a registry (`cli.tag_question`). If it `fetches`,
        as nothing of its image is here, both load all by themselves: its caller waits for the registry then.
        """
        if not fetches:
            load_what_both_need(writable=writable, offline=offline)
        by_kernel = driver != "fuse" and os.geteuid() == 0
        load = partial(load_in_steps, writable=writable, by_kernel=by_kernel, fetches=fetches)
        child = _ForkedDaemon(offline=offline)
        return cls(Daemon.fork(load, child.serve_task, child.get_more))

    def expect_fetches(self, connect: Callable[[], Source], source: Source) -> None:
        """Have the daemon get ready to fetch: the image has to be prepared first, which takes a while.

        It opens its own connections by `connect` meanwhile, and is told what the registry of `source`, which
        has been asked already, wants to be shown: secrets, which go through a pipe and are kept nowhere.
        It may be told again when more is known, as where blobs are redirected to.
        """
        from imgfs.transport.connect import known_auth

        self._daemon.expect_more((pickle.dumps(connect), known_auth(source)))

    def fetch_ahead(self, ranges: Sequence[AheadRange]) -> None:
        """Have the daemon fetch what a replay of the image's profile will probably begin with."""
        self._daemon.expect_more(AheadOrder(tuple(ranges)))

    def open_early(
        self, resolved: Resolved, connect: Callable[[], Source], store: Store, trust: Trust
    ) -> None:
        """Have the daemon open a prepared image that it may be told to mount; it shows nothing of it."""
        self._daemon.expect_more(OpenOrder(resolved, pickle.dumps(connect), store, trust))

    def replay_early(
        self,
        resolved: Resolved,
        connect: Callable[[], Source],
        store: Store,
        trust: Trust,
        profile: str | None,
    ) -> None:
        """Have the daemon replay a profile, as `--replay` names it, of an image that has all but its tree."""
        self._daemon.expect_more(ReplayOrder(resolved, pickle.dumps(connect), store, trust, profile))

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


class _ForkedDaemon:
    """What the daemon does until it serves; it has a source already if the image was not here."""

    def __init__(self, *, offline: bool) -> None:
        self._offline = offline
        self._opened: Source | None = None
        self._ahead: Source | None = None  # the same, of which something is fetched ahead
        self._early: OpenedEarly | None = None

    def get_more(
        self,
        known: OpenOrder
        | ReplayOrder
        | AheadOrder
        | tuple[bytes, Sequence[tuple[RegistryEndpoint, KnownAuth]] | None],
    ) -> None:
        """Load what fetches, and connect to a registry that its caller knows; or do as an order says."""
        from imgfs.mount.resume import connector
        from imgfs.transport.connect import load_http, open_informed

        if isinstance(known, OpenOrder | ReplayOrder):
            from imgfs.mount.early import OpenedEarly

            if self._early:  # another image's
                self._early.close()
            self._early = OpenedEarly.open(known, self._ahead or self._opened)
            return
        if isinstance(known, AheadOrder):
            self._fetch_ahead(known.ranges)
            return
        if not self._offline:
            load_http()
        connect, auth = known
        if auth:
            self._opened = open_informed(connector(connect), auth, self._opened)
        load = partial(load_what_fetches, http=False)  # beside what comes next, which may be a replay
        try_thread(load, "imgfs-load")

    def _fetch_ahead(self, ranges: Sequence[AheadRange]) -> None:
        """Begin to fetch these, unless peers may have them."""
        if self._opened and not self._ahead and not self._opened.peers():
            from imgfs.transport.ahead import AheadSource

            self._ahead = AheadSource(self._opened, ranges)

    def serve_task(
        self, task: tuple[Resolved, bytes, Store, MountOptions], on_ready: Callable[[], None]
    ) -> None:
        """Serve what the caller has prepared."""
        from imgfs.mount.resume import MountState, Succession

        early = self._early if self._early and self._early.serves(task[0]) else None
        state = MountState(*task, began=time.time(), stats=early.stats if early else -1)
        succession = Succession(state) if state.options.restart else None
        serve(state, on_ready, succession, self._ahead or self._opened, early)


def mount_in_foreground(
    resolved: Resolved, connect: Callable[[], Source], store: Store, options: MountOptions
) -> NoReturn:
    """Mount a prepared image and serve it in this process, which ends with the mount. Raises ImgfsError."""
    from imgfs.mount.resume import MountState

    state = MountState(resolved, pickle.dumps(connect), store, options, time.time())

    def serve_now(on_ready: Callable[[], None]) -> None:
        serve(state, on_ready)

    run_in_foreground(serve_now, options.log_level)


def _load_beside(image: Image, source: DeferredSource) -> None:
    """Load what fetches beside the first requests, which come first, if bytes of the image are not here."""
    if image.content.is_complete() or sys.modules.keys() >= BY_FETCHES:
        return

    from imgfs.oci.reference import RegistryReference, parse_reference

    def load() -> None:
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH)
        try:
            with contextlib.suppress(ImgfsError):  # it is told to the first read that needs it
                reference = parse_reference(image.resolved.reference)
                load_what_fetches(http=isinstance(reference, RegistryReference) and not source.is_offline())
        finally:
            sys.setswitchinterval(before)

    try_thread(load, "imgfs-load")


def serve(
    state: MountState,
    on_ready: Callable[[], None],
    succession: Succession | None = None,
    opened: Source | None = None,
    early: OpenedEarly | None = None,
) -> None:
    """Mount, or take over, and answer the kernel until it is unmounted or a signal comes.

    `opened` is the source if it is open already; what is open `early`, all of the image or layers that a
    profile is replayed of, is gone on with.
    """
    # here, in the daemon: the caller has no use for all that
    from imgfs.mount.kernel import served_by_kernel
    from imgfs.mount.serving import ServedMount, status

    store, options = state.store, state.options
    _never_import_from(options.mountpoint)
    with contextlib.ExitStack() as stack:
        to_close = succession.keep() if succession and succession.is_pooled else stack
        source, image = _open_image(state, succession, opened, early, to_close)

        def tell() -> MountStatus:
            return status(image, store, options, state.began, succession.restarts if succession else 0)

        metrics = stack.enter_context(contextlib.ExitStack())  # closed before an heir begins
        if options.metrics and (succession is None or succession.has_turn):
            endpoint = metrics.enter_context(_endpoint(options.metrics, tell))
            options = replace(options, metrics=endpoint.address)
            endpoint.start()
        elif options.metrics:
            on_ready = partial(_start_later, options.metrics, tell, metrics)
        _begin_fetching(image, store, options, stack)

        def ready() -> None:
            on_ready()
            _load_beside(image, source)

        mount = ServedMount(image, store, options, tell, ready, succession, metrics.close, stack)
        if not served_by_kernel(mount):
            from imgfs.mount.fuse import serve_by_fuse

            serve_by_fuse(mount)
        image.content.sync()
        _keep_recorded(image, store, options)
    _say_ended(options.mountpoint, succession)


def _open_image(
    state: MountState,
    succession: Succession | None,
    opened: Source | None,
    early: OpenedEarly | None,
    stack: contextlib.ExitStack,
) -> tuple[DeferredSource, Image]:
    """Open the image and its source; `stack` closes both."""
    from imgfs.image.image import Image
    from imgfs.mount.resume import connector
    from imgfs.transport.connect import DeferredSource

    source = early.source if early else DeferredSource(connector(state.connect), opened)
    stack.enter_context(contextlib.closing(source))
    if early:
        return source, stack.enter_context(early.image(state))
    stats = succession.state.stats if succession else -1
    image = Image(state.resolved, source, state.store, state.options.trust, stats=stats)
    return source, stack.enter_context(image)


def _say_ended(mountpoint: Path, succession: Succession | None) -> None:
    """Tell the holder, if there is one, and the log, that a mount has ended, or is another daemon's now."""
    if succession:
        succession.ended()
        if succession.is_idle:  # which has been said
            return
    is_handed_over = succession and not succession.has_turn
    log.info("%s %s", "handed over" if is_handed_over else "unmounted", mountpoint)


def _begin_fetching(image: Image, store: Store, options: MountOptions, stack: contextlib.ExitStack) -> None:
    """Verify what is cached, replay the profile, fill the cache and guess, as far as wanted, to the end."""
    from imgfs.image.verify import Verifier

    prover = Verifier(image, store)
    stack.callback(prover.stop)
    prover.start()
    touches = _replayed(image, store, options)
    image.content.start(touches, options.fill)
    stack.callback(image.content.stop)
    if options.predict and not image.content.is_complete() and image.tree.node_count <= _MANY_FILES:
        _predict(image, stack, is_replayed=bool(touches))


def _replayed(image: Image, store: Store, options: MountOptions) -> list[tuple[int, int]]:
    """Return the spans, (layer, span), that a profile names, if bytes of the image are not here."""
    from imgfs.image.profiles import profile_for, touches_of
    from imgfs.store.store import NO_PROFILE

    if options.replay == NO_PROFILE or image.content.is_complete():
        return []
    profile = profile_for(image.resolved, store, options.replay)
    return touches_of(profile, image) if profile else []


def _predict(image: Image, stack: contextlib.ExitStack, *, is_replayed: bool) -> None:
    """Begin to fetch what follows from what is opened, until the stack is closed."""
    from imgfs.predict.predictor import Predictor  # here: not where everything is in the store

    predictor = Predictor(image.content.layers, image.tree, is_replayed=is_replayed)
    predictor.start()
    stack.callback(predictor.stop)
    image.content.follow(predictor)


def _never_import_from(mountpoint: Path) -> None:
    """Keep Python from importing out of the mount: the daemon would wait for itself."""
    sys.path[:] = [entry for entry in sys.path if not Path(entry).is_relative_to(mountpoint)]


def _endpoint(address: MetricsAddress, tell: Callable[[], MountStatus]) -> MetricsEndpoint:
    """Return the status of a mount, served to Prometheus; raises MountError if the address cannot be had."""
    from imgfs.metrics.endpoint import MetricsEndpoint
    from imgfs.metrics.exposition import exposition

    return MetricsEndpoint.bind(address, lambda: exposition(tell()))


def _start_later(
    address: MetricsAddress, tell: Callable[[], MountStatus], stack: contextlib.ExitStack
) -> None:
    """Serve the status at an address that the predecessor has just let go of."""
    try:
        stack.enter_context(_endpoint(address, tell)).start()
    except ImgfsError as error:
        log.warning("%s", error)


def _keep_recorded(image: Image, store: Store, options: MountOptions) -> None:
    from imgfs.image.profiles import save_recorded

    try:
        save_recorded(image, store, options.record)
    except ImgfsError as error:
        log.warning("what was read is not recorded: %s", error)
