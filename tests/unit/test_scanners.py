"""What the processes that scan layers say is checked, and one that dies is one clear error."""

from __future__ import annotations

import gzip
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import ImgfsError, IntegrityError, InvalidImage, StoreError, Unavailable
from imgfs.image.scan_process import (
    ANSWER_LIMIT,
    Broken,
    Channel,
    Job,
    Message,
    pack_error,
    parse_error,
    parse_number,
)
from imgfs.image.scanners import Scanners, ScanProcess, open_scanners
from imgfs.layer.index import LayerIndex
from imgfs.layer.scan import Bomb
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.store.partial import PartialBlob, StoredPiece, UnreadablePartial
from imgfs.store.staging import FlatWriter
from tests.support import tarmake
from tests.support.blobs import every, noise
from tests.support.children import Child

TAR = tarmake.archive(tarmake.file("noise", noise(3, 900_000)), tarmake.file("zeros", bytes(700_000)))
BLOB = gzip.compress(TAR, 1)
LAYER = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", Digest.of(BLOB), len(BLOB))
JOB = Job(LAYER, Digest.of(TAR), Path("index"))
WRONG = gzip.compress(b"x" * 2_000_000)
WRONG_JOB = JOB._replace(layer=Descriptor("", Digest.of(WRONG), len(WRONG)))

texts = st.text(max_size=200).map(lambda text: text.replace("\0", ""))


# -- what is answered ----------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_an_answer_of_any_bytes_is_an_error_of_imgfs_or_refused(body: bytes) -> None:
    for parse in (parse_number, lambda body: parse_error(body, JOB)):
        try:
            found = parse(body)
        except Broken:
            continue
        assert isinstance(found, int | ImgfsError)


@pytest.mark.parametrize("kind", [InvalidImage, Bomb, StoreError, UnreadablePartial, ImgfsError])
@given(text=texts)
def test_an_error_comes_back_as_it_was(kind: type[ImgfsError], text: str) -> None:
    found = parse_error(pack_error(kind(text)), JOB)
    assert type(found) is kind
    assert str(found).encode() == text.encode(errors="backslashreplace")


def test_a_promised_digest_comes_back_as_itself() -> None:
    error = IntegrityError("layer blob", expected=LAYER.digest, actual=Digest.of(b""))
    found = parse_error(pack_error(error), JOB)
    assert isinstance(found, IntegrityError)
    assert (found.expected, str(found)) == (LAYER.digest, str(error))


def test_an_unexpected_or_endless_error_is_one_short_line() -> None:
    assert "did not expect: MemoryError" in str(parse_error(pack_error(MemoryError()), JOB))
    assert len(pack_error(InvalidImage("x" * (1 << 20)))) < ANSWER_LIMIT
    assert (
        len(pack_error(IntegrityError("w" * 99_999, expected="e" * 99_999, actual="a" * 99_999)))
        < ANSWER_LIMIT
    )


@given(sent=st.binary(max_size=40))
def test_a_channel_takes_any_bytes_for_a_message_or_refuses_them(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(sent)
        channel = Channel(ours, 16)
        with suppress(Broken):  # in the end at the latest
            while True:
                kind, body, fd = channel.receive()
                assert (kind in Message, len(body) <= 16, fd) == (True, True, None)


# -- a process that lies or dies -----------------------------------------------------------------------------


class Impostor:
    """A process that only sleeps, and the other end of what would be its socket."""

    def __init__(self) -> None:
        self.child = subprocess.Popen(["sleep", "600"])
        ours, self.end = socket.socketpair()
        self.process = ScanProcess(self.child.pid, ours)
        self.channel = Channel(self.end, 1 << 20)

    def close(self) -> None:
        self.process.end()
        self.end.close()
        self.child.returncode = -9  # reaped


@pytest.fixture
def impostor() -> Iterator[Impostor]:
    impostor = Impostor()
    yield impostor
    impostor.close()


@pytest.fixture
def flat(tmp_path: Path) -> Iterator[FlatWriter]:
    writer = FlatWriter(tmp_path)
    yield writer
    writer.close()


@pytest.mark.parametrize(
    "answer",
    [
        (Message.WROTE, b"1234"),
        (Message.DONE, b""),
        (Message.FAILED, b"SystemExit\x001"),
        (Message.FAILED, b"IntegrityError\0one text"),
        (Message.JOB, b""),
        (Message.CHUNK, b"x" * (ANSWER_LIMIT + 1)),
    ],
)
def test_an_answer_that_makes_no_sense_ends_the_process(
    impostor: Impostor, flat: FlatWriter, answer: tuple[Message, bytes]
) -> None:
    impostor.channel.send(*answer)
    with pytest.raises(ImgfsError, match=f"layer {LAYER.digest.short}: the process that scanned it gave no"):
        impostor.process.scan(iter([b"x"]), JOB, flat)


def test_a_process_that_is_killed_is_named_with_the_signal(impostor: Impostor, flat: FlatWriter) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x"
        impostor.child.send_signal(signal.SIGKILL)
        impostor.end.close()
        yield b"x"

    with pytest.raises(ImgfsError, match="that scanned it was killed by signal 9"):
        impostor.process.scan(chunks(), JOB, flat)


class Noting(ScanProcess):
    """Scans nothing, but notes which layers it was to scan in threads."""

    def __init__(self) -> None:
        self.in_threads: list[bool] = []

    def scan(self, chunks: Iterator[bytes | StoredPiece], job: Job, flat: FlatWriter) -> int:  # noqa: ARG002
        self.in_threads.append(job.in_threads)
        return 0


@pytest.mark.parametrize(
    ("cores", "sizes", "expected"),
    [
        (2, [70, 20, 20, 20], [True, False, True, True]),  # one that outlasts all others, and the last two
        (2, [40, 20, 20, 20, 20], [False, False, False, True, True]),
        (8, [20, 20, 20], [True, True, True]),
        (2, [3, 20], [False, True]),  # 3 MiB are done before threads are
    ],
)
def test_threads_scan_what_would_keep_one_core_busy_when_the_others_have_nothing_left(
    flat: FlatWriter, cores: int, sizes: list[int], expected: list[bool]
) -> None:
    process = Noting()
    scanners = Scanners([process], sum(sizes) << 20, cores)
    for size in sizes:
        layer = replace(LAYER, size=size << 20)
        scanners.scan(iter([]), layer, JOB.diff_id, flat, Path("index"))
    assert process.in_threads == expected


# -- real ones: they are forked in a process with one thread -------------------------------------------------


def scan_in(
    scanners: Scanners, directory: Path, chunks: Iterator[bytes | StoredPiece], blob: Job = JOB
) -> bytes:
    """Scan, and return the flat layer."""
    directory.mkdir(exist_ok=True)
    path = directory / "index"
    path.unlink(missing_ok=True)
    path.touch()
    writer = FlatWriter(directory)
    try:
        size = scanners.scan(chunks, blob.layer, blob.diff_id, writer, path)
        assert writer.end == size
        with LayerIndex(path) as index:
            assert (index.summary.flat_size, index.summary.entries) == (size, 2)
            writer.keep(size=size, spans=index.span_count(), binding=index.binding())
    finally:
        writer.close()
    return (directory / "flat").read_bytes()


def in_processes(directory: Path) -> None:
    """One after the other, the same processes: good layers, bad ones, blobs that break off, files."""
    big = Descriptor(LAYER.media_type, LAYER.digest, 64 << 20)
    with open_scanners([big, big]) as scanners:
        assert scanners.count in (0, 2)  # none on one core
        for _ in range(3):
            assert scan_in(scanners, directory / "a", iter(every(BLOB, 100_000))) == TAR
            with pytest.raises(InvalidImage, match="not a tar header"):
                scan_in(scanners, directory / "b", iter(every(WRONG, 999)), WRONG_JOB)
            with pytest.raises(IntegrityError) as caught:
                scan_in(scanners, directory / "c", iter([BLOB]), JOB._replace(diff_id=Digest.of(b"")))
            assert caught.value.expected == Digest.of(b"")
            with pytest.raises(Unavailable, match="cut"):
                scan_in(scanners, directory / "d", cut())
            with ClosedWriter(directory) as unwritable, pytest.raises(StoreError, match="cannot write"):
                scanners.scan(every(BLOB, 9999), LAYER, JOB.diff_id, unwritable, unwritable.index)
            part = PartialBlob(directory / "a", len(BLOB))
            part.write(0, BLOB)
            pieces = (part.piece(unit) for unit in range(part.units))
            assert scan_in(scanners, directory / "e", pieces) == TAR
            part.close()
            with pytest.raises(UnreadablePartial, match="part: ends at"):
                scan_in(scanners, directory / "f", short(directory / "a"))
    assert all(process_is_gone(process) for process in scanners.processes)


class ClosedWriter(FlatWriter):
    """A file that a process cannot write to: its scan fails while the blob still comes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.index = directory / "index"
        self.index.unlink(missing_ok=True)
        self.index.touch()

    def fileno(self) -> int:
        return self._read_only.fileno()

    def __enter__(self) -> Self:
        self._read_only = self._held.path.open("rb")
        return self

    def __exit__(self, *_: object) -> None:
        self._read_only.close()
        self.close()


def cut() -> Iterator[bytes]:
    yield BLOB[:500_000]
    raise Unavailable("the wire is cut")


def short(directory: Path) -> Iterator[StoredPiece]:
    """A file that has become shorter behind our back."""
    part = PartialBlob(directory, len(BLOB))
    with (directory / "part").open("r+b") as file:
        file.truncate(1000)
    yield part.piece(0)
    part.close()


def process_is_gone(process: ScanProcess) -> bool:
    return not Path(f"/proc/{process.pid}").exists()


@pytest.mark.parametrize("in_threads", [False, True], ids=["by one thread", "by three"])
def test_processes_scan_as_threads_do_and_survive_what_is_wrong_with_a_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_threads: bool
) -> None:
    monkeypatch.setattr(Scanners, "_takes_threads", lambda _, size: in_threads and size > 0)
    with Child(lambda: in_processes(tmp_path)) as child:
        assert child.join() == 0


def with_children_ignored(directory: Path) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    in_processes(directory)


def test_processes_end_where_the_kernel_waits_for_them(tmp_path: Path) -> None:
    with Child(lambda: with_children_ignored(tmp_path)) as child:
        assert child.join() == 0


def test_without_processes_threads_scan(tmp_path: Path) -> None:
    hold = threading.Event()
    thread = threading.Thread(target=hold.wait)
    thread.start()  # so that forking is not safe
    try:
        in_processes_without(tmp_path)
    finally:
        hold.set()
        thread.join()


def in_processes_without(directory: Path) -> None:
    big = Descriptor(LAYER.media_type, LAYER.digest, 64 << 20)
    with open_scanners([big, big]) as scanners:
        assert scanners.count == 0
        assert scan_in(scanners, directory / "a", iter(every(BLOB, 100_000))) == TAR
