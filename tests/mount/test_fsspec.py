"""`imgfs://` for fsspec: its own suite for what reads, its local file system as oracle, URLs and chains."""

from __future__ import annotations

import csv
import errno
import importlib.metadata
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests.abstract import AbstractFixtures, AbstractGetTests

from imgfs.api.filesystem import ImgfsFileSystem
from imgfs.errors import UsageError
from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import gzipped, plain, serve, write_image

SCENARIOS = (
    "bulk_operations_scenario_0",
    "glob_edge_cases_files",
    "dir_and_file_with_same_name_prefix",
    "10_files_with_hashed_names",
)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directories that fsspec's suite copies from, as it makes them itself on a local disk."""
    root = tmp_path_factory.mktemp("trees")
    for name in SCENARIOS:
        make = getattr(AbstractFixtures(), f"_{name}")
        make(LocalFileSystem(auto_mkdir=True), os.path.join, str(root / name))
    (root / "src").mkdir()
    (root / "src/file").touch()
    (root / "data").mkdir()
    (root / "data/cities.csv").write_text("city,people\nUlm,126000\nBonn,331000\n")
    (root / "data/.hidden").write_text("h")
    (root / "data/[x].txt").write_text("x")
    with zipfile.ZipFile(root / "data/packed.zip", "w") as packed:
        packed.writestr("inside.txt", "packed in an image")
    return root


@pytest.fixture(scope="module")
def layout(trees: Path) -> str:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(trees, ".")
    links = tar.archive(
        tar.symlink("link.csv", "data/cities.csv"),
        tar.symlink("circle", "."),
        tar.symlink("broken", "nowhere"),
        tar.fifo("fifo"),
    )
    return write_image(trees.parent / f"{trees.name}-layout", [gzipped(packed.getvalue()), plain(links)])


@pytest.fixture(scope="module")
def files(layout: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImgfsFileSystem]:
    found = fsspec.filesystem("imgfs", image=layout, store=str(tmp_path_factory.mktemp("store")))
    assert type(found) is ImgfsFileSystem
    yield found
    found.close()


class MadeBeforehand(ImgfsFileSystem):
    """The same, for a test that makes its own files: they are in the image."""

    def mkdir(self, path: str) -> None:  # type: ignore[override]
        assert self.isdir(path)

    def touch(self, path: str) -> None:
        assert self.isfile(path)


class TestGet(AbstractGetTests, AbstractFixtures):  # type: ignore[misc]  # fsspec has no annotations
    """fsspec's own tests of copies out of a file system, from an image in which all is made beforehand."""

    @pytest.fixture
    def fs(self, files: ImgfsFileSystem) -> Iterator[ImgfsFileSystem]:
        made = MadeBeforehand(**files.storage_options)
        yield made
        made.close()

    @pytest.fixture
    def fs_path(self) -> str:
        return "/"

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self) -> str:
        return "/bulk_operations_scenario_0/source"

    @pytest.fixture
    def fs_glob_edge_cases_files(self) -> str:
        return "/glob_edge_cases_files/source"

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self) -> str:
        return "/dir_and_file_with_same_name_prefix/source"

    @pytest.fixture
    def fs_10_files_with_hashed_names(self) -> str:
        return "/10_files_with_hashed_names/source"


@pytest.fixture
def local(trees: Path) -> Any:
    return DirFileSystem(str(trees), LocalFileSystem())


def rooted(found: Any) -> Any:
    """What the local file system says, with paths from the root."""
    return sorted("/" + str(path) for path in found)


def test_it_finds_what_the_local_file_system_finds(files: ImgfsFileSystem, local: Any) -> None:
    for name in ("data", *SCENARIOS):
        assert sorted(files.find(f"/{name}")) == rooted(local.find(name))
        assert sorted(files.find(name, withdirs=True, maxdepth=2)) == rooted(
            local.find(name, withdirs=True, maxdepth=2)
        )
        assert files.du(name) == local.du(name)
        assert sorted(files.ls(name, detail=False)) == rooted(local.ls(name, detail=False))
        ours = {path: (sorted(below), sorted(others)) for path, below, others in files.walk(name)}
        theirs = {f"/{path}": (sorted(below), sorted(others)) for path, below, others in local.walk(name)}
        assert ours == theirs


@pytest.mark.parametrize(
    "pattern", ["data/*", "*/source/**/nested*", "*/*/subdir?/*", "data/[[]x].txt", "**/*.csv"]
)
def test_patterns_match_what_they_match_on_a_disk(files: ImgfsFileSystem, local: Any, pattern: str) -> None:
    found = [path for path in files.glob(pattern) if "link" not in path]
    assert found
    assert found == rooted(local.glob(pattern))


def test_it_tells_of_files_as_the_local_file_system(files: ImgfsFileSystem, local: Any) -> None:
    for path in local.find("data", withdirs=True):
        ours, theirs = files.info(path), local.info(path)
        assert {name: ours[name] for name in ("type", "mode", "uid", "gid", "islink", "nlink")} | {
            "nlink": theirs["nlink"]
        } == {name: theirs[name] for name in ("type", "mode", "uid", "gid", "islink", "nlink")}
        assert ours["mtime"] == pytest.approx(theirs["mtime"], abs=1e-6)
        if ours["type"] == "file":
            assert ours["size"] == theirs["size"]
            assert files.cat_file(path) == local.cat_file(path)
            for start, end in [(0, 3), (2, None), (-4, None), (None, -2), (5, 2), (3, 10**9), (-100, -1)]:
                assert files.cat_file(path, start, end) == local.cat_file(path)[start:end]
    assert files.modified("/data/cities.csv") == datetime.fromtimestamp(
        files.info("/data/cities.csv")["mtime"], UTC
    )


def test_links_are_followed_and_make_no_circles(files: ImgfsFileSystem) -> None:
    kinds = {entry["name"]: entry["type"] for entry in files.ls("/")}
    assert kinds["/link.csv"] == "file"
    assert (kinds["/circle"], kinds["/broken"], kinds["/fifo"]) == ("link", "link", "other")
    assert files.info("link.csv")["destination"] == "data/cities.csv"
    assert files.info("/link.csv")["size"] == files.info("/data/cities.csv")["size"]
    assert files.isfile("/circle/circle/link.csv")
    assert files.isdir("/circle")
    assert files.ls("/circle/data", detail=False)
    assert not files.exists("/broken")
    assert files.lexists("/broken")
    assert not any(path.startswith("/circle/") for path in files.find("/"))


def test_what_is_not_there_or_is_written_raises(files: ImgfsFileSystem) -> None:
    for act in (files.info, files.ls, files.cat_file, files.open):
        with pytest.raises(FileNotFoundError):
            act("/nowhere")
    with pytest.raises(IsADirectoryError):
        files.open("/data")
    changes: list[Callable[[], object]] = [
        lambda: files.open("/data/new", "wb"),
        lambda: files.rm("/data/cities.csv"),
        lambda: files.mkdir("/data/new"),
        lambda: files.makedirs("/data/new/below", exist_ok=True),
        lambda: files.touch("/data/cities.csv"),
        lambda: files.cp("/data/cities.csv", "/data/new"),
    ]
    for change in changes:
        with pytest.raises(OSError, match="Read-only") as raised:
            change()
        assert raised.value.errno == errno.EROFS
    with pytest.raises(UsageError, match="which image"):
        fsspec.filesystem("imgfs")


def test_urls_name_image_and_path(layout: str, tmp_path: Path) -> None:
    options = {"store": str(tmp_path)}
    with fsspec.open(f"imgfs://{layout}:/data/cities.csv", "r", **options) as file:
        assert [row["city"] for row in csv.DictReader(file)] == ["Ulm", "Bonn"]
    with fsspec.open("imgfs://data/cities.csv", image=layout, **options) as file:
        assert file.read(4) == b"city"
    found, path = fsspec.url_to_fs(f"imgfs://{layout}:/data/", **options)
    assert path == "/data"
    assert found.unstrip_protocol("/data/cities.csv") == f"imgfs://{layout}:/data/cities.csv"
    assert [file.path for file in fsspec.open_files(f"imgfs://{layout}:/data/*.csv", **options)] == [
        "/data/cities.csv"
    ]
    for url, image, inside in [
        ("imgfs://debian:12:/etc/passwd", "debian:12", "/etc/passwd"),
        ("imgfs://h.example:5000/team/app:v2:/a:/b", "h.example:5000/team/app:v2", "/a:/b"),
        (f"imgfs://app@sha256:{'0' * 64}:/", f"app@sha256:{'0' * 64}", "/"),
        ("imgfs://docker-archive:/tmp/x.tar:/etc", "docker-archive:/tmp/x.tar", "/etc"),
    ]:
        assert ImgfsFileSystem._get_kwargs_from_urls(url) == {"image": image}
        assert ImgfsFileSystem._strip_protocol(url) == inside
    assert ImgfsFileSystem._strip_protocol("/a:/b") == "/a:/b"
    found.close()


def test_urls_are_chained(layout: str, tmp_path: Path) -> None:
    url, options = f"imgfs://{layout}:/data", {"store": str(tmp_path)}
    with fsspec.open(f"zip://inside.txt::{url}/packed.zip", imgfs=options) as file:
        assert file.read() == b"packed in an image"
    with fsspec.open(f"simplecache::{url}/cities.csv", "r", imgfs=options) as file:
        assert file.readline() == "city,people\n"


def test_it_goes_to_other_processes_as_its_options(files: ImgfsFileSystem, layout: str) -> None:
    assert pickle.loads(pickle.dumps(files)) is files
    ImgfsFileSystem.clear_instance_cache()
    other = pickle.loads(pickle.dumps(files))
    assert other is not files
    assert other.cat("/data/.hidden") == b"h"
    assert other.ukey("/data/.hidden") == files.ukey("/data/.hidden")
    assert other.fsid == files.fsid
    assert fsspec.AbstractFileSystem.from_json(files.to_json()) == files
    other.close()
    assert other.cat("/data/.hidden") == b"h"  # is opened again
    other.close()


def test_an_image_of_a_registry_is_read_by_ranges(tmp_path: Path) -> None:
    with FaultServer() as server:
        name = serve(server, "app", "v1", [gzipped(tar.archive(tar.file("a.csv", b"x,y\n1,2\n")))])
        with fsspec.open(f"imgfs://{name}:/a.csv", "r", store=str(tmp_path), plain_http=True) as file:
            assert file.read() == "x,y\n1,2\n"
        fsspec.filesystem("imgfs", image=name, store=str(tmp_path), plain_http=True).close()


def test_fsspec_finds_it_by_its_entry_point() -> None:
    (entry,) = importlib.metadata.entry_points(group="fsspec.specs", name="imgfs")
    assert entry.load() is ImgfsFileSystem
