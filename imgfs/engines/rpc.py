"""gRPC on a Unix socket.

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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from imgfs.engines.passing import passing
from imgfs.engines.refusal import Code, Refusal
from imgfs.errors import ImgfsError, RegistryError, StoreError, UsageError, describe
from imgfs.parallel import ThreadPool
from imgfs.quoting import printable

if TYPE_CHECKING:
    import grpc

_THREADS = 128  # calls at once; a thread that waits takes some ten kB
_OPTIONS = [(f"grpc.max_{way}_message_length", 16 << 20) for way in ("send", "receive")]  # as kubelet's
_FOR_EVER = 366 * 86_400.0  # seconds
_LONGEST_PATH = 107  # bytes of a socket's path (unix(7), sun_path)
_LONGEST_REASON = 500  # characters, each of up to ten that print, or four bytes of three
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


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A service whose calls go on to another socket, and their answers back.

    `hear` is told of each request before that: the method, and its body; what it returns is called if that is
    refused. `answered` is given the method and the answer, and returns what goes back. The answers of methods
    in `streamed` are several messages, which go back as they are.
    """

    name: str
    address: Path
    hear: Callable[[str, bytes], Callable[[], None]]
    answered: Callable[[str, bytes], bytes]
    streamed: Collection[str] = ()


def serve(
    offered: Mapping[Path, Iterable[Service | Forwarded]],
    notify: Callable[[bytes], None],
    given: socket.socket | None = None,
) -> None:
    """Answer calls until a signal comes: services, by the sockets that they are offered at.

    systemd may listen at one of these already, by the socket `given`. `notify` is told of the states of
    sd_notify(3). Raises UsageError, StoreError.
    """
    places = {address: address for address in offered}
    if given:
        address = _place_of(given, offered)
        places[address] = address.with_name(f"{address.name}.own")
    servers = [_listen(places[address], services) for address, services in offered.items()]
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with passing(given, places[address]) if given else nullcontext():
        log.info("answers at %s", ", ".join(map(str, offered)))
        notify(b"READY=1")
        ended.wait()
    notify(b"STOPPING=1")
    for stopping in [server.stop(_GRACE) for server in servers]:
        stopping.wait()


def _place_of(given: socket.socket, offered: Iterable[Path]) -> Path:
    """Return which of the addresses systemd listens at. Raises UsageError if it is another."""
    listening = given.getsockname()
    for address in offered:
        if os.path.realpath(address) == os.path.realpath(listening):
            return address
    raise UsageError(f"systemd's socket unit listens at {listening}, not at {', '.join(map(str, offered))}")


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


def _listen(address: Path, services: Iterable[Service | Forwarded]) -> grpc.Server:
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
    handlers = [
        _handler(service) if isinstance(service, Service) else _forwarding(service) for service in services
    ]
    pool = ThreadPool(_THREADS, "imgfs-call")
    pool.submit(bool)  # from now on it has a thread: grpcio ends at a `submit` that raises
    server = grpc.server(pool, handlers=handlers, options=_OPTIONS)
    before = os.umask(0o177)
    try:
        server.add_insecure_port(_target(address))
    except RuntimeError as error:
        why = f": longer than {_LONGEST_PATH} bytes" if len(os.fsencode(address)) > _LONGEST_PATH else ""
        raise StoreError(f"{address}: cannot be listened at{why}") from error
    finally:
        os.umask(before)
    server.start()
    return server


def _target(path: Path) -> str:
    """Return a socket's path as gRPC reads it back: it is one of a URI, so `%` begins an escape."""
    return f"unix:{str(path).replace('%', '%25')}"


def _handler(service: Service) -> grpc.GenericRpcHandler:
    import grpc

    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.unary_unary_rpc_method_handler(partial(_answer, name, operate))
        for name, operate in service.operations.items()
    }
    for name, stream in service.streams.items():
        methods[name] = grpc.unary_stream_rpc_method_handler(partial(_answer, name, stream))
    return grpc.method_handlers_generic_handler(service.name, methods)


def _forwarding(service: Forwarded) -> grpc.GenericRpcHandler:
    """Return what hands calls on, with their metadata and deadlines; a refusal comes back as it is."""
    import grpc

    channel = grpc.insecure_channel(_target(service.address), options=_OPTIONS)

    class Forwarding(grpc.GenericRpcHandler):
        """Takes the calls of one service, whatever its methods are."""

        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
            """Return what handles a call; None if it is of another service."""
            name, _, method = details.method.rpartition("/")
            if name != f"/{service.name}":
                return None
            hear = partial(service.hear, method)
            if method in service.streamed:
                many = partial(_hand_on_stream, channel.unary_stream(details.method), hear)
                return grpc.unary_stream_rpc_method_handler(many)
            answered = partial(service.answered, method)
            one = partial(_hand_on, channel.unary_unary(details.method), hear, answered)
            return grpc.unary_unary_rpc_method_handler(one)

    return Forwarding()


def _hand_on(
    ask: grpc.UnaryUnaryMultiCallable[bytes, bytes],
    hear: Callable[[bytes], Callable[[], None]],
    answered: Callable[[bytes], bytes],
    body: bytes,
    context: grpc.ServicerContext,
) -> bytes:
    with _as_it_is(context, hear(body)):
        call = ask.future(body, timeout=_deadline(context), metadata=_metadata(context))
        _end_with(context, call)
        answer = call.result()
    return answered(answer)


def _hand_on_stream(
    ask: grpc.UnaryStreamMultiCallable[bytes, bytes],
    hear: Callable[[bytes], Callable[[], None]],
    body: bytes,
    context: grpc.ServicerContext,
) -> Iterator[bytes]:
    with _as_it_is(context, hear(body)):
        call = ask(body, timeout=_deadline(context), metadata=_metadata(context))
        _end_with(context, call)
        yield from call


def _end_with(context: grpc.ServicerContext, call: grpc.RpcContext) -> None:
    """Have a call that was handed on end when its client gives up: as a pull that would go on without it."""

    def end() -> None:
        call.cancel()

    if not context.add_callback(end):
        end()


@contextmanager
def _as_it_is(context: grpc.ServicerContext, refused: Callable[[], None]) -> Iterator[None]:
    """Refuse what was refused there, by the same words, and call `refused`."""
    import grpc

    try:
        yield
    except grpc.FutureCancelledError:
        refused()
        context.abort(grpc.StatusCode.CANCELLED, "its client has given up")
    except grpc.RpcError as error:
        refused()
        context.abort(error.code(), error.details() or "")


def _deadline(context: grpc.ServicerContext) -> float | None:
    """Return for how many seconds the caller waits; None for ever, as kubelet does for a pull.

    grpcio says so by 2^63, which it does not take for a timeout itself: that call is over at once.
    """
    seconds: float | None = context.time_remaining()
    return None if seconds is None or seconds > _FOR_EVER else seconds


def _metadata(context: grpc.ServicerContext) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((key, value) for key, value in context.invocation_metadata() if key != "user-agent")


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
        log.warning("%s: %s", name, printable(reason[:_LONGEST_REASON]))
    return _refused(context, code, reason)


def _refused(context: grpc.ServicerContext, code: Code, reason: str) -> NoReturn:
    """Refuse a call. A reason with a long name in it is cut: beyond 16 KiB a client sees another code."""
    import grpc

    shown = printable(reason[:_LONGEST_REASON])
    context.abort(next(status for status in grpc.StatusCode if status.value[0] == code), shown)
