"""The operations of a snapshotter as a service of gRPC (containerd, api/services/snapshots/v1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from imgfs.engines.rpc import Service
from imgfs.engines.snapshotter.messages import (
    CommitRequest,
    ListRequest,
    NamedRequest,
    PrepareRequest,
    UpdateRequest,
    encode_info,
    encode_list,
    encode_mounts,
    encode_usage,
    plugin_of,
)
from imgfs.engines.snapshotter.snapshotter import Snapshotter
from imgfs.errors import ImgfsError
from imgfs.starting import start_thread

_NAME = "containerd.services.snapshots.v1.Snapshots"

_Answer = TypeVar("_Answer", bytes, Iterable[bytes])

log = logging.getLogger(__name__)


def service_of(snapshotter: Snapshotter) -> Service:
    """Return the service; what is removed is cleaned up from now on, beside the calls."""
    start_thread(partial(_clean_up_always, snapshotter), "imgfs-clean-up")
    operations = {name: partial(_operate, operate, snapshotter) for name, operate in _OPERATIONS.items()}
    return Service(_NAME, operations, {"List": partial(_operate, _list, snapshotter)})


def _operate(
    operate: Callable[[Snapshotter, bytes], _Answer], snapshotter: Snapshotter, body: bytes
) -> _Answer:
    snapshotter.claim(plugin_of(body))
    return operate(snapshotter, body)


def _prepare(snapshotter: Snapshotter, body: bytes) -> bytes:
    return encode_mounts(snapshotter.prepare(PrepareRequest.decode(body)))


def _view(snapshotter: Snapshotter, body: bytes) -> bytes:
    return encode_mounts(snapshotter.view(PrepareRequest.decode(body)))


def _mounts(snapshotter: Snapshotter, body: bytes) -> bytes:
    return encode_mounts(snapshotter.mounts(NamedRequest.decode(body)))


def _commit(snapshotter: Snapshotter, body: bytes) -> bytes:
    snapshotter.commit(CommitRequest.decode(body))
    return b""


def _remove(snapshotter: Snapshotter, body: bytes) -> bytes:
    snapshotter.remove(NamedRequest.decode(body))
    return b""


def _stat(snapshotter: Snapshotter, body: bytes) -> bytes:
    return encode_info(snapshotter.stat(NamedRequest.decode(body)))


def _update(snapshotter: Snapshotter, body: bytes) -> bytes:
    return encode_info(snapshotter.update(UpdateRequest.decode(body)))


def _list(snapshotter: Snapshotter, body: bytes) -> Iterable[bytes]:
    return encode_list(snapshotter.matching(ListRequest.decode(body)))


def _usage(snapshotter: Snapshotter, body: bytes) -> bytes:
    return encode_usage(snapshotter.usage(NamedRequest.decode(body)))


def _clean_up(snapshotter: Snapshotter, _body: bytes) -> bytes:
    snapshotter.clean_up()
    return b""


_OPERATIONS: dict[str, Callable[[Snapshotter, bytes], bytes]] = {
    "Prepare": _prepare,
    "View": _view,
    "Mounts": _mounts,
    "Commit": _commit,
    "Remove": _remove,
    "Stat": _stat,
    "Update": _update,
    "Usage": _usage,
    "Cleanup": _clean_up,
}


def _clean_up_always(snapshotter: Snapshotter) -> None:
    while True:
        try:
            snapshotter.clean_up_when_removed()
        except ImgfsError as error:
            log.warning("cleaning up: %s", error)
        except Exception:
            log.exception("cleaning up")
