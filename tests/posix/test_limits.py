"""The longest names, paths deeper than a path can say, names of any bytes, and files that may not grow."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.posix_places import Place, anyone, fails
from tests.support.posix_tree import SMALL

pytestmark = posix.marks

MAKERS: list[Callable[[Path], object]] = [
    lambda path: path.touch(),
    lambda path: path.mkdir(),
    lambda path: path.symlink_to("target"),
    lambda path: os.mkfifo(path),
    lambda path: os.link(path.parent / "file", path),
    lambda path: os.rename(path.parent / "file", path),
]


@anyone
def test_a_name_of_255_bytes_can_be_made_in_every_way(place: Place) -> None:
    for directory in (place.at, place.tree / "bare"):
        for number, make in enumerate(MAKERS):
            (directory / "file").touch()
            path = directory / (str(number) + "é" * 127)
            assert len(os.fsencode(path.name)) == 255
            make(path)
            assert os.listdir(directory).count(path.name) == 1
            (os.rmdir if path.is_dir() else os.unlink)(path)


@anyone
def test_a_name_of_256_bytes_is_too_long_in_every_way(place: Place) -> None:
    for directory in (place.at, place.tree / "bare"):
        (directory / "file").touch()
        path = directory / ("n" * 256)
        lookers = (
            os.stat,
            os.listdir,
            os.unlink,
            os.rmdir,
            os.readlink,
            os.listxattr,
            lambda path: path.read_bytes(),
        )
        for call in (*MAKERS, *lookers):
            with fails(errno.ENAMETOOLONG):
                call(path)
        assert os.listdir(directory) == ["file"]


@anyone
def test_a_path_of_4096_bytes_is_too_long(place: Place) -> None:
    dots = "./" * 2040
    Path(dots + "f").write_bytes(b"f")
    assert Path("f").read_bytes() == b"f"
    with fails(errno.ENAMETOOLONG):
        os.stat("./" * 2048)


@anyone
def test_directories_go_deeper_than_a_path_can_say(place: Place) -> None:
    for top in (place.at, place.tree / "bare"):
        fd = os.open(top, os.O_RDONLY)
        for number in range(40):
            name = f"{number:02}".ljust(200, "x")
            os.mkdir(name, dir_fd=fd)
            fd, above = os.open(name, os.O_RDONLY, dir_fd=fd), fd
            os.close(above)
        with open(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd), "wb") as file:
            file.write(b"deep")
        with open(os.open("f", os.O_RDONLY, dir_fd=fd), "rb") as file:
            assert file.read() == b"deep"
        os.fchdir(fd)
        os.rename("f", "../g")
        assert Path("../g").read_bytes() == b"deep"
        os.chdir(top)
        with fails(errno.ENAMETOOLONG):
            os.stat("/".join(f"{number:02}".ljust(200, "x") for number in range(40)))
        shutil.rmtree("00".ljust(200, "x"))
        assert os.listdir(top) == []


@anyone
def test_a_directory_of_the_image_can_be_moved_to_the_depths(place: Place) -> None:
    deep = place.at
    for number in range(30):
        deep = deep / f"{number:02}".ljust(100, "y")
        deep.mkdir()
    os.rename(place.tree / "directory", deep / "moved")
    (deep / "moved/sub/c").write_bytes(b"changed")
    assert (deep / "moved/sub/deep/d").read_bytes() == b"d"
    os.rename(place.at / "00".ljust(100, "y"), "top")
    inside = Path("top", *(f"{number:02}".ljust(100, "y") for number in range(1, 30)), "moved")
    assert (inside / "a").read_bytes() == b"a"
    assert (inside / "sub/c").read_bytes() == b"changed"


@anyone
def test_names_are_bytes(place: Place) -> None:
    names = [b"\xff\xfe", b"new\nline", b" ", b"-", b"...", b"\x01", b"\xc3", b"*", b"a\\b", b":", b"'\""]
    for directory in (place.at, place.tree / "bare"):
        for name in names:
            path = os.path.join(os.fsencode(directory), name)
            with open(path, "wb") as file:
                file.write(name)
            os.rename(path, path + b"2")
            os.rename(path + b"2", path)
        assert sorted(os.listdir(os.fsencode(directory))) == sorted(names)
        for name in names:
            with open(os.path.join(os.fsencode(directory), name), "rb") as file:
                assert file.read() == name


@anyone
def test_names_differ_by_case_and_composition(place: Place) -> None:
    names = ["small", "Small", "SMALL", "é", "e\u0301"]
    for number, name in enumerate(names[1:]):
        (place.tree / name).write_text(str(number))
    assert set(names) <= set(os.listdir(place.tree))
    assert (place.tree / "small").read_bytes() == SMALL


@anyone
def test_the_dots_can_be_neither_made_nor_removed(place: Place) -> None:
    for directory in (place.at, place.tree / "bare"):
        for name in (".", ".."):
            with fails(errno.EEXIST):
                os.mkdir(f"{directory}/{name}")
            with fails(errno.EINVAL, errno.ENOTEMPTY):
                os.rmdir(f"{directory}/{name}")
            with fails(errno.EISDIR, errno.EBUSY, errno.EPERM):
                os.unlink(f"{directory}/{name}")
            with fails(errno.EBUSY, errno.EINVAL):
                os.rename(f"{directory}/{name}", "moved")


@anyone
def test_a_process_may_not_write_more_than_its_limit(place: Place) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # Python ignores SIGXFSZ
    for path in (place.at / "f", place.tree / "text"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        assert os.pwrite(fd, bytes(10_000), 15_000) == 5000
        with fails(errno.EFBIG):
            os.pwrite(fd, b"x", 20_000)
        with fails(errno.EFBIG):
            os.ftruncate(fd, 20_001)
        assert os.fstat(fd).st_size == 20_000


@anyone
def test_hundreds_of_files_can_be_open_at_once(place: Place) -> None:
    fds = [os.open(f"{number}", os.O_CREAT | os.O_RDWR) for number in range(500)]
    for number, fd in enumerate(fds):
        os.write(fd, b"%d" % number)
    for number in range(500):
        os.unlink(f"{number}")
    assert [int(os.pread(fd, 10, 0)) for fd in fds] == [*range(500)]


@anyone
def test_a_file_can_have_a_thousand_names(place: Place) -> None:
    path = place.tree / "small"
    for number in range(999):
        os.link(path, f"{number}")
    assert os.stat(path).st_nlink == 1000
    os.unlink(path)
    assert (os.stat("0").st_nlink, Path("998").read_bytes()) == (999, SMALL)
