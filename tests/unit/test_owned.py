"""What could be another user's is opened only if it is not; what is held is not swept."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from imgfs.errors import MountError, StoreError
from imgfs.owned.opening import open_owned_directory, open_owned_file, random_name, read_owned_file
from imgfs.owned.writing import HeldPath, new_directory, new_file, sweep
from imgfs.runtime.bundle import new_bundle
from imgfs.store.atomic import atomic_write
from tests.support.mounted import until

OTHER = 65_533
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
WRITE = os.O_RDWR | os.O_CREAT


def _opens(path: Path, *, make: bool = False) -> bool:
    os.close(open_owned_directory(path, make=make))
    return True


def test_a_directory_of_ones_own_is_opened_and_made(tmp_path: Path) -> None:
    assert _opens(tmp_path)
    assert _opens(tmp_path / "a/b", make=True)
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700
    with pytest.raises(StoreError, match="No such file"):
        open_owned_directory(tmp_path / "c")


@root_only
def test_another_users_directory_is_refused_by_name(tmp_path: Path) -> None:
    os.chown(tmp_path, OTHER, OTHER)
    with pytest.raises(StoreError, match=f"{tmp_path}: belongs to uid {OTHER}, not to you"):
        open_owned_directory(tmp_path)


@pytest.mark.parametrize(("mode", "opens"), [(0o755, True), (0o777, False), (0o1777, True), (0o775, True)])
def test_a_directory_that_others_may_write_to_is_refused_unless_sticky(
    tmp_path: Path, mode: int, opens: bool
) -> None:
    tmp_path.chmod(mode)
    if opens:
        assert _opens(tmp_path)
    else:
        with pytest.raises(StoreError, match="other users may write to it"):
            open_owned_directory(tmp_path)


@root_only
def test_a_directory_of_another_group_that_may_write_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, -1, OTHER)
    tmp_path.chmod(0o770)
    with pytest.raises(StoreError, match="other users may write to it"):
        open_owned_directory(tmp_path)


@root_only
def test_only_ones_own_link_to_a_directory_is_followed(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    link = tmp_path / "link"
    link.symlink_to("target")
    assert _opens(link)
    os.chown(link, OTHER, OTHER, follow_symlinks=False)
    with pytest.raises(StoreError, match="a symbolic link of uid"):
        open_owned_directory(link)


def test_links_in_a_circle_and_things_that_are_no_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for name in ("a", "file", "fifo"):
        with pytest.raises(StoreError, match=f"{tmp_path / name}: "):
            open_owned_directory(tmp_path / name, make=name == "file")


def test_a_file_is_not_reached_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / "lock").symlink_to(target)
    with pytest.raises(StoreError, match="a symbolic link, which is not followed"):
        open_owned_file(tmp_path / "lock", WRITE | os.O_TRUNC)
    os.link(target, tmp_path / "second")
    with pytest.raises(StoreError, match="a file with other names"):
        open_owned_file(tmp_path / "second", WRITE | os.O_TRUNC)
    assert target.read_text() == "kept"


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    for name in ("fifo", "directory"):
        for flags in (WRITE, os.O_RDONLY):
            with pytest.raises(StoreError, match=f"{tmp_path / name}: "):
                open_owned_file(tmp_path / name, flags)


@root_only
def test_another_users_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("theirs")
    os.chown(path, OTHER, OTHER)
    with pytest.raises(StoreError, match="belongs to uid"):
        open_owned_file(path, WRITE | os.O_TRUNC)
    assert path.read_text() == "theirs"


def test_a_file_is_read_up_to_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_owned_file(path) == b"x" * 100
    directory = open_owned_directory(tmp_path)
    try:
        assert read_owned_file(path, directory=directory) == b"x" * 100
    finally:
        os.close(directory)
    with pytest.raises(StoreError, match="larger than 99 bytes"):
        read_owned_file(path, largest=99)
    with pytest.raises(FileNotFoundError):
        read_owned_file(tmp_path / "none")


def test_random_names_differ() -> None:
    assert len({random_name("a-") for _ in range(1000)}) == 1000


def _remove(path: Path) -> None:
    path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("make", [new_file, new_directory])
def test_a_sweep_leaves_what_is_held_and_takes_what_is_not(
    tmp_path: Path, make: Callable[[Path, str], HeldPath]
) -> None:
    held = make(tmp_path, ".new-")
    sweep(tmp_path, ".new-", _remove)
    assert held.path.exists()
    held.release()
    (tmp_path / "other").touch()
    sweep(tmp_path, ".new-", _remove)
    assert os.listdir(tmp_path) == ["other"]


FILE = "from imgfs.owned.writing import new_file; held = new_file(here, '.new-')"
TEMPORARY = "from imgfs.store.atomic import atomic_write; held = atomic_write(here / 'a'); held.__enter__()"
BUNDLE = "from imgfs.runtime.bundle import new_bundle; held = new_bundle(here, 'a'); held.__enter__()"
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


@contextmanager
def _holder(directory: Path, *before: str, held: str = FILE) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds something, perhaps in namespaces of its own."""
    code = (
        f"import sys, pathlib; here = pathlib.Path(sys.argv[1]); {held}; print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [*before, sys.executable, "-c", code, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


@root_only
def test_another_pid_namespace_does_not_matter(tmp_path: Path) -> None:
    with _holder(tmp_path, *NAMESPACE):
        sweep(tmp_path, ".new-", _remove)
        assert len(os.listdir(tmp_path)) == 1


@root_only
def test_what_another_pid_namespace_writes_aside_is_left_alone(tmp_path: Path) -> None:
    with _holder(tmp_path, *NAMESPACE, held=TEMPORARY):
        with atomic_write(tmp_path / "b"):
            pass
        assert [name[-2:] for name in sorted(os.listdir(tmp_path))] == ["-a", "b"]


@root_only
def test_a_container_of_another_pid_namespace_is_left_alone_until_it_is_killed(tmp_path: Path) -> None:
    with _holder(tmp_path, *NAMESPACE, held=BUNDLE):
        with new_bundle(tmp_path, "b"):
            assert sorted(os.listdir(tmp_path / "containers")) == ["a", "b"]
        with pytest.raises(MountError, match="a container called a is running"), new_bundle(tmp_path, "a"):
            pass
        assert os.listdir(tmp_path / "containers") == ["a"]

    def is_swept() -> bool:
        with new_bundle(tmp_path, "b"):
            return os.listdir(tmp_path / "containers") == ["b"]

    until(is_swept, "what the dead one has left is swept")


def test_a_stopped_process_holds_and_a_killed_one_does_not(tmp_path: Path) -> None:
    with _holder(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        sweep(tmp_path, ".new-", _remove)
        assert len(os.listdir(tmp_path)) == 1
    sweep(tmp_path, ".new-", _remove)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("make", [new_file, new_directory])
def test_what_is_made_beside_a_sweep_that_never_ends_is_held_all_the_same(
    tmp_path: Path, make: Callable[[Path, str], HeldPath]
) -> None:
    ends = threading.Event()

    def sweeping() -> None:
        while not ends.is_set():
            sweep(tmp_path, ".new-", _remove)

    thread = threading.Thread(target=sweeping)
    thread.start()
    try:
        for _ in range(300):
            held = make(tmp_path, ".new-")
            assert os.path.samestat(held.path.stat(), os.fstat(held.fd))
            with suppress(FileNotFoundError):
                _remove(held.path)
            held.release()
    finally:
        ends.set()
        thread.join()
