"""`imgfs.open` and what it returns: held against umoci's unpacked files, `os` and `io`, and in threads."""

from __future__ import annotations

import errno
import io
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

import imgfs
from imgfs import manual
from imgfs.api.reading import ReadingFile
from imgfs.cli import main
from imgfs.errors import ImgfsError, NotFound, UsageError
from tests.support import tarmake as tar
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import gzipped, plain, serve, until, write_image
from tests.support.umoci_oracle import unpack_layout

needs_umoci = pytest.mark.skipif(
    shutil.which("umoci") is None or os.geteuid() != 0, reason="no umoci for root"
)


@cache
def noise_body() -> bytes:
    return random.Random(7).randbytes(3_000_000)


@cache
def lower_layer() -> bytes:
    return tar.archive(
        tar.directory("etc"),
        tar.file("etc/os-release", b'NAME="Small"\nVERSION_ID="1"\n'),
        tar.file("etc/gone", b"deleted"),
        tar.directory("usr"),
        tar.directory("usr/share"),
        tar.file(
            "usr/share/noise", noise_body(), mode=0o640, uid=3, gid=4, mtime_ns=1_500_000_000_123_456_789
        ),
        tar.hardlink("usr/share/again", "usr/share/noise"),
        tar.symlink("share", "usr/share"),
        tar.symlink("loop", "loop"),
    )


UPPER = tar.archive(
    tar.whiteout("etc/gone"),
    tar.file(b"etc/caf\xe9", b"old name", xattrs={b"user.note": b"hello"}),
    tar.file("data.csv", b"city,people\nUlm,126000\nBonn,331000\n"),
    tar.directory("many"),
    *(tar.file(f"many/{number:04}", b"") for number in range(2100)),
    tar.fifo("pipe"),
)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_image(tmp_path_factory.mktemp("layout") / "build", [gzipped(lower_layer()), plain(UPPER)])


@pytest.fixture(scope="module")
def image(layout: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[imgfs.Image]:
    with imgfs.open(layout, store=tmp_path_factory.mktemp("store")) as opened:
        yield opened


@needs_umoci
def test_an_image_shows_what_umoci_unpacks(image: imgfs.Image, layout: str, tmp_path: Path) -> None:
    directory, tag = layout.removeprefix("oci:").rsplit(":", 1)
    root = str(unpack_layout(Path(directory), tag, tmp_path / "bundle"))
    theirs = {
        os.path.join("/", os.path.relpath(directory, root)).removesuffix("/."): (
            sorted(below),
            sorted(others),
        )
        for directory, below, others in os.walk(root)
    }
    ours = {directory: (sorted(below), sorted(others)) for directory, below, others in image.walk()}
    assert {path.rstrip("/"): names for path, names in ours.items()} == {
        path.rstrip("/"): names for path, names in theirs.items()
    }
    for directory, (below, others) in ours.items():
        for path in (f"{directory.rstrip('/')}/{name}" for name in [*below, *others]):
            is_like(image, path, root + path)


def is_like(image: imgfs.Image, path: str, unpacked: str) -> None:
    """Check a file against its unpacked one."""
    found, expected = image.stat(path, follow_symlinks=False), os.lstat(unpacked)
    fields = ["st_mode", "st_nlink", "st_uid", "st_gid", "st_mtime_ns"]
    fields = [*fields, "st_size"] if not stat.S_ISDIR(expected.st_mode) else [*fields[:1], *fields[2:]]
    assert {name: getattr(found, name) for name in fields} == {
        name: getattr(expected, name) for name in fields
    }
    if stat.S_ISREG(expected.st_mode):
        assert image.read_bytes(path) == Path(unpacked).read_bytes()
    if stat.S_ISLNK(expected.st_mode):
        assert image.readlink(path) == os.readlink(unpacked)


def test_a_file_is_a_seekable_binary_file(image: imgfs.Image) -> None:
    with image.open("/share/noise") as file:
        assert (file.seekable(), file.readable(), file.writable(), file.mode) == (True, True, False, "rb")
        assert file.name == "/share/noise"
        assert file.seek(-5, os.SEEK_END) == len(noise_body()) - 5
        assert file.read() == noise_body()[-5:]
        assert file.seek(1_000_000) == 1_000_000
        assert file.read(70_000) == noise_body()[1_000_000:1_070_000]
        file.seek(0)
        assert file.read() == noise_body()
        assert file.read() == b""
    with pytest.raises(ValueError, match="closed"):
        file.read(1)
    with image.open("data.csv", "r") as text:
        assert text.readlines()[1] == "Ulm,126000\n"
    with image.open("data.csv", buffering=0) as raw:
        assert isinstance(raw, io.RawIOBase)
        assert raw.read(4) == b"city"


STEP = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 400)),
    st.tuples(st.just("seek"), st.integers(0, 400)),
    st.tuples(st.just("back"), st.integers(-200, 0)),
    st.tuples(st.just("all"), st.just(0)),
)


@given(st.binary(max_size=300), st.lists(STEP, max_size=20), st.sampled_from([0, 7, 4096]))
def test_reading_is_as_from_memory(content: bytes, steps: list[tuple[str, int]], buffering: int) -> None:
    raw = ReadingFile("x", len(content), lambda offset, length: content[offset : offset + length])
    ours = cast(BinaryIO, io.BufferedReader(raw, buffering) if buffering else raw)
    theirs = io.BytesIO(content)
    acts: dict[str, Callable[[BinaryIO, int], object]] = {
        "read": lambda file, count: file.read(count),
        "seek": lambda file, offset: file.seek(offset),
        "back": lambda file, offset: file.seek(max(offset, -len(content)), os.SEEK_END),
        "all": lambda file, _: file.read(),
    }
    for step, value in steps:
        assert acts[step](ours, value) == acts[step](theirs, value)
        assert ours.tell() == theirs.tell()


@pytest.mark.parametrize(
    ("act", "kind", "number"),
    [
        (lambda image: image.stat("/etc/gone"), FileNotFoundError, errno.ENOENT),
        (lambda image: image.read_bytes("/etc/os-release/x"), NotADirectoryError, errno.ENOTDIR),
        (lambda image: image.listdir("/etc/os-release"), NotADirectoryError, errno.ENOTDIR),
        (lambda image: image.open("/etc"), IsADirectoryError, errno.EISDIR),
        (lambda image: image.open("/loop"), OSError, errno.ELOOP),
        (lambda image: image.open("/pipe"), OSError, errno.EINVAL),
        (lambda image: image.readlink("/etc"), OSError, errno.EINVAL),
        (lambda image: image.open("/etc/os-release", "w"), OSError, errno.EROFS),
        (lambda image: image.open("/etc/os-release", "r+b"), OSError, errno.EROFS),
    ],
)
def test_a_path_that_is_wrong_raises_what_os_raises(
    image: imgfs.Image, act: Callable[[imgfs.Image], object], kind: type[OSError], number: int
) -> None:
    with pytest.raises(kind) as raised:
        act(image)
    assert raised.value.errno == number
    assert isinstance(raised.value.filename, str)


def test_a_mode_that_is_none_is_refused_before_anything_is_looked_at(image: imgfs.Image) -> None:
    for mode in ("", "rz", "b", "rbt", "rr"):
        with pytest.raises(ValueError, match="invalid mode"):
            image.open("/nowhere", mode)


def test_entries_are_as_those_of_scandir(image: imgfs.Image) -> None:
    entries = {entry.name: entry for entry in image.scandir()}
    assert {name for name, entry in entries.items() if entry.is_dir()} == {"etc", "usr", "share", "many"}
    assert entries["share"].is_symlink()
    assert not entries["share"].is_dir(follow_symlinks=False)
    assert not entries["loop"].is_file()
    assert entries["data.csv"].is_file()
    assert os.fspath(entries["data.csv"]) == "/data.csv"
    assert entries["data.csv"].stat().layer == 2
    assert image.listdir("many") == [f"{number:04}" for number in range(2100)]
    assert image.listdir("/share/") == ["again", "noise"]


def test_names_that_are_not_utf_8_are_text_as_os_has_them(image: imgfs.Image) -> None:
    (name,) = (name for name in image.listdir(b"/etc") if name.startswith("caf"))
    assert os.fsencode(name) == b"caf\xe9"
    assert image.read_text(f"/etc/{name}") == "old name"
    assert image.xattrs(b"/etc/caf\xe9") == {"user.note": b"hello"}
    assert image.read_bytes(Path("/etc") / name, 4, 100) == b"name"


def test_an_image_says_what_it_is(image: imgfs.Image, layout: str) -> None:
    assert image.reference == layout
    assert re.fullmatch("sha256:[0-9a-f]{64}", image.digest)
    assert [layer.number for layer in image.layers] == [1, 2]
    assert [layer.media_type[-4:] for layer in image.layers] == ["gzip", ".tar"]
    assert [step.layer for step in image.history if step.layer] == [1, 2]
    assert isinstance(image.config["rootfs"], dict)


def test_errors_are_imgfs_own(tmp_path: Path) -> None:
    with FaultServer() as server, pytest.raises(NotFound):
        imgfs.open(f"{server.host}/nowhere", store=tmp_path / "store")
    with pytest.raises(UsageError, match="not an OCI image layout"):
        imgfs.open(f"oci:{tmp_path}/nowhere", store=tmp_path / "store")
    with pytest.raises(UsageError, match="is not a number of seconds"):
        imgfs.open("debian:12", read_timeout=-1)
    with pytest.raises(UsageError, match="--index: invalid choice: 'never'"):
        imgfs.open("debian:12", index="never")  # type: ignore[arg-type]


def test_a_closed_image_says_so(layout: str, tmp_path: Path) -> None:
    image = imgfs.open(layout, store=tmp_path)
    file, entries = image.open("usr/share/noise", buffering=0), image.scandir("many")
    next(entries)
    image.close()
    image.close()
    assert image.closed
    for act in (lambda: file.read(1), lambda: image.stat("/"), lambda: list(entries)):
        with pytest.raises(ValueError, match="the image is closed"):
            act()


def test_threads_read_as_one(layout: str, tmp_path: Path) -> None:
    with imgfs.open(layout, store=tmp_path) as image, ThreadPoolExecutor(8) as pool:
        spots = [random.Random(seed).randrange(len(noise_body())) for seed in range(64)]
        found = list(pool.map(lambda spot: image.read_bytes("share/noise", spot, 5000), spots))
        assert found == [noise_body()[spot : spot + 5000] for spot in spots]
        listed = list(pool.map(lambda _: image.listdir("many"), range(8)))
        assert all(len(names) == 2100 for names in listed)


@pytest.fixture
def registry(image: imgfs.Image, layout: str, tmp_path: Path) -> Iterator[tuple[FaultServer, str]]:
    with FaultServer() as server:
        yield server, serve(server, "team/app", "v2", [gzipped(lower_layer()), plain(UPPER)])


def index(name: str, store: Path) -> None:
    """Index an image without keeping its bytes."""
    imgfs.open(name, store=store).close()
    assert main(["store", "rm", "--store", str(store), "--data", name]) == 0


def test_nothing_is_fetched_but_what_is_read(registry: tuple[FaultServer, str], tmp_path: Path) -> None:
    server, name = registry
    index(name, tmp_path)
    server.log.clear()
    with imgfs.open(name, store=tmp_path) as image:
        assert sum(len(others) for _, _, others in image.walk()) > 2100
        assert image.stat("share/noise").st_size == len(noise_body())
        file = image.open("data.csv")
        assert image.history
        assert server.seen("/blobs/") == []
        assert file.readline() == b"city,people\n"
        file.close()
        upper = image.layers[1].digest
        assert {seen.path.rpartition("/")[2] for seen in server.seen("/blobs/")} == {upper}


def test_to_close_an_image_ends_a_read_that_waits(registry: tuple[FaultServer, str], tmp_path: Path) -> None:
    server, name = registry
    index(name, tmp_path)
    server.log.clear()
    server.inject(Fault(stall_after=0), on="/blobs/", times=20)
    image = imgfs.open(name, store=tmp_path, read_timeout=50)
    raised: list[Exception] = []

    def read() -> None:
        try:
            image.read_bytes("share/noise")
        except (ValueError, ImgfsError) as error:
            raised.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: server.seen("/blobs/"), "the read waits for the registry")
    image.close()
    reader.join()
    assert [str(error) for error in raised] == ["the image is closed"]


def test_the_import_is_light_and_says_nothing(layout: str, tmp_path: Path) -> None:
    code = """\
import sys, imgfs
assert not [name for name in sys.modules if name.startswith("imgfs.")], sys.modules
assert "open" in dir(imgfs)
with imgfs.open(sys.argv[1], store=sys.argv[2]) as image:
    image.read_bytes("data.csv")
    print(*image.listdir("etc")[:0], end="")
"""
    words = [sys.executable, "-W", "error", "-X", "dev", "-c", code, layout, str(tmp_path)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


BLOCKS = re.findall(r"```python\n(.*?)```", manual.text("python"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_examples_of_the_manual_work(
    number: int, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMGFS_STORE", str(tmp_path / "store"))
    code = BLOCKS[number].replace("registry.example.com/team/app:v2", layout)
    assert layout in code
    exec(compile(code, f"python.md, example {number + 1}", "exec"), {})
