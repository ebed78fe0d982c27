"""How many system calls a change of a scratch takes: they are most of what it costs."""

from __future__ import annotations

import os
import stat
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from imgfs.fuse.once import new_memory
from imgfs.fuse.opcodes import Opcode, SetattrMask
from imgfs.fuse.operations import Operations
from imgfs.fuse.protocol import Head
from imgfs.fuse.union_view import UnionView
from imgfs.fuse.views import TreeView
from imgfs.fuse.writable import WritableOperations
from imgfs.overlay.overlay import Overlay
from imgfs.tree.reader import Tree
from tests.support import tarmake as tar
from tests.support.layers import merged
from tests.support.union_sights import TarBytes, ino, overlay_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and trusted xattrs need root")

LAYER = tar.archive(
    *(tar.directory(name, mtime_ns=3) for name in ("d", "d/e", "d/e/f")),
    tar.file("d/e/f/one", b"in a directory", mtime_ns=4),
    tar.file("d/e/f/other", b"another", mtime_ns=5),
)
SETATTR = struct.Struct("=2I3Q3q8I")  # fuse_setattr_in (linux/fuse.h)


class Kernel:
    """Has requests handled, and counts the system calls that Python makes meanwhile."""

    def __init__(self, tree: Tree, overlay: Overlay, descriptor: int) -> None:
        self._overlay = overlay
        view = UnionView(TreeView(tree, TarBytes(LAYER)), self._overlay)  # type: ignore[arg-type]
        operations = WritableOperations(
            Operations(view), view, self._overlay, write_through=False, once=new_memory()
        )
        self._handlers = operations.session(descriptor)._handlers
        self.root = ino(self._overlay, b"")

    def ino(self, path: bytes) -> int:
        return ino(self._overlay, path)

    def ask(self, opcode: Opcode, number: int, body: bytes) -> tuple[list[str], bytes]:
        """The names of the calls, and the answer."""
        with counting() as calls:
            answer = self._handlers[opcode](Head(opcode, 40, number, 0, 0, 1), memoryview(body))
        assert isinstance(answer, bytes)
        return calls, answer

    def set(self, number: int, changes: int, mode: int = 0) -> list[str]:
        """The calls of a SETATTR."""
        now = int(time.time())
        body = SETATTR.pack(changes, 0, 0, 0, 0, now, now, now, 1, 2, 3, mode, 0, 0, 0, 0)
        return self.ask(Opcode.SETATTR, number, body)[0]


@contextmanager
def counting() -> Iterator[list[str]]:
    """The system calls by `os`, as they are made."""
    calls: list[str] = []

    def hear(_frame: FrameType, event: str, called: object) -> None:
        if event == "c_call" and getattr(called, "__module__", None) == os.name:
            calls.append(getattr(called, "__name__", ""))

    sys.setprofile(hear)
    try:
        yield calls
    finally:
        sys.setprofile(None)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    scratch, device = tmp_path / "scratch", os.open(os.devnull, os.O_RDWR)
    with merged(tmp_path, LAYER) as tree, overlay_of(tree, TarBytes(LAYER), scratch) as overlay:
        yield Kernel(tree, overlay, device)
    os.close(device)


def test_a_file_that_is_unpacked_takes_two_calls_for_each_change(kernel: Kernel) -> None:
    _, answer = kernel.ask(Opcode.MKDIR, kernel.root, struct.pack("II", 0o755, 0) + b"new\0")
    (directory,) = struct.unpack_from("Q", answer)
    make = struct.pack("IIII", os.O_RDWR, stat.S_IFREG | 0o600, 0, 0)
    kernel.ask(Opcode.CREATE, directory, make + b"first\0")  # looks for an ACL that files inherit
    calls, answer = kernel.ask(Opcode.CREATE, directory, make + b"file\0")
    assert calls == ["open", "fstat"]
    (number,) = struct.unpack_from("Q", answer)
    write = struct.pack("QQIIQII", 0, 0, 4, 1, 0, 0, 0) + b"data"
    assert kernel.ask(Opcode.WRITE, number, write)[0] == ["fstat", "pwrite", "fstat"]
    times = SetattrMask.ATIME | SetattrMask.MTIME | SetattrMask.CTIME
    assert kernel.set(number, times) == ["utime", "fstat"]
    owner = SetattrMask.UID | SetattrMask.GID | SetattrMask.CTIME | SetattrMask.KILL_SUIDGID
    assert kernel.set(number, owner) == ["chown", "fstat"]
    assert kernel.set(number, SetattrMask.MODE | SetattrMask.CTIME, 0o644) == ["chmod", "fstat"]
    assert kernel.ask(Opcode.RELEASE, number, struct.pack("QIIQ", 3, 0, 0, 0))[0] == ["close"]
    assert kernel.ask(Opcode.LOOKUP, directory, b"file\0")[0] == ["stat"]


def test_the_times_of_a_file_that_is_gone_are_not_written_and_those_of_a_link_that_stays_are(
    kernel: Kernel,
) -> None:
    make = struct.pack("IIII", os.O_RDWR, stat.S_IFREG | 0o600, 0, 0)
    flushed = SetattrMask.MTIME | SetattrMask.CTIME
    for name, linked in ((b"one", False), (b"other", True)):
        _, answer = kernel.ask(Opcode.CREATE, kernel.root, make + name + b"\0")
        (number,) = struct.unpack_from("Q", answer)
        kernel.ask(Opcode.RELEASE, number, struct.pack("QIIQ", 3, 0, 0, 0))
        if linked:
            kernel.ask(Opcode.LINK, kernel.root, struct.pack("Q", number) + b"link\0")
        kernel.ask(Opcode.UNLINK, kernel.root, name + b"\0")
        assert ("utime" in kernel.set(number, flushed)) == linked
    assert "utime" in kernel.set(number, flushed | SetattrMask.ATIME)


def test_a_file_of_the_image_is_copied_up_by_few_calls(kernel: Kernel) -> None:
    one, other = kernel.ino(b"d/e/f/one"), kernel.ino(b"d/e/f/other")
    kernel.set(one, SetattrMask.MODE, 0o600)  # with its directories
    calls = kernel.set(other, SetattrMask.MODE, 0o600)
    assert calls.count("open") == 1  # of the copy
    assert len(calls) <= 16, calls
