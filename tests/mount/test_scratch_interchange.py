"""One scratch, several file systems: what imgfs leaves is what overlayfs shows, and the other way round.

Every change is made in a directory of its own, where the image has the same little tree; so one mount serves
for them all, and a difference names the change. As root the scratch has the kernel's own marks, trusted.*; as
an ordinary user it has user.*, which the kernel takes in a user namespace with the option `userxattr`.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.support.mounted import NOBODY, Imgfs, Ran, caches_kept
from tests.support.scratch_image import Base, write_cases
from tests.support.scratch_places import layers, prepare
from tests.support.umoci_oracle import Seen, differences, unpack_layout

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parts,
    pytest.mark.skipif(os.geteuid() != 0, reason="overlayfs and several users need root"),
    pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed"),
    pytest.mark.skipif(shutil.which("fuse-overlayfs") is None, reason="fuse-overlayfs is not installed"),
]

CHANGES = {
    "delete-file": "rm file",
    "delete-symlink-and-fifo": "rm symlink fifo",
    "delete-directory": "rm -r directory",
    "delete-all": "rm -r *",
    "delete-one-name": "rm link2",
    "file-again": "rm file; echo again > file",
    "file-of-lower-layer-again": "echo again > gone",
    "directory-again": "rm -r directory; mkdir directory; echo new > directory/new",
    "directory-again-empty": "rm -r directory; mkdir directory",
    "directory-in-directory-again": "rm -r directory; mkdir -p directory/deep; echo new > directory/deep/new",
    "again-and-gone": "rm -r directory; mkdir directory; echo new > directory/file; rm -r directory",
    "file-to-directory": "rm file; mkdir file; echo inside > file/inside",
    "directory-to-file": "rm -r directory; echo file > directory",
    "directory-to-symlink": "rm -r directory; ln -s empty directory",
    "symlink-to-directory": "rm symlink; mkdir symlink; echo inside > symlink/inside",
    "file-to-fifo": "rm file; mkfifo file",
    "append": "echo more >> file",
    "append-deep": "echo more >> directory/deep/file",
    "middle": "printf middle | dd of=large bs=1 seek=100000 conv=notrunc status=none",
    "truncate": "truncate -s 5 large; : > file",
    "sparse": "truncate -s 1M file; truncate -s 3M new",
    "rename-file": "mv file moved",
    "rename-into-directory": "mv file directory/deep/moved",
    "rename-over": "mv file other",
    "rename-and-again": "mv file moved; echo again > file",
    "rename-back": "mv file moved; mv moved file",
    "rename-symlink-and-fifo": "mv symlink empty/symlink; mv fifo pipe",
    "rename-directory": "mv directory moved",
    "rename-directory-below": "mv directory/deep deep",
    "rename-directory-and-again": "mv directory moved; mkdir directory; echo new > directory/new",
    "rename-directory-and-change": "mv directory moved; echo more >> moved/deep/file; rm moved/file",
    "change-and-rename-directory": "echo more >> directory/deep/file; rm directory/file; mv directory moved",
    "rename-directory-twice": "mv directory moved; mv moved/deep moved/deeper; mv moved again",
    "rename-directory-over-empty": "mv -T directory empty",
    "rename-directories-crosswise": "mv empty aside; mv directory empty; mv aside directory",
    "rename-new-directory": "mkdir new; mv directory/file new/file; mv new directory/new",
    "link-new": "echo new > new; ln new directory/new; ln new empty/new",
    "link-image-file": "ln file directory/again; ln large empty/large",
    "link-and-change": "ln file again; echo more >> again",
    "link-symlink": "ln symlink again",
    "chmod": "chmod 600 file; chmod 755 empty; chmod 711 directory; chmod 700 large",
    "chmod-special": "chmod 4711 other; chmod 2755 directory; chmod 755 program",
    "touch": "touch -d 2001-02-03T04:05:06.789012345Z file directory; touch -h -d @77 symlink",
    "xattr": "setfattr -n user.new -v new file; setfattr -x user.a other; setfattr -n user.a -v z directory",
    "xattr-of-new": "echo new > new; setfattr -n user.new -v new new",
    "make": "mkdir -p new/deep; echo new > new/deep/file; ln -s ../file new/link; mkfifo new/fifo",
    "names": "touch 'a b' .hidden .wh-not $(printf 'n%.0s' $(seq 250)); mkdir ' '",
    "nothing": "cat file large directory/deep/file > /dev/null; ls -lR > /dev/null",
    "copy": "cp -a directory copy; cp -a large directory/large",
}
# What only root can do; and what overlayfs without an index breaks, so that it cannot be compared with it.
ROOTS = {
    "device": "mknod new c 5 77; mknod -m 600 block b 7 9; rm fifo; mknod fifo c 1 3",
    "chown": "chown 1000:50 file directory; chown -h 7:8 symlink; chown 1:1 program",
    "chown-tree": "chown -R 33:33 directory",
    "capability": "setcap cap_net_raw+ep file; setfattr -n trusted.t -v t other directory",
    "set-gid": "chmod 2775 directory; chown 0:50 directory; touch directory/new; mkdir directory/new.d",
}
LINKS = {
    "change-one-name": "echo more >> link1",
    "chmod-one-name": "chmod 600 directory/link3",
    "delete-and-change": "rm link2; echo more >> link1",
    "rename-one-name": "mv link1 empty/moved; echo more >> link2",
    "link-once-more": "ln link1 link4; rm link1",
}
LATER = """
    if [ -f file ]; then echo later >> file; fi
    if [ -d directory ] && [ ! -L directory ]; then
        rm -rf directory/deep; mkdir directory/deep; echo later > directory/deep/later
        mv directory directory.later
    fi
    rm -rf other; mkdir other; ln -s other later; rmdir empty 2>/dev/null || true
"""
WALK = (
    "import os, pickle, sys; from pathlib import Path; "
    "from tests.support.umoci_oracle import walk_directory; "
    "sys.stdout.buffer.write(pickle.dumps(walk_directory(Path(sys.argv[1]))))"
)

Tree = dict[bytes, Seen]
Side = Callable[[Path, str], Tree]  # mounts a scratch, runs a script in it, and says what there is then


def script(changes: dict[str, str]) -> str:
    """All the changes, each in its directory."""
    return "".join(f"(set -e; cd {name}; {change})\n" for name, change in changes.items())


def later(changes: dict[str, str]) -> str:
    """The same further changes in all directories."""
    return script(dict.fromkeys(changes, LATER))


def in_tree(root: Path, changes: str) -> str:
    """A shell command that makes changes and writes what there is then to its standard output."""
    return f"set -e; umask 022; cd {root}\n{changes}\ncd /; {sys.executable} -c '{WALK}' {root}"


def seen_by(ran: Ran) -> Tree:
    assert (ran.code, ran.err) == (0, ""), (ran.code, ran.err)
    tree: Tree = pickle.loads(ran.out)
    return tree


def by_imgfs(imgfs: Imgfs, base: Base, scratch: Path, changes: str = "") -> Tree:
    root = imgfs.mount(base.reference, "--rw", "--scratch", str(scratch))
    seen = seen_by(imgfs.program("sh", "-c", in_tree(root, changes)))
    imgfs.umount(root)
    return seen


def by_kernel(imgfs: Imgfs, base: Base, options: str, scratch: Path, changes: str = "") -> Tree:
    """Overlayfs with some options."""
    userxattr = "userxattr" if imgfs.user else ""
    given = ",".join(filter(None, [options, userxattr, layers(base, scratch)]))
    return in_namespace(imgfs, base, scratch, f"mount -t overlay overlay -o {given}", changes)


def by_fuse_overlayfs(imgfs: Imgfs, base: Base, scratch: Path, changes: str = "") -> Tree:
    """fuse-overlayfs, as podman has it do: it numbers a file anew that the kernel has forgotten."""
    mounting = f"fuse-overlayfs 2>/dev/null -o {layers(base, scratch)}"
    with caches_kept():
        return in_namespace(imgfs, base, scratch, mounting, changes)


def in_namespace(imgfs: Imgfs, base: Base, scratch: Path, mounting: str, changes: str) -> Tree:
    """A mount in a mount namespace of its own, where a user is root."""
    prepare(base, scratch, imgfs.user or (0, 0))
    root = imgfs.mountpoint("other")
    words = ["unshare", "-rm" if imgfs.user else "-m", "sh", "-ec"]
    return seen_by(imgfs.program(*words, f"{mounting} {root}\n{in_tree(root, changes)}\numount {root}"))


def by_plain(imgfs: Imgfs, base: Base, directory: Path, changes: str = "") -> Tree:
    """No scratch at all, a directory that holds the tree."""
    if not directory.exists():
        subprocess.run(["cp", "-a", base.tree, directory], check=True)
    return seen_by(imgfs.program("sh", "-c", in_tree(directory, changes)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    directory = tmp_path_factory.mktemp("base")
    reference = write_cases(directory / "layout", [*CHANGES, *ROOTS, *LINKS])
    return Base(reference, unpack_layout(directory / "layout", "test", directory / "bundle"))


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


# -- root: the kernel's own marks

ALL = {**CHANGES, **ROOTS}
KERNEL = {
    "default": "",
    "redirect": "redirect_dir=on",
    "metacopy": "metacopy=on,redirect_dir=on",
}
OTHERS = [*KERNEL, "fuse-overlayfs"]


def pairs(*others: str) -> pytest.MarkDecorator:
    """Each of these with either driver, but fuse-overlayfs with FUSE only.

    It follows no directory that the kernel has moved, and leaves whiteouts where the kernel shows them.
    """
    either = [(driver, other) for driver in ("fuse", "kernel") for other in others]
    given = [(driver, other) for driver, other in either if (driver, other) != ("kernel", "fuse-overlayfs")]
    return pytest.mark.parametrize(("driver", "other"), given, indirect=["driver"], scope="module")


def by_other(name: str, imgfs: Imgfs, base: Base) -> Side:
    """Overlayfs with some options, or fuse-overlayfs."""
    if name in KERNEL:
        return partial(by_kernel, imgfs, base, KERNEL[name])
    return partial(by_fuse_overlayfs, imgfs, base)


def compare(expected: Tree, actual: Tree, other: str = "default") -> None:
    """Assert that the trees are one; but of a file copied up without an index overlayfs counts few links.

    fuse-overlayfs goes on taking a copy for a link of the image's file, with the attributes of either.
    """
    left_out = "link[123]$" if other == "fuse-overlayfs" else "$^"
    trees = [
        {
            path: replace(seen, nlink=0)
            for path, seen in tree.items()
            if not re.search(left_out, os.fsdecode(path))
        }
        for tree in (expected, actual)
    ]
    assert differences(*trees, limit=200) == []


@pytest.mark.drivers("fuse", "kernel")
def test_imgfs_shows_what_a_plain_directory_does(imgfs: Imgfs, base: Base, tmp_path: Path) -> None:
    changes = script({**ALL, **LINKS})
    expected = by_plain(imgfs, base, tmp_path / "plain", changes)
    actual = by_imgfs(imgfs, base, tmp_path / "scratch", changes)
    assert differences(expected, actual, ignoring_mtime=made_now(expected), limit=200) == []
    compare(actual, by_imgfs(imgfs, base, tmp_path / "scratch"))


def made_now(tree: Tree) -> set[bytes]:
    """The paths whose times are this hour's."""
    return {path for path, seen in tree.items() if seen.mtime_ns > time.time_ns() - 3600 * 10**9}


@pairs("default", "fuse-overlayfs")
def test_another_shows_what_imgfs_has_left(other: str, imgfs: Imgfs, base: Base, scratch: Path) -> None:
    left = by_imgfs(imgfs, base, scratch, script({**ALL, **LINKS}))
    compare(left, by_other(other, imgfs, base)(scratch, ""))


@pairs(*OTHERS)
def test_imgfs_shows_what_another_has_left(other: str, imgfs: Imgfs, base: Base, scratch: Path) -> None:
    write = by_other(other, imgfs, base)
    write(scratch, script(ALL))
    left = write(scratch, "")  # not what it had in memory
    compare(left, by_imgfs(imgfs, base, scratch), other)


@pairs("default", "redirect", "fuse-overlayfs")
def test_a_scratch_goes_to_and_fro(other: str, imgfs: Imgfs, base: Base, scratch: Path) -> None:
    by_imgfs(imgfs, base, scratch, script(ALL))
    visit = by_other(other, imgfs, base)
    visit(scratch, later(ALL))
    compare(visit(scratch, ""), by_imgfs(imgfs, base, scratch), other)
    back = by_imgfs(imgfs, base, scratch, later(ALL))
    compare(back, visit(scratch, ""), other)


# -- an ordinary user: marks in user.*, owners in user.containers.override_stat


@pytest.fixture
def own_base(nobody: Imgfs) -> Base:
    """The image as the user has unpacked it."""
    directory = nobody.mountpoint("base")
    reference = write_cases(directory / "layout", CHANGES)
    words = ("umoci", "unpack", "--rootless", "--image", f"{directory}/layout:test", directory / "bundle")
    assert nobody.program(*words).code == 0
    return Base(reference, directory / "bundle" / "rootfs")


@pytest.mark.parametrize("reader", ["default", "fuse-overlayfs"])
def test_another_shows_a_user_what_imgfs_has_left(reader: str, nobody: Imgfs, own_base: Base) -> None:
    scratch = nobody.directory / "scratch"
    left = by_imgfs(nobody, own_base, scratch, script(CHANGES))
    compare(own(left), own(by_other(reader, nobody, own_base)(scratch, "")))


@pytest.mark.parametrize("writer", ["default", "fuse-overlayfs"])
def test_imgfs_shows_a_user_what_another_has_left(writer: str, nobody: Imgfs, own_base: Base) -> None:
    scratch = nobody.directory / "scratch"
    other = by_other(writer, nobody, own_base)
    other(scratch, script(CHANGES))
    compare(own(other(scratch, "")), own(by_imgfs(nobody, own_base, scratch)))


def own(tree: Tree) -> Tree:
    """What a user can have on a disk: his own files, which he may open, without set-uid bits."""
    return {path: owned(seen) for path, seen in tree.items()}


def owned(seen: Seen) -> Seen:
    assert {seen.uid, seen.gid} <= {0, NOBODY.uid}  # in a user namespace he is root
    opened = 0o700 if stat.S_ISDIR(seen.mode) else 0o600
    mode = stat.S_IFMT(seen.mode) | (stat.S_IMODE(seen.mode) & 0o777) | opened
    # and in a user namespace overlayfs does not find out that a new link is one to a file of the image
    xattrs = tuple(pair for pair in seen.xattrs if pair[0] != b"user.containers.override_stat")
    return replace(seen, uid=0, gid=0, mode=mode, group=b"", xattrs=xattrs)
