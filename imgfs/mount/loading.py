"""What the processes of a mount load: before they are forked, beside one another, or late."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

# What both a daemon and its caller need: loaded once, before the fork.
BY_BOTH = ("imgfs.image.trust", "imgfs.mounts.mountpoint", "imgfs.store.store", "imgfs.transport.connect")
BY_BOTH_FOR_SCRATCHES = ("imgfs.overlay.scratch", "imgfs.overlay.xattrs", "secrets", "shutil")
_ALWAYS = (
    "imgfs.fuse.operations",
    "imgfs.image.verify",
    "imgfs.mount.kernel",
    "imgfs.mount.resume",
    "imgfs.transport.connect",
)
_BY_KERNEL = ("imgfs.fuse.erofs_devices", "imgfs.kernel.passthrough", "imgfs.kernel.erofs_image")
_BY_FUSE = ("imgfs.mount.fuse",)
BY_FETCHES = {"imgfs.fuse.tasks", "imgfs.registry.adapter", "imgfs.transport.registry"}
_LATER = (
    "imgfs.image.image",
    "imgfs.image.profiles",
    "imgfs.mount.early",
    "imgfs.predict.predictor",
    "imgfs.store.store",
)
_FETCHING = (("imgfs.mount.early", "imgfs.layer.codec.span"), ("imgfs.fuse.tasks",))  # in steps
_FOR_SCRATCHES = ("imgfs.overlay.scratch_opened",)
_WRITES_BY_FUSE = ("imgfs.fuse.writable",)


def load_what_both_need(*, writable: bool, offline: bool) -> None:
    """Load what both a daemon and its caller need, in the caller, before the fork.

    Unless `offline`, another process asks a registry meanwhile, so that more of the daemon's is loaded here.
    """
    for module in (*BY_BOTH, *(BY_BOTH_FOR_SCRATCHES if writable else ())):
        importlib.import_module(module)
    if writable and not offline:
        importlib.import_module(*_FOR_SCRATCHES)


def load_in_steps(*, writable: bool, by_kernel: bool, fetches: bool = False) -> Iterator[None]:
    """Load what serves, the more likely it is to be needed the sooner; and what `fetches`, if it will.

    Where the kernel is to mount, what it takes is first. It is FUSE that mounts an image which is new here.
    """
    first = (*_ALWAYS, *BY_BOTH_FOR_SCRATCHES, *_FOR_SCRATCHES) if writable else _ALWAYS
    writes = _WRITES_BY_FUSE if writable else ()
    kernels = _BY_KERNEL if by_kernel else ()
    steps = ((*first, *writes), kernels) if fetches else ((*first, *kernels), writes)
    for modules in (*steps, _BY_FUSE, *(_FETCHING if fetches else ())):
        for module in modules:
            importlib.import_module(module)
        yield


def load_what_fetches(*, http: bool) -> None:
    """Load what a read of bytes that are not here takes: it takes long, and many a mount never needs it."""
    for module in ("imgfs.layer.codec.span", "imgfs.fuse.tasks"):
        importlib.import_module(module)
    if http:
        from imgfs.transport.connect import load_http

        load_http()


def load_what_serves() -> None:
    """Load all that any mount's daemon may need, for processes that are forked later."""
    for modules in (_ALWAYS, _FOR_SCRATCHES, _WRITES_BY_FUSE, _BY_FUSE, _BY_KERNEL, _LATER):
        for module in modules:
            importlib.import_module(module)
    load_what_fetches(http=True)
