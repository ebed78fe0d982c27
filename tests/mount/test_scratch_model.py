"""Random work in a writable scratch, in a plain directory and in a model: all three must agree, always.

After each operation its outcome and the paths it touched are compared, every few operations the whole tree.
`ScratchMachine` works in any `Place`; kernel overlayfs is one, which shows that the machine asks for nothing
that a good scratch does not do.

A run is the same few examples each time. $IMGFS_SCRATCH_EXAMPLES=N tries N random ones and shrinks what
fails.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from imgfs.mounts.table import mounts
from tests.support.mounted import Imgfs
from tests.support.scratch_files import EXCHANGE, NOREPLACE, Disk, Files, State
from tests.support.scratch_image import NAMES, Base, write_base
from tests.support.scratch_model import UMASK, Model, Node, Refused
from tests.support.scratch_places import Overlayfs, Place, Scratch
from tests.support.umoci_oracle import Seen, differences, walk_directory

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parts,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="owners, devices and trusted xattrs need root"),
    pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed"),
]

EXAMPLES = int(os.environ.get("IMGFS_SCRATCH_EXAMPLES", "0"))
STEPS = 40  # operations in an example
MOUNTED = 6  # operations at least between one mount and the next
WHOLE = 6  # operations after which the whole tree is compared
MOST_OPEN = 4  # open files

LARGEST = 40 << 20  # bytes, a file counting 64 KiB, that the tree may have to be copied once more


class Outcome(NamedTuple):
    """What an operation returned, or how it failed; several errors, where each would be right."""

    result: object
    errors: frozenset[int] = frozenset()


NAME = st.sampled_from(NAMES)
LONG = st.sampled_from([b"n" * 255, b"n" * 256])
WILD = st.lists(st.one_of(*[NAME] * 12, LONG), min_size=1, max_size=4).map(b"/".join)
TARGET = st.one_of(st.lists(NAME, min_size=1, max_size=3).map(b"/".join), st.just(b"/nowhere/at all"))
DATA = st.builds(
    lambda byte, length: bytes([byte]) * length, st.integers(1, 255), st.sampled_from([1, 7, 4096, 140_000])
)
OFFSET = st.sampled_from([0, 0, 1, 5, 4095, 100_000, (1 << 20) + 3, 3 << 20])
SIZE = st.sampled_from([0, 1, 10, 4096, 100_000, 1 << 20, (3 << 20) + 1])
FILE_MODE = st.sampled_from([0o644, 0o600, 0o666, 0o755, 0o4755, 0o2755, 0o2644, 0o000])
DIRECTORY_MODE = st.sampled_from([0o755, 0o700, 0o2775, 0o1755, 0o777, 0o500])
OWNER = st.sampled_from([0, 1000, 65534])
TIME = st.sampled_from([0, 1, 1_600_000_000_987_654_321, -1_500_000_000, 1 << 62])
XATTR = st.sampled_from([b"user.a", b"user.b", b"trusted.t"])
VALUE = st.sampled_from([b"", b"y", b"\x00\xff", b"v" * 1000])
ON_XATTR = st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])
ON_RENAME = st.sampled_from([0, 0, 0, NOREPLACE, EXCHANGE])
SPECIAL = st.sampled_from([(0o010644, 0), (0o020600, os.makedev(1, 3)), (0o060660, os.makedev(300, 70_000))])
ON_OPEN = st.sampled_from([os.O_RDONLY, os.O_RDWR])


Mount = Callable[[Path], Place]  # with the scratch and the mount point in a directory


class ScratchMachine(RuleBasedStateMachine):
    """The rules."""

    def __init__(self, base: Base, mount: Mount) -> None:
        super().__init__()
        self.umask = os.umask(UMASK)
        self.directory = Path(tempfile.mkdtemp(dir=base.tree.parent.parent))
        self.place = mount(self.directory)
        subprocess.run(["cp", "-a", base.tree, self.directory / "plain"], check=True)
        self.model = Model.of(self.directory / "plain")
        self.scratch, self.plain = Disk(self.place.root), Disk(self.directory / "plain")
        self.of_image = {node for _, node in self.model.nodes()}
        self.numbers: dict[Node, int] = {}
        self.operations = self.opened = self.mounted_at = 0

    def teardown(self) -> None:
        """Compare all once more, unless that has failed, and leave nothing."""
        try:
            if sys.exc_info()[0] is None:
                self.compare_whole()
        finally:
            self.close_all()
            self.place.umount()
            os.umask(self.umask)
            shutil.rmtree(self.directory)

    # -- doing and comparing

    def do(self, operation: Callable[[Files], object], *paths: bytes) -> bool:
        """Do it three times; whether it could be done."""
        touched = self.names_of(paths)
        model, plain, scratch = self.each(operation)
        note(f"-> {errno_names(model.errors)}")
        assert agree(model, plain), f"the model is wrong: {model}; on disk it is {plain}"
        assert scratch == plain
        for path in sorted(touched | self.names_of(paths)):
            self.compare_path(path)
        self.operations += 1
        if self.operations % WHOLE == 0:
            self.compare_whole()
        return not model.errors

    def each(self, operation: Callable[[Files], object]) -> tuple[Outcome, Outcome, Outcome]:
        """The outcomes for the model, the plain directory and the scratch."""
        return (
            outcome(operation, self.model),
            outcome(operation, self.plain),
            outcome(operation, self.scratch),
        )

    def names_of(self, paths: tuple[bytes, ...]) -> set[bytes]:
        """The paths, the directories they are in, and all names of what they lead to."""
        near = {*paths, *map(os.path.dirname, paths)}
        return near.union(*map(self.model.names, paths))

    def compare_path(self, path: bytes) -> None:
        model, plain, scratch = self.each(partial(look, path, self.model.is_dated(path)))
        assert agree(model, plain), f"the model is wrong about {path!r}: {model}; on disk it is {plain}"
        assert (path, scratch) == (path, plain)

    def compare_whole(self) -> None:
        expected, undated = self.model.seen(), self.model.undated()
        plain = walk_directory(Path(os.fsdecode(self.plain.root)))
        assert differences(expected, plain, ignoring_mtime=undated) == [], "the model is wrong"
        assert differences(expected, walk_directory(self.place.root), ignoring_mtime=undated) == []
        self.compare_numbers()

    def compare_numbers(self) -> None:
        """Every file keeps its own st_ino, and no other has it; directories count their subdirectories."""
        here = set()
        for path, node in self.model.nodes():
            found = os.lstat(os.path.join(self.scratch.root, path))
            assert self.numbers.setdefault(node, found.st_ino) == found.st_ino, (path, "st_ino")
            here.add((node, found.st_ino))
            if node.is_directory and self.place.counts_directories:
                assert found.st_nlink == self.model.nlink(node), (path, "st_nlink")
        assert len({number for _, number in here}) == len(here), "two files of one st_ino"

    # -- choosing paths

    def path(self, data: st.DataObject, *kinds: int) -> bytes:
        """Mostly of something that is there, and of one of the kinds."""
        there = [(path, node.kind) for path, node in self.model.nodes() if path] or [(b"a", 0)]
        right = [path for path, kind in there if kind in kinds] or [path for path, _ in there]
        others = st.one_of(st.sampled_from([path for path, _ in there]), self.beside(), WILD)
        return data.draw(
            st.one_of(st.sampled_from(right), st.sampled_from(right), st.sampled_from(right), others)
        )

    def new_path(self, data: st.DataObject) -> bytes:
        """Mostly in a directory, where something may be, or not."""
        return data.draw(st.one_of(self.beside(), self.beside(), self.beside(), WILD))

    def beside(self) -> st.SearchStrategy[bytes]:
        nodes = self.model.nodes()
        inside = [path for path, node in nodes if node.is_directory or node.target]
        return st.builds(os.path.join, st.sampled_from(inside), NAME)

    def directory_path(self, data: st.DataObject) -> bytes:
        """Of a directory, if need be the root."""
        return data.draw(st.sampled_from([path for path, node in self.model.nodes() if node.is_directory]))

    # -- files

    @rule(data=st.data(), mode=FILE_MODE, content=DATA)
    def create(self, data: st.DataObject, mode: int, content: bytes) -> None:
        path = self.new_path(data)
        self.do(lambda on: on.create(path, mode, content), path)

    @rule(data=st.data(), content=DATA)
    def replace(self, data: st.DataObject, content: bytes) -> None:
        path = self.path(data, stat.S_IFREG)
        if not self.model.is_special(path):
            self.do(lambda on: on.replace(path, content), path)

    @rule(data=st.data(), offset=OFFSET, content=DATA)
    def write(self, data: st.DataObject, offset: int, content: bytes) -> None:
        path = self.path(data, stat.S_IFREG)
        if not self.model.is_special(path):
            self.do(lambda on: on.write(path, offset, content), path)

    @rule(data=st.data(), content=DATA)
    def append(self, data: st.DataObject, content: bytes) -> None:
        path = self.path(data, stat.S_IFREG)
        if not self.model.is_special(path):
            self.do(lambda on: on.append(path, content), path)

    @rule(data=st.data(), size=SIZE)
    def truncate(self, data: st.DataObject, size: int) -> None:
        path = self.path(data, stat.S_IFREG)
        self.do(lambda on: on.truncate(path, size), path)

    @rule(data=st.data(), offset=OFFSET)
    def read(self, data: st.DataObject, offset: int) -> None:
        path = self.path(data, stat.S_IFREG)
        if not self.model.is_special(path):
            self.do(lambda on: on.read(path, offset, 70_000), path)

    @rule(data=st.data())
    def unlink(self, data: st.DataObject) -> None:
        path = self.path(data, stat.S_IFREG, stat.S_IFLNK)
        self.do(lambda on: on.unlink(path), path)

    # -- names

    @rule(data=st.data())
    def link(self, data: st.DataObject) -> None:
        source, target = self.path(data, stat.S_IFREG, stat.S_IFLNK), self.new_path(data)
        self.do(lambda on: on.link(source, target), source, target)

    @rule(data=st.data(), content=TARGET)
    def symlink(self, data: st.DataObject, content: bytes) -> None:
        path = self.new_path(data)
        self.do(lambda on: on.symlink(content, path), path)

    @rule(data=st.data(), special=SPECIAL)
    def mknod(self, data: st.DataObject, special: tuple[int, int]) -> None:
        path = self.new_path(data)
        self.do(lambda on: on.mknod(path, *special), path)

    @rule(data=st.data(), flags=ON_RENAME)
    def rename(self, data: st.DataObject, flags: int) -> None:
        source, target = self.path(data), self.new_path(data)
        self.do(lambda on: on.rename(source, target, flags), source, target)

    @rule(data=st.data(), flags=ON_RENAME)
    def rename_directory(self, data: st.DataObject, flags: int) -> None:
        source, target = self.directory_path(data), self.new_path(data)
        if source:
            self.do(lambda on: on.rename(source, target, flags), source, target)

    # -- directories

    @rule(data=st.data(), mode=DIRECTORY_MODE)
    def mkdir(self, data: st.DataObject, mode: int) -> None:
        path = self.new_path(data)
        self.do(lambda on: on.mkdir(path, mode), path)

    @rule(data=st.data())
    def rmdir(self, data: st.DataObject) -> None:
        path = self.path(data)
        self.do(lambda on: on.rmdir(path), path)

    @rule(data=st.data())
    def listdir(self, data: st.DataObject) -> None:
        path = data.draw(st.one_of(st.just(self.directory_path(data)), st.just(self.path(data))))
        self.do(lambda on: on.listdir(path), path)

    @rule(data=st.data())
    def remove_tree(self, data: st.DataObject) -> None:
        path = self.directory_path(data)
        if path:
            self.do(lambda on: on.remove_tree(path), path)

    @rule(data=st.data())
    def copy_tree(self, data: st.DataObject) -> None:
        source, target = self.directory_path(data), self.new_path(data)
        small = sum(node.size + (1 << 16) for _, node in self.model.nodes()) < LARGEST
        if small and self.model.can_copy(source, target):
            self.do(lambda on: on.copy_tree(source, target), source, target)

    # -- attributes

    @rule(data=st.data(), mode=st.one_of(FILE_MODE, DIRECTORY_MODE))
    def chmod(self, data: st.DataObject, mode: int) -> None:
        path = self.path(data)
        self.do(lambda on: on.chmod(path, mode), path)

    @rule(data=st.data(), uid=OWNER, gid=OWNER)
    def chown(self, data: st.DataObject, uid: int, gid: int) -> None:
        path = self.path(data)
        self.do(lambda on: on.chown(path, uid, gid), path)

    @rule(data=st.data(), mtime_ns=TIME)
    def utime(self, data: st.DataObject, mtime_ns: int) -> None:
        path = self.path(data)
        self.do(lambda on: on.utime(path, mtime_ns), path)

    @rule(data=st.data(), name=XATTR, value=VALUE, flags=ON_XATTR)
    def set_xattr(self, data: st.DataObject, name: bytes, value: bytes, flags: int) -> None:
        path = self.path(data, stat.S_IFREG, stat.S_IFDIR)
        self.do(lambda on: on.set_xattr(path, name, value, flags), path)

    @rule(data=st.data(), name=XATTR)
    def remove_xattr(self, data: st.DataObject, name: bytes) -> None:
        path = self.path(data, stat.S_IFREG, stat.S_IFDIR)
        self.do(lambda on: on.remove_xattr(path, name), path)

    @rule()
    def dress_root(self) -> None:
        self.do(lambda on: on.chmod(b"", 0o711), b"")
        self.do(lambda on: on.set_xattr(b"", b"user.root", b"y", 0), b"")
        self.do(lambda on: on.utime(b"", 1_000_000_001), b"")

    # -- open files

    @precondition(lambda self: len(self.model.opened) < MOST_OPEN)
    @rule(data=st.data(), flags=ON_OPEN)
    def open(self, data: st.DataObject, flags: int) -> None:
        path, number = self.path(data, stat.S_IFREG), self.opened
        if flags != os.O_RDONLY and not self.place.keeps_time_when_opened:
            self.model.forget_time(path)
        if not self.model.is_special(path) and self.do(lambda on: on.open(number, path, flags), path):
            self.opened += 1

    @precondition(lambda self: self.model.opened)
    @rule(data=st.data(), offset=OFFSET, content=DATA)
    def write_open(self, data: st.DataObject, offset: int, content: bytes) -> None:
        number = self.open_number(data)
        self.do(lambda on: on.write_open(number, offset, content))
        self.compare_open(number)

    @precondition(lambda self: self.model.opened)
    @rule(data=st.data(), size=SIZE)
    def truncate_open(self, data: st.DataObject, size: int) -> None:
        number = self.open_number(data)
        self.do(lambda on: on.truncate_open(number, size))
        self.compare_open(number)

    @precondition(lambda self: self.model.opened)
    @rule(data=st.data(), mode=FILE_MODE)
    def chmod_open(self, data: st.DataObject, mode: int) -> None:
        number = self.open_number(data)
        if self.place.knows_unlinked or self.model.names_open(number):
            self.do(lambda on: on.chmod_open(number, mode))
            self.compare_open(number)

    @precondition(lambda self: self.model.opened)
    @rule(data=st.data())
    def unlink_open(self, data: st.DataObject) -> None:
        number = self.open_number(data)
        for path in self.model.names_open(number):
            self.do(lambda on, path=path: on.unlink(path), path)  # type: ignore[misc]  # mypy#12557
        self.compare_open(number)

    @precondition(lambda self: self.model.opened)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        number = self.open_number(data)
        self.compare_open(number)
        self.do(lambda on: on.close(number))

    def open_number(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.model.opened)))

    def compare_open(self, number: int) -> None:
        self.do(lambda on: on.read_open(number, 0, 8 << 20))
        self.do(lambda on: self.comparable(on.state_open(number)))

    def comparable(self, state: State) -> State:
        return state if self.place.knows_unlinked else state._replace(nlink=0)

    # -- mounting

    @precondition(lambda self: self.operations >= self.mounted_at + MOUNTED)
    @rule()
    def remount(self) -> None:
        self.close_all()
        self.place.umount()
        self.place.mount()
        self.compare_mounted_again()

    @precondition(lambda self: self.operations >= self.mounted_at + MOUNTED)
    @rule()
    def crash(self) -> None:
        self.scratch.sync()
        self.place.crash()
        self.close_all()
        self.place.mount()
        self.compare_mounted_again()

    def compare_mounted_again(self) -> None:
        """Only what is of the image must have kept its number."""
        self.mounted_at = self.operations
        kept = {node for node in self.of_image if self.place.keeps_directory_numbers or not node.is_directory}
        self.numbers = {node: number for node, number in self.numbers.items() if node in kept}
        self.compare_whole()

    def close_all(self) -> None:
        for number in list(self.scratch.opened):
            with contextlib.suppress(OSError):  # the server may be dead
                self.scratch.close(number)
        for number in list(self.plain.opened):
            self.plain.close(number)
        self.model.opened.clear()


def look(path: bytes, is_dated: bool, files: Files) -> Seen:
    """What is at a path, without its time if nobody has set that."""
    seen = files.look(path)
    return seen if is_dated else replace(seen, mtime_ns=0)


def outcome(operation: Callable[[Files], object], files: Files) -> Outcome:
    """Do it, and say how it went."""
    try:
        return Outcome(operation(files))
    except Refused as refused:
        return Outcome(None, refused.numbers)
    except OSError as error:
        return Outcome(None, frozenset([error.errno or 0]))


def agree(model: Outcome, disk: Outcome) -> bool:
    """Whether the disk did what the model says, or failed as it allows."""
    return (
        model.result == disk.result
        and bool(model.errors) == bool(disk.errors)
        and disk.errors <= model.errors
    )


def errno_names(numbers: frozenset[int]) -> str:
    return " or ".join(errno.errorcode.get(number, "?") for number in sorted(numbers)) or "done"


def run(base: Base, mount: Mount, examples: int) -> None:
    """Run the machine: the same `examples` each time, or as many as the environment asks for."""

    class Machine(ScratchMachine):
        def __init__(self) -> None:
            super().__init__(base, mount)

    usual = (Phase.explicit, Phase.generate)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES or examples,
            stateful_step_count=STEPS,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            phases=(*usual, Phase.shrink) if EXAMPLES else usual,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Base]:
    yield write_base(tmp_path / "base")
    assert mounts_below(tmp_path) == []


def mounts_below(path: Path) -> list[Path]:
    return [mount.mountpoint for mount in mounts() if mount.mountpoint.is_relative_to(path)]


def test_the_machine_is_content_with_the_kernels_overlayfs(base: Base) -> None:
    run(base, lambda directory: Overlayfs(base, directory / "scratch", directory / "mnt"), 8)


@pytest.mark.drivers("fuse", "kernel")
def test_a_scratch_behaves_as_a_plain_directory_and_as_the_model(imgfs: Imgfs, base: Base) -> None:
    examples = {"fuse": 7, "kernel": 3}[imgfs.driver]
    run(base, lambda directory: Scratch(imgfs, base, directory / "scratch", directory / "mnt"), examples)
