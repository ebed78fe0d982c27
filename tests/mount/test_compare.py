"""Two images compared, and what one layer does: with nothing read that need not be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from imgfs.cli import main
from imgfs.image.files import Found, ImageFiles
from tests.support import tarmake as tar
from tests.support.mounted import gzipped, plain, write_image

LOWER = tar.archive(
    tar.directory("etc"),
    tar.file("etc/same", b"same"),
    tar.file("etc/text", b"one\ntwo\n"),
    tar.file("etc/mode", b"m"),
    tar.file("etc/gone", b"gone"),
    tar.symlink("link", "etc"),
)
UPPER = tar.archive(
    tar.file("etc/text", b"one\n2\n"),
    tar.file("etc/mode", b"m", mode=0o600),
    tar.file("etc/dated", b"d", mtime_ns=1),
    tar.whiteout("etc/gone"),
    tar.symlink("link", "etc/text"),
)
SQUASHED = tar.archive(tar.directory("etc"), tar.file("etc/same", b"same", mtime_ns=10**9))
TINY = tar.archive(tar.directory("etc"), tar.file("etc/same", b"sane"))

Pieces = list[tuple[int, bytes]]


class Images:
    def __init__(self, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        layout, config = path / "layout", {"config": {"Env": ["A=2"]}}
        self.old = write_image(layout, [gzipped(LOWER)], tag="v1")
        self.new = write_image(layout, [gzipped(LOWER), plain(UPPER)], config, tag="v2")
        self.squashed = write_image(layout, [plain(SQUASHED)], tag="squashed")
        self.base = write_image(
            layout, [plain(tar.archive(tar.directory("etc"))), plain(SQUASHED)], tag="base"
        )
        self.other = write_image(layout, [plain(TINY)], tag="other")
        self._capture, self._store = capfd, str(path / "store")

    def __call__(self, command: str, *words: str, code: int = 1) -> str:
        assert main([command, "--store", self._store, *words]) == code
        out, err = self._capture.readouterr()
        return out or err


@pytest.fixture
def images(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Images:
    return Images(tmp_path, capfd)


def test_files_and_configs_of_two_images_are_compared(images: Images) -> None:
    assert images("diff", images.old, images.new).splitlines() == [
        'C config Cmd: ["sh"] -> null',
        'C config Env: ["PATH=/bin"] -> ["A=2"]',
        "A /etc/dated",
        "D /etc/gone",
        "C /etc/mode (mode)",
        "C /etc/text (content)",
        "C /link (target)",
    ]
    found = json.loads(images("diff", "--json", images.new, images.old))
    assert {one["path"]: one["change"] for one in found["files"]}["/etc/gone"] == "added"
    assert found["config"]["Env"]["before"] == ["A=2"]
    assert "-two\n+2\n" in images("diff", "-u", images.old, images.new)


def test_the_same_files_in_other_layers_are_the_same_but_for_their_times(images: Images) -> None:
    assert images("diff", images.squashed, images.base, code=0) == ""
    assert images("diff", images.squashed, images.squashed, code=0) == ""
    assert "C /etc/same (content)" in images("diff", images.squashed, images.other)
    assert "C /etc/same (content, mtime)" in images("diff", "--times", images.squashed, images.other)


def test_what_is_of_the_same_layer_is_not_read(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    read, reader = [], ImageFiles.reader

    def record(files: ImageFiles, found: Found) -> Callable[[int, int], bytes]:
        read.append(found.path)
        return reader(files, found)

    monkeypatch.setattr(ImageFiles, "reader", record)
    images("diff", images.old, images.new)
    assert read == [b"/etc/mode"] * 2  # another layer has it, too; /etc/text has another size


@pytest.mark.parametrize(
    ("ours", "theirs", "differs"),
    [
        ([(0, b"a"), (1 << 39, b"b")], [(1 << 39, b"b"), ((1 << 40) - 1, b"\0")], True),
        ([(0, b"\0a"), (1 << 39, b"b")], [(1, b"a"), (1 << 39, b"b")], False),
        ([(7, b"ab")], [(8, b"bc")], True),
        ([], [(1 << 39, b"\0")], False),
    ],
)
def test_of_files_of_a_terabyte_what_their_layers_have_is_compared(
    images: Images, tmp_path: Path, ours: Pieces, theirs: Pieces, differs: bool
) -> None:
    old, new = (
        write_image(tmp_path / "layout", [plain(tar.sparse_pax("1.0", "huge", 1 << 40, pieces))], tag=tag)
        for tag, pieces in (("ours", ours), ("theirs", theirs))
    )
    said = images("diff", old, new, code=int(differs))
    assert said == ("C /huge (content)\n" if differs else "")


def test_trouble_has_an_exit_code_of_its_own(images: Images) -> None:
    assert "no tag 'v9'" in images("diff", images.old, images.old.replace("v1", "v9"), code=2)


def test_a_layer_is_what_it_adds_changes_and_deletes(images: Images) -> None:
    assert images("ls", "--layer", "2", images.new, code=0).splitlines() == [
        "A /etc/dated",
        "D /etc/gone",
        "C /etc/mode",
        "C /etc/text",
        "C /link",
    ]
    assert images("ls", "--layer", "2", f"{images.new}:/etc/t", code=0) == ""
    assert "A /etc/same" in images("ls", "--layer", "1", images.new, "/etc", code=0).splitlines()
    assert images("ls", "-l", "--layer", "2", images.new, "/link", code=0).endswith("C /link -> etc/text\n")
    assert "there is no layer 3" in images("ls", "--layer", "3", images.new, code=2)


def dpkg(**versions: str) -> bytes:
    """A layer with dpkg's database of these packages."""
    fields = "Package: {}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {}\n"
    body = "\n".join(fields.format(name, version) for name, version in versions.items())
    return tar.archive(
        tar.directory("var"),
        tar.directory("var/lib"),
        tar.directory("var/lib/dpkg"),
        tar.file("var/lib/dpkg/status", body.encode()),
    )


def test_packages_of_two_images_are_compared_on_request(images: Images, tmp_path: Path) -> None:
    layout = tmp_path / "packages"
    old = write_image(layout, [gzipped(dpkg(same="1", gone="2:1-1", curl="7.88"))], tag="old")
    new = write_image(layout, [gzipped(dpkg(same="1", curl="8.1", come="0.1~rc1"))], tag="new")
    told = [line for line in images("diff", "--packages", old, new).splitlines() if "package " in line]
    assert told == [
        "A package deb come: 0.1~rc1",
        "C package deb curl: 7.88 -> 8.1",
        "D package deb gone: 2:1-1",
    ]
    assert "package" not in images("diff", old, new)
    [come, curl, gone] = json.loads(images("diff", "--json", "--packages", old, new))["packages"]
    assert (curl["type"], curl["name"], curl["architecture"]) == ("deb", "curl", "amd64")
    assert [(one["change"], one["before"], one["after"]) for one in (come, curl, gone)] == [
        ("added", [], ["0.1~rc1"]),
        ("changed", ["7.88"], ["8.1"]),
        ("deleted", ["2:1-1"], []),
    ]
    assert images("diff", "--packages", old, old, code=0) == ""
