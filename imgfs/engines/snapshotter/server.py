"""gRPC on a Unix socket, and systemd's word that it answers.

grpcio carries the messages as bytes, one thread for each call that is under way: a `Prepare` may wait for an
image as long as that takes, and `Stat`, which containerd asks for all the time, must not wait for it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from imgfs.engines.snapshotter.messages import (
    CommitRequest,
    NamedRequest,
    PrepareRequest,
    UpdateRequest,
    encode_info,
    encode_list,
    encode_mounts,
    encode_usage,
)
from imgfs.engines.snapshotter.refusal import Code, Refusal
from imgfs.engines.snapshotter.snapshotter import Snapshotter
from imgfs.errors import ImgfsError, RegistryError, StoreError, UsageError, describe

if TYPE_CHECKING:
    import grpc

    Operation = Callable[[Snapshotter, bytes], bytes]

_SERVICE = "containerd.services.snapshots.v1.Snapshots"
_THREADS = 128  # calls at once; a thread that waits takes some ten kB
_GRACE = 2.0  # seconds for calls that are under way when it is to end

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer", bytes, Iterable[bytes])


def _prepare(snapshotter: Snapshotter, body: bytes) -> bytes:
    return encode_mounts(snapshotter.prepare(PrepareRequest.decode(body)))


def _view(snapshotter: Snapshotter, body: bytes) -> bytes:
    return encode_mounts(snapshotter.view(PrepareRequest.decode(body)))


def _mounts(snapshotter: Snapshotter, body: bytes) -> bytes:
    return encode_mounts(snapshotter.mounts(NamedRequest.decode(body).key))


def _commit(snapshotter: Snapshotter, body: bytes) -> bytes:
    snapshotter.commit(CommitRequest.decode(body))
    return b""


def _remove(snapshotter: Snapshotter, body: bytes) -> bytes:
    snapshotter.remove(NamedRequest.decode(body).key)
    return b""


def _stat(snapshotter: Snapshotter, body: bytes) -> bytes:
    return encode_info(snapshotter.stat(NamedRequest.decode(body).key))


def _update(snapshotter: Snapshotter, body: bytes) -> bytes:
    return encode_info(snapshotter.update(UpdateRequest.decode(body)))


def _usage(snapshotter: Snapshotter, body: bytes) -> bytes:
    return encode_usage(snapshotter.usage(NamedRequest.decode(body).key))


def _clean_up(snapshotter: Snapshotter, _body: bytes) -> bytes:
    snapshotter.clean_up()
    return b""


_OPERATIONS: dict[str, Operation] = {
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


def serve(snapshotter: Snapshotter, address: Path, notify: Callable[[bytes], None]) -> None:
    """Serve until a signal comes; nothing is unmounted or removed then. Raises UsageError, StoreError."""
    server = _listen(snapshotter, address)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    threading.Thread(target=_clean_up_always, args=(snapshotter,), daemon=True).start()
    log.info("answers at %s", address)
    notify(b"READY=1")
    ended.wait()
    notify(b"STOPPING=1")
    server.stop(_GRACE).wait()


def tell_systemd(place: str | None, state: bytes) -> None:
    """Tell systemd of a new state, if `place` is a socket it waits at (sd_notify(3))."""
    if place is None:
        return
    address = f"\0{place[1:]}" if place.startswith("@") else place
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying:
            notifying.sendto(state, address)
    except OSError as error:
        log.warning("systemd cannot be told %s: %s", state.decode(), describe(error))


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the lock of a snapshotter's directory; raises StoreError if another process has it."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"{root}: {describe(error)}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise StoreError(f"{root}: another imgfs snapshotter uses it") from error
    finally:
        os.close(fd)


def _listen(snapshotter: Snapshotter, address: Path) -> grpc.Server:
    """Return a server that answers at `address`, root alone."""
    try:
        import grpc
    except ImportError as error:
        raise UsageError(
            "the snapshotter takes the Python package grpcio, which is not installed: "
            "pip install 'imgfs[engines]'"
        ) from error
    try:
        address.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{address.parent}: {describe(error)}") from error
    server = grpc.server(ThreadPoolExecutor(_THREADS, "imgfs-call"), handlers=[_handlers(snapshotter)])
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{address}")
    except RuntimeError as error:
        raise StoreError(f"{address}: cannot be listened at") from error
    finally:
        os.umask(before)
    server.start()
    return server


def _handlers(snapshotter: Snapshotter) -> grpc.GenericRpcHandler:
    import grpc

    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.unary_unary_rpc_method_handler(partial(_answer, name, partial(operate, snapshotter)))
        for name, operate in _OPERATIONS.items()
    }
    methods["List"] = grpc.unary_stream_rpc_method_handler(
        partial(_answer, "List", lambda _: encode_list(snapshotter.all()))
    )
    return grpc.method_handlers_generic_handler(_SERVICE, methods)


def _answer(
    name: str, operate: Callable[[bytes], _Answer], body: bytes, context: grpc.ServicerContext
) -> _Answer:
    """Answer a call; what is raised becomes a status, and the server lives."""
    try:
        return operate(body)
    except Refusal as error:
        code, reason = error.code, str(error)
    except RegistryError as error:  # no message at all
        code, reason = Code.INVALID_ARGUMENT, str(error)
    except ImgfsError as error:
        code, reason = Code.UNKNOWN, str(error)
    except Exception as error:
        log.exception("%s", name)
        code, reason = Code.UNKNOWN, f"an error that imgfs did not expect: {describe(error)}"
    if code == Code.UNKNOWN:
        log.warning("%s: %s", name, reason)
    return _refused(context, code, reason)


def _refused(context: grpc.ServicerContext, code: Code, reason: str) -> NoReturn:
    import grpc

    context.abort(next(status for status in grpc.StatusCode if status.value[0] == code), reason)


def _clean_up_always(snapshotter: Snapshotter) -> None:
    while True:
        try:
            snapshotter.clean_up_when_removed()
        except ImgfsError as error:
            log.warning("cleaning up: %s", error)
        except Exception:
            log.exception("cleaning up")
