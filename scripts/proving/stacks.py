"""Stacks of layers by chance: trees on a disk packed by real programs, and members that no program writes.

A tree has every kind of file that tar knows, with owners, times, modes, attributes and holes as images have
them, few names so that layers meet, and whiteouts, which are ordinary files to a packer. It takes root, for
devices and owners.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support import tarmake

_NAMES = [b"a", b"b", b"c", b"d e", b"\xc3\xbc", b"\xff\xfe", b"n" * 101, b".hidden"]
_OWNERS = [0, 1, 1000, 65534, 70_000, (1 << 21) + 1, (1 << 31) + 5, (1 << 32) - 2]
_TIMES = [0, 1, 315_532_801, 1_234_567_890, 1_600_000_000, (1 << 33) + 7]  # seconds: 1980 is buildpacks'
_MODES = [0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0o6711, 0o000, 0o7777]
_TARGETS = [b"a", b"../b", b"/c/a", b"no/where", b".", b"..", b"/", b"t" * 300]
_DEVICES = [(1, 3), (259, 70_000), (8, 0), (4095, 255)]
_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
_ACL = bytes.fromhex(
    "0200000001000600ffffffff02000400e803000004000400ffffffff10000600ffffffff20000400ffffffff"
)

Chance = random.Random
Packer = Callable[[Chance, Path], bytes]


def stack(chance: Chance, place: Path, packers: Sequence[Packer]) -> list[bytes]:
    """Return the tar streams of one to four layers, the lowest first; trees are made below `place`."""
    layers = []
    for number in range(chance.randint(1, 4)):
        root = place / f"tree{number}"
        root.mkdir()
        grow(chance, os.fsencode(root), has_whiteouts=number > 0)
        flat = chance.choice(packers)(chance, root)
        more = _unwritten(chance, root) if chance.random() < 0.5 else tarmake.end()
        layers.append(flat + more)
        shutil.rmtree(root)
    return layers


def grow(chance: Chance, root: bytes, *, has_whiteouts: bool) -> None:
    """Fill a directory with up to three levels of files of every kind."""
    files: list[bytes] = []
    _fill(chance, root, 3, files, has_whiteouts)
    _dress(chance, root)


def _fill(chance: Chance, directory: bytes, depth: int, files: list[bytes], has_whiteouts: bool) -> None:
    names = chance.sample(_NAMES, chance.randint(1, 5))
    for name in names:
        path = os.path.join(directory, name)
        if depth > 1 and chance.random() < 0.4:
            os.mkdir(path)
            _fill(chance, path, depth - 1, files, has_whiteouts)
        elif files and chance.random() < 0.15:
            os.link(chance.choice(files), path)
            continue
        else:
            chance.choice(_MAKERS)(chance, path)
            files.append(path)
        _dress(chance, path)
    if has_whiteouts:
        for name in chance.sample(_NAMES, chance.randint(0, 2)):
            if name not in names:
                _empty(os.path.join(directory, b".wh." + name))
        if depth < 3 and chance.random() < 0.15:  # overlayfs takes no root for opaque
            _empty(os.path.join(directory, b".wh..wh..opq"))


def _empty(path: bytes) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def _file(chance: Chance, path: bytes) -> None:
    with open(path, "wb") as file:
        file.write(chance.randbytes(chance.choice([0, 1, 511, 512, 513, 5000, 70_000])))


def _sparse(chance: Chance, path: bytes) -> None:
    with open(path, "wb") as file:
        at = 0
        for _ in range(chance.choice([0, 1, 3, 30])):
            at += chance.choice([4096, 65_536, 1 << 20])
            file.seek(at)
            file.write(chance.randbytes(chance.choice([1, 4096, 5000])))
            at = file.tell()
        file.truncate(at + chance.choice([0, 1, 4096, 1 << 20]))


def _symlink(chance: Chance, path: bytes) -> None:
    os.symlink(chance.choice(_TARGETS), path)


def _fifo(_chance: Chance, path: bytes) -> None:
    os.mkfifo(path)


def _device(chance: Chance, path: bytes) -> None:
    kind = chance.choice([stat.S_IFCHR, stat.S_IFBLK])
    os.mknod(path, kind | 0o600, os.makedev(*chance.choice(_DEVICES)))


_MAKERS: list[Callable[[Chance, bytes], None]] = [_file, _file, _file, _sparse, _symlink, _fifo, _device]


def _dress(chance: Chance, path: bytes) -> None:
    """Give a file owners, attributes, a mode and a time, in the order in which each leaves the others."""
    is_link = os.path.islink(path)
    os.lchown(path, chance.choice(_OWNERS), chance.choice(_OWNERS))
    if not is_link:
        is_plain = os.path.isfile(path) or os.path.isdir(path)
        if is_plain and chance.random() < 0.3:
            os.setxattr(path, b"user.some", chance.randbytes(chance.choice([0, 1, 200])))
        if os.path.isfile(path) and chance.random() < 0.2:
            os.setxattr(path, b"security.capability", _CAPABILITY)
        if is_plain and chance.random() < 0.1:
            os.setxattr(path, b"trusted.some", b"\0=\n")
        os.chmod(path, chance.choice(_MODES))
    seconds = chance.choice(_TIMES)
    if chance.random() < 0.1:
        seconds = -chance.choice([1, 2, 10**9])
    nanoseconds = chance.choice([0, 0, 1, 123_456_789, 999_999_999])
    os.utime(path, ns=(0, seconds * 10**9 + nanoseconds), follow_symlinks=False)


# -- what packs a tree ---------------------------------------------------------------------------------------


def packers() -> list[Packer]:
    """Return all that can pack a tree here; a stream comes without its end."""
    return [by_gnu_tar, by_tarfile, *([by_bsdtar] if shutil.which("bsdtar") else [])]


_GNU = [
    ("--format=gnu",),
    ("--format=oldgnu",),
    ("--format=pax", "--sparse", "--sparse-version=0.0"),
    ("--format=pax", "--sparse", "--sparse-version=0.1"),
    ("--format=pax", "--sparse", "--sparse-version=1.0"),
    ("--format=pax", "--xattrs", "--xattrs-include=*"),
    ("--format=pax", "--pax-option=globexthdr.name=pax_global_header,comment:=0123abcd"),
    ("--format=pax", "--pax-option=delete=atime,delete=ctime"),
]
_GNU_SPELLINGS: list[tuple[str, ...]] = [(), (), ("--transform=flags=r;s,^\\./,/,", "-P")]
_BSDTAR = [
    ("--format=pax", "--xattrs", "--acls"),
    ("--format=pax", "--options=hdrcharset=BINARY"),
    ("--format=gnutar",),
]


def by_gnu_tar(chance: Chance, root: Path) -> bytes:
    """Pack a tree with GNU tar, in one of its forms."""
    words = [*chance.choice(_GNU), *chance.choice(_GNU_SPELLINGS)]
    return _packed(["tar", "-b1", "--sort=name", "-C", str(root), *words, "-cf", "-", "."])


def by_bsdtar(chance: Chance, root: Path) -> bytes:
    """Pack a tree with libarchive's tar, in one of its forms."""
    return _packed(["bsdtar", "-b", "1", "-C", str(root), *chance.choice(_BSDTAR), "-cf", "-", "."])


def _packed(words: list[str]) -> bytes:
    done = subprocess.run(words, check=True, capture_output=True, env={**os.environ, "LC_ALL": "C"})
    return done.stdout[: -len(tarmake.end())]


def by_tarfile(chance: Chance, root: Path) -> bytes:
    """Pack a tree with Python's tarfile."""
    made = io.BytesIO()
    format_ = chance.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    with tarfile.open(fileobj=made, mode="w", format=format_, errors="surrogateescape") as tar:
        tar.add(root, arcname=chance.choice([".", "/", ""]), filter=_in_seconds)
        return made.getvalue()[: tar.offset]


def _in_seconds(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Cut the time: tarfile writes fractions as floats, `1e-09` among them, which nothing reads."""
    member.mtime = int(member.mtime // 1)
    return member


# -- what no program writes ----------------------------------------------------------------------------------


def _unwritten(chance: Chance, root: Path) -> bytes:
    """Return members that come after those of the tree at `root`, and the end.

    They have odd names, give what is there anew, or link to it.
    """
    spell = chance.choice([b"%s", b"/%s", b"./%s", b"x/../%s", b"../%s", b"%s/"])
    top = os.fsencode(root)
    below = [(os.path.relpath(at, top), names) for at, _, names in sorted(os.walk(top))]
    files = [os.path.join(at, name) for at, names in below for name in sorted(names) if b".wh." not in name]
    paths = [*files, *(os.path.join(at, chance.choice([b"new", b"other"])) for at, _ in below)]
    made = []
    if files and chance.random() < 0.3:
        made.append(_link(spell, chance.choice(paths[len(files) :]), top, chance.choice(files)))
    for path in chance.sample(paths, min(len(paths), 3)):
        made.append(chance.choice(_UNWRITTEN)(spell % path))
    if chance.random() < 0.3:  # nowhere else: a directory in place of a file has overlayfs merge those below
        made.append(tarmake.directory(chance.choice(below)[0], mode=0o701, mtime_ns=6 * 10**9))
    return tarmake.archive(*made)


_UNWRITTEN: list[Callable[[bytes], bytes]] = [
    lambda path: tarmake.file(path, b"last", mode=0o640, mtime_ns=5 * 10**9),
    lambda path: tarmake.symlink(path, b"a", mtime_ns=7 * 10**9),
    lambda path: tarmake.fifo(path),
    lambda path: tarmake.device(path, "c", 0, 0),
    lambda path: tarmake.header(path, b"0", mode=0o177_6755, owner=(1 << 31, (1 << 32) - 2), mtime=-5),
]


def _link(spell: bytes, path: bytes, top: bytes, target: bytes) -> bytes:
    """Return a hard link with its target's attributes, as packers write them: engines set them again."""
    found = os.lstat(os.path.join(top, target))
    records = {b"mtime": tarmake.seconds(found.st_mtime_ns)}
    owner = found.st_uid, found.st_gid
    head = tarmake.header(spell % path, b"1", target=spell % target, mode=found.st_mode & 0o7777, owner=owner)
    return tarmake.pax(records) + head
