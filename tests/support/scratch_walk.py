"""A random walk: some hundred changes of every kind to a writable tree, the same each time."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from tests.support.scratch_files import EXCHANGE, Disk

_TIME = 1_650_000_000_123_456_789


def wander(root: Path, changes: int, seed: int) -> None:
    """Make that many changes below `root`; as root, who may do everything."""
    walk = _Walk(root, random.Random(seed))
    while walk.done < changes:
        walk.step()


class _Walk:
    def __init__(self, root: Path, source: random.Random) -> None:
        self.done = 0
        self._root = root
        self._disk = Disk(root)
        self._source = source
        self._steps: list[Callable[[], None]] = [
            self._create, self._create, self._append, self._truncate, self._sparse, self._mkdir,
            self._unlink, self._unlink, self._rename, self._rename, self._rename, self._exchange,
            self._link, self._link, self._symlink, self._fifo, self._device, self._chmod, self._chown,
            self._utime, self._xattr, self._replace_directory, self._remove_tree,
            self._replace_by_another_kind,
        ]  # fmt: skip

    def step(self) -> None:
        try:
            self._source.choice(self._steps)()
        except OSError:  # what cannot be done is not
            return
        self.done += 1

    def _any(self, *kinds: int) -> bytes:
        """Return a path that is there, of one of the kinds, if there are any such."""
        found = [os.fsencode(path.relative_to(self._root)) for path in sorted(self._root.rglob("*"))]
        if kinds:
            found = [path for path in found if stat.S_IFMT(self._disk.look(path).mode) in kinds]
        return self._source.choice(found or [b"none"])

    def _free(self) -> bytes:
        """Return a path that may be free."""
        directory = self._source.choice([b"", self._any(stat.S_IFDIR)])
        name = self._source.choice([b"a", b"new", b"\xfe\xff", "ü".encode(), b"line\nbreak", b"n" * 200])
        return os.path.join(directory, name + b"%d" % self._source.randrange(12))

    def _body(self) -> bytes:
        return self._source.randbytes(self._source.choice([0, 1, 700, 40_000]))

    def _create(self) -> None:
        self._disk.create(self._free(), self._source.choice([0o644, 0o600, 0o4755, 0o000]), self._body())

    def _append(self) -> None:
        self._disk.append(self._any(stat.S_IFREG), self._body())

    def _truncate(self) -> None:
        self._disk.truncate(self._any(stat.S_IFREG), self._source.choice([0, 3, 100_000]))

    def _sparse(self) -> None:
        path = self._free()
        self._disk.create(path, 0o644, b"begins")
        self._disk.write(path, 1_000_000, b"goes on")
        self._disk.truncate(path, 3_000_000)

    def _unlink(self) -> None:
        self._disk.unlink(self._any())

    def _mkdir(self) -> None:
        self._disk.mkdir(self._free(), self._source.choice([0o755, 0o700, 0o1777]))

    def _rename(self) -> None:
        self._disk.rename(self._any(), self._source.choice([self._free(), self._any()]), 0)

    def _exchange(self) -> None:
        self._disk.rename(self._any(), self._any(), EXCHANGE)

    def _link(self) -> None:
        self._disk.link(self._any(stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO), self._free())

    def _symlink(self) -> None:
        self._disk.symlink(self._source.choice([b"a", b"../b", b"/no/where", b"\xfe"]), self._free())

    def _fifo(self) -> None:
        self._disk.mknod(self._free(), stat.S_IFIFO | 0o640, 0)

    def _device(self) -> None:
        kind = self._source.choice([stat.S_IFCHR, stat.S_IFBLK])
        self._disk.mknod(self._free(), kind | 0o600, os.makedev(self._source.randrange(1, 300), 70_000))

    def _chmod(self) -> None:
        self._disk.chmod(
            self._any(stat.S_IFREG, stat.S_IFDIR), self._source.choice([0o600, 0o755, 0o2711, 0])
        )

    def _chown(self) -> None:
        self._disk.chown(self._any(), self._source.randrange(70_000), 50)

    def _utime(self) -> None:
        self._disk.utime(self._any(), _TIME + self._source.randrange(10**9))

    def _xattr(self) -> None:
        name = self._source.choice([b"user.a", b"user.\xc3\xbc", b"trusted.t"])
        self._disk.set_xattr(
            self._any(stat.S_IFREG, stat.S_IFDIR), name, self._source.randbytes(9) + b"\0\n=", 0
        )

    def _replace_directory(self) -> None:
        """By a new one with one file in it."""
        path = self._any(stat.S_IFDIR)
        shutil.rmtree(self._root / os.fsdecode(path))
        self._disk.mkdir(path, 0o755)
        self._disk.create(path + b"/a", 0o644, b"instead")

    def _remove_tree(self) -> None:
        if self._source.random() < 0.3:
            shutil.rmtree(self._root / os.fsdecode(self._any(stat.S_IFDIR)))

    def _replace_by_another_kind(self) -> None:
        path = self._any(stat.S_IFREG, stat.S_IFLNK)
        self._disk.unlink(path)
        if self._source.random() < 0.5:
            self._disk.mkdir(path, 0o755)
        else:
            self._disk.symlink(b"a", path)
