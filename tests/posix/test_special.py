"""Files that are no files: fifos, sockets, devices; and files that are run."""

from __future__ import annotations

import errno
import os
import select
import shutil
import socket
import stat
import subprocess
from functools import partial
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.children import Child
from tests.support.posix_places import Place, anyone, at, fails, only_root, only_users

pytestmark = posix.marks


@anyone
def test_a_fifo_joins_two_processes(place: Place) -> None:
    os.mkfifo("p")
    for path in (Path("p"), place.tree / "pipe"):
        with Child(partial(path.write_bytes, b"through the pipe")) as writer:
            assert path.read_bytes() == b"through the pipe"
            assert writer.join() == 0
        assert os.stat(path).st_size == 0


@anyone
def test_a_fifo_without_a_reader_cannot_be_written(place: Place) -> None:
    with fails(errno.ENXIO):
        os.open(place.tree / "pipe", os.O_WRONLY | os.O_NONBLOCK)
    reader = os.open(place.tree / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(place.tree / "pipe", os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"now")
    assert select.select([reader], [], [], 1)[0] == [reader]
    assert os.read(reader, 10) == b"now"
    with fails(errno.ESPIPE):
        os.lseek(reader, 0, os.SEEK_SET)


@anyone
def test_a_fifo_stays_one_when_changed(place: Place) -> None:
    path = place.tree / "pipe"
    os.chmod(path, 0o600)
    os.utime(path, ns=(1, 2))
    os.rename(path, place.tree / "moved")
    info = os.lstat(place.tree / "moved")
    assert (info.st_mode, info.st_mtime_ns) == (stat.S_IFIFO | 0o600, 2)


@anyone
def test_a_socket_takes_connections_by_its_name(place: Place) -> None:
    os.chdir(place.tree / "bare")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("s")  # relative: a socket's path has 108 bytes at most
        server.listen()
        assert stat.S_ISSOCK(os.lstat("s").st_mode)
        client.connect("s")
        with server.accept()[0] as connection:
            client.sendall(b"hello")
            assert connection.recv(10) == b"hello"
        with fails(errno.EADDRINUSE):
            socket.socket(socket.AF_UNIX).bind("s")
        with fails(errno.ENXIO):
            os.open("s", os.O_RDWR)
        os.rename("s", "moved")
        with socket.socket(socket.AF_UNIX) as second:
            second.connect("moved")
    with fails(errno.ECONNREFUSED):
        socket.socket(socket.AF_UNIX).connect("moved")
    os.unlink("moved")
    assert os.listdir(".") == []


@anyone
def test_regular_files_and_fifos_can_be_made_as_nodes(place: Place) -> None:
    os.mknod("f", stat.S_IFREG | 0o640)
    os.mknod("p", stat.S_IFIFO | 0o604)
    os.mknod("s", stat.S_IFSOCK | 0o755)
    assert [os.lstat(name).st_mode for name in "fps"] == [0o100640, 0o10604, 0o140755]
    with fails(errno.EEXIST):
        os.mknod(place.tree / "small", stat.S_IFREG | 0o600)


@only_root
def test_devices_are_made_and_used(place: Place) -> None:
    os.mknod("zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    os.mknod("disk", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    assert os.read(os.open("zero", os.O_RDONLY), 5) == bytes(5)
    assert os.lstat("disk").st_rdev == os.makedev(259, 70_000)
    assert stat.S_ISBLK(os.lstat("disk").st_mode)


@only_root
def test_a_device_of_the_image_is_used_and_changed(place: Place) -> None:
    path = place.tree / "null"
    assert os.write(os.open(path, os.O_WRONLY), b"gone") == 4
    os.chmod(path, 0o600)
    os.rename(path, place.tree / "moved")
    info = os.lstat(place.tree / "moved")
    assert (info.st_mode, info.st_rdev) == (stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert (place.tree / "moved").read_bytes() == b""


@only_users
def test_devices_are_not_made_by_users(place: Place) -> None:
    with fails(errno.EPERM):
        os.mknod("zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    with fails(errno.EPERM):
        os.mknod("disk", stat.S_IFBLK | 0o600, os.makedev(1, 5))
    assert os.listdir(".") == []


@at("mount", "mount-user", "own-mount")
def test_the_device_that_marks_a_removed_file_is_not_made(place: Place) -> None:
    for path in (place.at / "white", place.tree / "white"):  # 0, 0: a whiteout (overlayfs.rst)
        with fails(errno.EPERM):
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0))
        assert not path.exists()
        path.touch()
        assert path.exists()


@anyone
def test_a_script_of_the_image_runs(place: Place) -> None:
    assert subprocess.check_output([place.tree / "script"]) == b"ran\n"
    os.chmod(place.tree / "script", 0o700)
    assert subprocess.check_output([place.tree / "script"]) == b"ran\n"


@anyone
def test_a_script_that_was_changed_runs_as_it_is_now(place: Place) -> None:
    with (place.tree / "script").open("ab") as file:
        file.write(b"echo again\n")
    assert subprocess.check_output([place.tree / "script"]) == b"ran\nagain\n"


@anyone
def test_a_script_that_was_written_runs_if_it_may(place: Place) -> None:
    Path("s").write_bytes(b"#!/bin/sh\necho $0\n")
    with fails(errno.EACCES):
        subprocess.check_output(["./s"])
    os.chmod("s", 0o755)
    assert subprocess.check_output(["./s"]) == b"./s\n"


@anyone
def test_a_program_that_was_copied_runs(place: Place) -> None:
    shutil.copy("/bin/echo", place.tree / "bare/echo")
    assert subprocess.check_output([place.tree / "bare/echo", "copied"]) == b"copied\n"


@anyone
def test_a_program_that_runs_is_not_written_to(place: Place) -> None:
    shutil.copy("/bin/sleep", "sleep")
    with subprocess.Popen(["./sleep", "60"]) as running:
        try:
            with fails(errno.ETXTBSY):
                os.open("sleep", os.O_WRONLY)
            os.rename("sleep", "moved")
            os.unlink("moved")
        finally:
            running.kill()
    assert running.returncode < 0


@anyone
def test_a_program_that_is_being_written_does_not_run(place: Place) -> None:
    with (place.tree / "script").open("r+b"), fails(errno.ETXTBSY):
        subprocess.check_output([place.tree / "script"])
    assert subprocess.check_output([place.tree / "script"]) == b"ran\n"
