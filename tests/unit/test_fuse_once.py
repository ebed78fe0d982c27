"""A request that a killed process has begun, and that comes again, is done once, however far it had come."""

from __future__ import annotations

import itertools
import os
import stat
import struct
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from imgfs.fuse.namespace import NamespaceOperations
from imgfs.fuse.once import Once, new_memory
from imgfs.fuse.opcodes import RESENT, Opcode
from imgfs.fuse.operations import Operations
from imgfs.fuse.protocol import Head
from imgfs.fuse.session import Handler
from imgfs.fuse.union_view import UnionView
from imgfs.fuse.views import TreeView
from imgfs.overlay.entries import EXCHANGE
from imgfs.overlay.overlay import Overlay
from imgfs.tree.reader import Tree
from tests.support import tarmake as tar
from tests.support.layers import merged
from tests.support.union_fuse import CHANGING, Fuse, FusedUpper
from tests.support.union_sights import Sight, TarBytes, ino, overlay_of, sights

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and trusted xattrs need root")

LAYER = tar.archive(
    tar.directory("d", mtime_ns=3),
    tar.file("d/f", b"in a directory", mtime_ns=4),
    tar.directory("e", mtime_ns=8),
    tar.file("f", b"alone", mode=0o640, mtime_ns=10),
    tar.file("g", b"too", mtime_ns=11),
)
FINISHED, KILLED, UNIQUE = 0, 9, 40

Body = Callable[[Overlay], bytes]


def name(text: bytes) -> Body:
    return lambda _: text + b"\0"


def new_name(old: bytes, new: bytes, flags: int = 0) -> Body:
    return lambda overlay: struct.pack("QII", ino(overlay, b""), flags, 0) + old + b"\0" + new + b"\0"


CASES: dict[str, tuple[Opcode, Body]] = {
    "mkdir": (Opcode.MKDIR, name(struct.pack("II", 0o2750, 0o022) + b"n")),
    "mknod": (Opcode.MKNOD, name(struct.pack("IIII", stat.S_IFIFO | 0o640, 0, 0, 0) + b"n")),
    "create": (Opcode.CREATE, name(struct.pack("IIII", os.O_RDWR, stat.S_IFREG | 0o640, 0, 0) + b"n")),
    "symlink": (Opcode.SYMLINK, name(b"n\0target")),
    "link": (Opcode.LINK, lambda overlay: struct.pack("Q", ino(overlay, b"f")) + b"n\0"),
    "unlink": (Opcode.UNLINK, name(b"f")),
    "rmdir": (Opcode.RMDIR, name(b"e")),
    "rename": (Opcode.RENAME2, new_name(b"f", b"n")),
    "rename over another": (Opcode.RENAME2, new_name(b"f", b"g")),
    "rename a directory": (Opcode.RENAME2, new_name(b"d", b"e")),
    "exchange": (Opcode.RENAME2, new_name(b"f", b"d", EXCHANGE)),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    with merged(tmp_path_factory.mktemp("tree"), LAYER) as tree:
        yield tree


def handlers(tree: Tree, overlay: Overlay, memory: int) -> dict[Opcode, Handler]:
    view = UnionView(TreeView(tree, TarBytes(LAYER)), overlay)  # type: ignore[arg-type]
    names = NamespaceOperations(view, overlay, None)
    return Once(memory, overlay, Operations(view).lookup).handlers(names.handlers())


def request(tree: Tree, overlay: Overlay, memory: int, case: str, unique: int) -> bytes:
    opcode, body = CASES[case]
    head = Head(opcode, unique, ino(overlay, b""), 5, 6, 1)
    answer = handlers(tree, overlay, memory)[opcode](head, memoryview(body(overlay)))
    assert isinstance(answer, bytes)
    return answer


def seen(overlay: Overlay) -> dict[bytes, Sight]:
    return sights(overlay, TarBytes(LAYER))


def killed(tree: Tree, scratch: Path, memory: int, case: str, step: int) -> int:
    """Do what is requested in a child, which is killed before a step of it; its exit code."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            FusedUpper.fuse = fuse = Fuse(step, CHANGING, partial(os._exit, KILLED))
            upper = FusedUpper(scratch / "upper", scratch / "work")
            with Overlay(tree, TarBytes(LAYER), upper, durable=False) as overlay:
                fuse.light()
                request(tree, overlay, memory, case, UNIQUE)
            code = FINISHED
        except BaseException:  # noqa: BLE001 (told by the child, as the parent knows only its exit code)
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("case", CASES)
def test_what_comes_again_is_done_once(tree: Tree, tmp_path: Path, case: str) -> None:
    with overlay_of(tree, TarBytes(LAYER), tmp_path / "whole") as overlay:
        right = request(tree, overlay, new_memory(), case, UNIQUE), seen(overlay)
    for step in itertools.count(1):
        scratch, memory = tmp_path / f"{step}", new_memory()
        (scratch / "upper").mkdir(parents=True)
        code = killed(tree, scratch, memory, case, step)
        assert code in (FINISHED, KILLED)
        for _ in range(2):  # the second time it was done, too, and not answered
            with overlay_of(tree, TarBytes(LAYER), scratch) as overlay:
                answer = request(tree, overlay, memory, case, UNIQUE | RESENT)
                assert seen(overlay) == right[1], f"killed before step {step}"
                assert len(answer) == len(right[0])
        os.close(memory)
        if code == FINISHED:
            break
    assert step > 1


def test_what_was_refused_is_refused_again(tree: Tree, tmp_path: Path) -> None:
    memory = new_memory()
    with overlay_of(tree, TarBytes(LAYER), tmp_path) as overlay:
        head = Head(Opcode.MKDIR, UNIQUE, ino(overlay, b""), 5, 6, 1)
        body = memoryview(struct.pack("II", 0o755, 0) + b"f\0")
        for unique in (UNIQUE, UNIQUE | RESENT):
            with pytest.raises(FileExistsError):
                handlers(tree, overlay, memory)[Opcode.MKDIR](head._replace(unique=unique), body)
