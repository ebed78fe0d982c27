"""The process that scans layers for its parent, one after the other: what it is told, and what it answers.

A message is a head (kind, length of the body) and a body. The parent sends JOB with the open flat file, then
the blob: in CHUNKs, or, if the store keeps it as it comes, that FILE and which ranges are STORED in it; then
END; or ABORT, if the blob breaks off. The process answers WROTE now and then, with
the bytes that it has written since, and in the end DONE with the flat layer's size, or FAILED with the error.
From then on it ignores what comes of the blob, up to its END.

The process owns nothing: the temporary files are its parent's, who removes them. So it may be killed at any
time, and it ends by itself when its parent is gone: then the socket ends.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, NoReturn

from imgfs.errors import ImgfsError, IntegrityError, InvalidImage, LimitReached, StoreError, describe
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.scan import Bomb, scan
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.store.atomic import store_errors
from imgfs.store.partial import StoredPiece, UnreadablePartial
from imgfs.store.staging import write_at

_HEAD = struct.Struct("<BI")  # kind, bytes of the body
_NUMBER = struct.Struct("<Q")
_RANGE = struct.Struct("<QQ")
_CHUNK_LIMIT = 1 << 30  # bytes of a message to the process
_BRIEF = 4096  # bytes of a message that are sent with its head
ANSWER_LIMIT = 64 << 10  # of an answer
_TEXT_LIMIT = 16 << 10  # of a text in it
_TOLD_EVERY = 8 << 20  # bytes written between two WROTE
_KINDS = (InvalidImage, Bomb, UnreadablePartial, StoreError, LimitReached, ImgfsError)
_ERRORS = {error.__name__: error for error in _KINDS}


class Message(IntEnum):
    """What a message is."""

    JOB = 1
    CHUNK = 2
    END = 3
    ABORT = 4
    FILE = 5
    STORED = 6
    WROTE = 7
    DONE = 8
    FAILED = 9


class Job(NamedTuple):
    """A layer to scan, by one thread or by three; its index is written to the file at `path`."""

    layer: Descriptor
    diff_id: Digest
    path: Path
    in_threads: bool = False


class Broken(Exception):
    """The other process is gone, or what it says makes no sense."""


class Channel:
    """One end of the socket between the two processes; a message may have an open file with it."""

    def __init__(self, end: socket.socket, limit: int) -> None:
        self._end = end
        self._limit = limit

    def send(self, kind: Message, body: bytes = b"", fd: int | None = None) -> None:
        """Send a message. Raises Broken."""
        try:
            message = _HEAD.pack(kind, len(body)) + body[:_BRIEF]
            sent = socket.send_fds(self._end, [message], [] if fd is None else [fd])
            self._end.sendall(message[sent:])
            self._end.sendall(memoryview(body)[_BRIEF:])
        except OSError as error:
            raise Broken(describe(error)) from error

    def receive(self) -> tuple[Message, bytes, int | None]:
        """Receive a message. Raises Broken."""
        try:
            head, fds, _, _ = socket.recv_fds(self._end, _HEAD.size, 1)
        except OSError as error:
            raise Broken(describe(error)) from error
        if not head:
            raise Broken("it has ended")
        kind, length = _HEAD.unpack(head + self._exactly(_HEAD.size - len(head)))
        if kind not in Message.__members__.values() or length > self._limit:
            raise Broken(f"a message of kind {kind} with {length} bytes")
        return Message(kind), self._exactly(length), fds[0] if fds else None

    def _exactly(self, length: int) -> bytes:
        body = bytearray(length)
        view = memoryview(body)
        while view:
            try:
                count = self._end.recv_into(view)
            except OSError as error:
                raise Broken(describe(error)) from error
            if not count:
                raise Broken("it has ended")
            view = view[count:]
        return bytes(body)


# -- what is answered ----------------------------------------------------------------------------------------


def pack_number(number: int) -> bytes:
    """Return the body of WROTE or DONE."""
    return _NUMBER.pack(number)


def parse_number(body: bytes) -> int:
    """Read the body of WROTE or DONE. Raises Broken."""
    if len(body) != _NUMBER.size:
        raise Broken(f"a number of {len(body)} bytes")
    number: int = _NUMBER.unpack(body)[0]
    return number


def pack_range(start: int, end: int) -> bytes:
    """Return the body of STORED."""
    return _RANGE.pack(start, end)


def pack_error(error: BaseException) -> bytes:
    """Return the body of FAILED: the error's name and its texts, separated by NULs."""
    if isinstance(error, IntegrityError):
        fields = ["IntegrityError", error.what, str(error.expected), str(error.actual)]
    elif type(error).__name__ in _ERRORS:
        fields = [type(error).__name__, str(error)]
    else:
        fields = ["ImgfsError", f"an error that imgfs did not expect: {type(error).__name__}: {error}"]
    texts = (
        field.replace("\0", "?").encode(errors="backslashreplace")[: _TEXT_LIMIT - 1] for field in fields
    )
    return b"\0".join(texts)


def parse_error(body: bytes, job: Job) -> ImgfsError:
    """Read the body of FAILED; an expected digest is the job's again. Raises Broken."""
    name, *texts = body.decode(errors="replace").split("\0")
    if name == "IntegrityError" and len(texts) == 3:
        promised: dict[str, object] = {str(digest): digest for digest in (job.layer.digest, job.diff_id)}
        return IntegrityError(texts[0], expected=promised.get(texts[1], texts[1]), actual=texts[2])
    if name in _ERRORS and len(texts) == 1:
        return _ERRORS[name](texts[0])
    raise Broken("an error that is none")


# -- in the process ------------------------------------------------------------------------------------------


def serve(end: socket.socket) -> NoReturn:
    """Be the process: scan layers until the parent has no more or is gone. Called right after the fork."""
    try:
        gc.freeze()  # what the parent has open is not this process's to close
        _let_go(end.fileno())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, too
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        channel = Channel(end, _CHUNK_LIMIT)
        while True:
            _, job, flat = channel.receive()
            assert flat is not None  # a JOB has one
            _Scan(channel, pickle.loads(job), flat).run()  # the parent's, whose fork this is
    except Broken:
        os._exit(0)
    except BaseException:  # noqa: BLE001  (the parent sees that this process is gone)
        os._exit(1)


def _let_go(kept: int) -> None:
    """Have all descriptors but `kept` and standard error lead nowhere: pipes, locks and connections end when
    the parent closes them. Their numbers stay in use: objects of the parent's may still close them.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number not in (kept, null, 2):
            try:
                os.dup2(null, number, inheritable=False)
            except OSError:  # the listing's own
                continue


class _Aborted(Exception):
    """The blob breaks off."""


class _Scan:
    """One layer's scan in the process. As a flat file it writes, and tells how much.

    Locks: `_receiving` is held while a message is received and what it names is read: a scan in threads that
    has failed leaves one that waits for the next chunk.
    """

    def __init__(self, channel: Channel, job: Job, flat: int) -> None:
        self._channel = channel
        self._job = job
        self._flat = flat
        self._untold = 0
        self._part: int | None = None
        self._part_path = Path()
        self._is_aborted = False
        self._is_over = False  # all of the blob has come, or no more of it comes
        self._receiving = threading.Lock()

    def write(self, offset: int, piece: bytes | memoryview) -> None:
        """Put `piece` at `offset`. Raises StoreError."""
        write_at(self._flat, offset, piece)
        self._untold += len(piece)
        if self._untold >= _TOLD_EVERY:
            self._tell()

    def _tell(self) -> None:
        self._channel.send(Message.WROTE, pack_number(self._untold))
        self._untold = 0

    def run(self) -> None:
        """Scan, and answer."""
        try:
            answer = Message.DONE, pack_number(self._scan())
        except Broken:
            raise
        except Exception as error:  # noqa: BLE001  (the parent raises it)
            answer = Message.FAILED, pack_error(error)
        finally:
            os.close(self._flat)
        self._tell()
        self._channel.send(*answer)
        with self._receiving:
            self._use(None, b"")
            self._receive_rest()

    def _receive_rest(self) -> None:
        """Ignore what still comes of the blob."""
        while not self._is_over:
            kind, _, fd = self._channel.receive()
            self._is_over = kind in (Message.END, Message.ABORT)
            if fd is not None:
                os.close(fd)

    def _scan(self) -> int:
        job = self._job
        with store_errors(job.path):
            index = IndexWriter(job.path, shared=True)
            try:
                return scan(self._chunks(), job.layer, job.diff_id, self, index, inline=not job.in_threads)
            finally:
                index.close()

    def _chunks(self) -> Iterator[bytes]:
        while (chunk := self._next_chunk()) is not None:
            yield chunk
        if self._is_aborted:
            raise _Aborted

    def _use(self, fd: int | None, path: bytes) -> None:
        """Go on with what is stored in another open file, or in none."""
        if self._part is not None:
            os.close(self._part)
        self._part, self._part_path = fd, Path(os.fsdecode(path))

    def _stored(self, start: int, end: int) -> bytes:
        assert self._part is not None  # a FILE comes first
        return StoredPiece(self._part, start, end, self._part_path).read()

    def _next_chunk(self) -> bytes | None:
        """Receive a chunk; None when there are no more."""
        with self._receiving:
            return None if self._is_over else self._receive_chunk()

    def _receive_chunk(self) -> bytes | None:
        kind, body, fd = self._channel.receive()
        if kind is Message.FILE:
            self._use(fd, body)
            kind, body, _ = self._channel.receive()
        if kind is Message.CHUNK:
            return body
        if kind is Message.STORED:
            return self._stored(*_RANGE.unpack(body))
        self._is_over = True
        self._is_aborted = kind is Message.ABORT
        return None
