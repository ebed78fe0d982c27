"""What programs do to a mount while its daemon is killed: the same, by a seed, as to an undisturbed one.

    outcomes = Changes(at, random.Random(seed)).make(500)

Each call's result or errno is noted, and at the end `sight(at)` has every name, byte and mode: both have to
be the same for the mount that was killed and for its twin. As a program it prints them:

    python -m tests.support.storm read|change|database|ranges DIRECTORY SEED
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import sqlite3
import stat
import sys
from contextlib import closing
from pathlib import Path

_NAMES = [f"n{number}" for number in range(12)]
_SIZES = (0, 1, 700, 5_000, 70_000)
_XATTR = "user.storm"


class Changes:
    """A program that changes the files below a directory, and has some open, without a name as well."""

    def __init__(self, at: Path, chance: random.Random) -> None:
        self._at = at
        self._chance = chance
        self._held: list[int] = []
        self.outcomes: list[object] = []

    def make(self, count: int) -> list[object]:
        """Make so many calls; what came of each."""
        calls = [getattr(self, name) for name in sorted(dir(type(self))) if name.startswith("call_")]
        for _ in range(count):
            call = self._chance.choice(calls)
            try:
                outcome = call()
            except OSError as error:
                outcome = f"errno {error.errno}"
            self.outcomes.append((call.__name__, outcome))
        for fd in self._held:
            self.outcomes.append(_digest(fd))
            os.close(fd)
        return self.outcomes

    def _path(self) -> Path:
        depth = self._chance.choice((1, 1, 2, 2, 3))
        return self._at.joinpath(*(self._chance.choice(_NAMES) for _ in range(depth)))

    def _bytes(self) -> bytes:
        return self._chance.randbytes(self._chance.choice(_SIZES))

    def call_mkdir(self) -> None:
        self._path().mkdir(mode=self._chance.choice((0o755, 0o2750, 0o700)))

    def call_rmdir(self) -> None:
        self._path().rmdir()

    def call_write(self) -> int:
        return self._path().write_bytes(self._bytes())

    def call_append(self) -> int:
        path, body = self._path(), self._bytes()
        with open(path, "ab", buffering=0) as file:
            return file.write(body)

    def call_overwrite(self) -> int:
        path, body, offset = self._path(), self._bytes(), self._chance.randrange(100_000)
        fd = os.open(path, os.O_RDWR)
        try:
            written = os.pwrite(fd, body, offset)
            if self._chance.random() < 0.3:
                os.fsync(fd)
            return written
        finally:
            os.close(fd)

    def call_truncate(self) -> None:
        os.truncate(self._path(), self._chance.randrange(90_000))

    def call_rename(self) -> None:
        self._path().rename(self._path())

    def call_unlink(self) -> None:
        self._path().unlink()

    def call_unlink_too(self) -> None:
        self._path().unlink()

    def call_link(self) -> None:
        os.link(self._path(), self._path())

    def call_symlink(self) -> None:
        self._path().symlink_to(self._chance.choice(_NAMES))

    def call_chmod(self) -> None:
        self._path().chmod(self._chance.choice((0o600, 0o644, 0o751)))

    def call_setxattr(self) -> None:
        os.setxattr(self._path(), _XATTR, self._chance.randbytes(9), follow_symlinks=False)

    def call_removexattr(self) -> None:
        os.removexattr(self._path(), _XATTR, follow_symlinks=False)

    def call_exclusively(self) -> None:
        os.close(os.open(self._path(), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))

    def call_hold(self) -> None:
        self._held.append(os.open(self._path(), os.O_RDWR | os.O_CREAT, 0o644))

    def call_write_to_held(self) -> int:
        if not self._held:
            return 0
        fd, body = self._chance.choice(self._held), self._bytes()
        return os.pwrite(fd, body, self._chance.randrange(50_000))

    def call_read_held(self) -> str:
        return _digest(self._chance.choice(self._held)) if self._held else ""

    def call_stat_held(self) -> tuple[int, int]:
        if not self._held:
            return 0, 0
        found = os.fstat(self._chance.choice(self._held))
        return found.st_size, found.st_nlink

    def call_close_held(self) -> None:
        if len(self._held) > 6:
            os.close(self._held.pop(self._chance.randrange(len(self._held))))

    def call_read(self) -> str:
        return hashlib.sha256(self._path().read_bytes()).hexdigest()

    def call_list(self) -> list[str]:
        return sorted(os.listdir(self._path().parent))


def _digest(fd: int) -> str:
    return hashlib.sha256(os.pread(fd, 1 << 20, 0)).hexdigest()


def sight(at: Path) -> dict[str, object]:
    """Return all there is to see below a directory, but for times and inode numbers."""
    found: dict[str, object] = {}
    for directory, directories, names in os.walk(at):
        for name in (*directories, *names):
            path = Path(directory, name)
            try:
                found[str(path.relative_to(at))] = _seen(path)
            except PermissionError:
                found[str(path.relative_to(at))] = "permission denied"
    return found


def _seen(path: Path) -> object:
    """Return what there is to see of a file."""
    status = path.lstat()
    body: str = ""
    if stat.S_ISLNK(status.st_mode):
        body = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        body = hashlib.sha256(path.read_bytes()).hexdigest()
    links = status.st_nlink if not stat.S_ISDIR(status.st_mode) else 0
    xattrs = os.listxattr(path, follow_symlinks=False)
    return status.st_mode, links, body, sorted(xattrs), (status.st_uid, status.st_gid)


def _read(at: Path, chance: random.Random) -> None:
    """Print what is read of a tree: whole files, mapped ones, and pieces by chance."""
    print(sight(at))
    paths = sorted(path for path in at.rglob("*") if path.is_file())
    for path in chance.sample(paths, min(len(paths), 12)):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for _ in range(20):
                offset, length = chance.randrange(len(mapped)), chance.randrange(50_000)
                piece = os.pread(file.fileno(), length, offset)
                assert piece == mapped[offset : offset + length], path
                print(path.name, offset, hashlib.sha256(piece).hexdigest())


def _change(at: Path, chance: random.Random) -> None:
    for outcome in Changes(at, chance).make(3000):
        print(outcome)
    for path, found in sorted(sight(at).items()):
        print(path, found)


def _database(at: Path, chance: random.Random) -> None:
    """Databases of both kinds of journal: what was committed is there, and nothing else, at every moment."""
    for mode in ("delete", "wal"):
        base = sqlite3.connect(at / mode, timeout=60, isolation_level=None)
        print(base.execute(f"pragma journal_mode = {mode}").fetchone())
        base.execute("create table t(i integer primary key, b blob)")
        committed: dict[int, bytes] = {}
        for number in range(200):
            rows = {number: chance.randbytes(chance.randrange(9000))}
            gone = chance.randrange(number + 1)
            base.execute("begin")
            base.executemany("insert into t values(?, ?)", rows.items())
            base.execute("delete from t where i = ?", (gone,))
            if chance.random() < 0.2:
                base.execute("rollback")
                continue
            base.execute("commit")
            committed |= rows
            committed.pop(gone, None)
            if number % 50 == 0:
                with closing(sqlite3.connect(at / mode, timeout=60)) as reader:
                    assert dict(reader.execute("select i, b from t")) == committed, (mode, number)
        base.close()
        with closing(sqlite3.connect(at / mode)) as again:
            print(again.execute("pragma integrity_check").fetchall())
            assert dict(again.execute("select i, b from t")) == committed, mode
        print(mode, hashlib.sha256(repr(sorted(committed.items())).encode()).hexdigest())


def _ranges(at: Path, chance: random.Random) -> None:
    from tests.support.storm_ranges import Ranges

    print(*(Ranges(at / f"ranges{number}", chance).make(700) for number in range(2)))


if __name__ == "__main__":
    _kind, _at, _seed = sys.argv[1:]
    kinds = {"read": _read, "change": _change, "database": _database, "ranges": _ranges}
    kinds[_kind](Path(_at), random.Random(int(_seed)))
