"""gRPC on a Unix socket, and systemd's word that it answers.

grpcio carries the messages as bytes, one thread for each call that is under way: one that waits for an image
may do so as long as that takes, and the others must not wait for it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from imgfs.engines.refusal import Code, Refusal
from imgfs.errors import ImgfsError, RegistryError, StoreError, UsageError, describe

if TYPE_CHECKING:
    import grpc

_THREADS = 128  # calls at once; a thread that waits takes some ten kB
_GRACE = 2.0  # seconds for calls that are under way when it is to end

Operation = Callable[[bytes], bytes]
Streamed = Callable[[bytes], Iterable[bytes]]
_Answer = TypeVar("_Answer", bytes, Iterable[bytes])

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """A service: its operations by the names of its methods; `streams` answer with several messages."""

    name: str
    operations: Mapping[str, Operation]
    streams: Mapping[str, Streamed] = field(default_factory=dict)


def serve(address: Path, services: Iterable[Service], notify: Callable[[bytes], None]) -> None:
    """Answer calls until a signal comes. Raises UsageError, StoreError.

    `notify` is told of the states of sd_notify(3).
    """
    server = _listen(address, services)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
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
    """Hold the lock of a server's directory; raises StoreError if another process has it."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"{root}: {describe(error)}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise StoreError(f"{root}: another process of imgfs uses it") from error
    finally:
        os.close(fd)


def _listen(address: Path, services: Iterable[Service]) -> grpc.Server:
    """Return a server that answers at `address`, root alone."""
    try:
        import grpc
    except ImportError as error:
        raise UsageError(
            "this takes the Python package grpcio, which is not installed: pip install 'imgfs[engines]'"
        ) from error
    try:
        address.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{address.parent}: {describe(error)}") from error
    handlers = [_handler(service) for service in services]
    server = grpc.server(ThreadPoolExecutor(_THREADS, "imgfs-call"), handlers=handlers)
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{address}")
    except RuntimeError as error:
        raise StoreError(f"{address}: cannot be listened at") from error
    finally:
        os.umask(before)
    server.start()
    return server


def _handler(service: Service) -> grpc.GenericRpcHandler:
    import grpc

    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.unary_unary_rpc_method_handler(partial(_answer, name, operate))
        for name, operate in service.operations.items()
    }
    for name, stream in service.streams.items():
        methods[name] = grpc.unary_stream_rpc_method_handler(partial(_answer, name, stream))
    return grpc.method_handlers_generic_handler(service.name, methods)


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
