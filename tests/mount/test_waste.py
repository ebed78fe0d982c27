"""What layers store for nothing, and what they hide, through the command line."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from imgfs.cli import main
from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import documents, gzipped, plain, serve, write_image

BIG = b"b" * 100_000
FIRST = tar.archive(
    tar.directory("etc"),
    tar.file("etc/key", b"secret=1\n", mode=0o600),
    tar.file("etc/conf", b"old\n"),
    tar.file("opt/big", BIG),
    tar.file("opt/old/a", b"password\n"),
    tar.symlink("settings", "etc"),
)
SECOND = tar.archive(
    tar.whiteout("etc/key"), tar.whiteout("opt/old"), tar.file("etc/conf", b"new\n"), tar.file("copy", BIG)
)
THIRD = tar.archive(tar.file("opt/big", b"small"), tar.file("again", BIG))


class Waste:
    def __init__(self, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.image = write_image(path / "layout", [gzipped(FIRST), plain(SECOND), plain(THIRD)])
        self._capture = capfd
        self.store = str(path / "store")

    def __call__(self, command: str, *words: str, code: int = 0) -> str:
        assert main([command, "--store", self.store, *words]) == code
        self.complaint = (said := self._capture.readouterr()).err
        return said.out


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Waste:
    return Waste(tmp_path, capfd)


def test_what_is_lost_is_summed_and_listed(run: Waste) -> None:
    found = json.loads(run("waste", "--json", run.image))
    assert found["overwritten"] == {"files": 2, "size": 100_004}
    assert found["deleted"] == {"files": 2, "size": 18}
    assert found["lost"] == 100_022
    assert found["stored"] == 300_000 + 9 + 4 + 9 + 4 + 5
    assert found["largest"][0] == {
        "path": "/opt/big",
        "size": 100_000,
        "layer": 1,
        "hidden_by": 3,
        "change": "overwritten",
    }
    assert [each["path"] for each in found["largest"]] == ["/opt/big", "/etc/key", "/opt/old/a", "/etc/conf"]
    assert sum(each["size"] for each in found["layers"]) == found["lost"]
    assert "duplicates" not in found
    lines = run("waste", "-n", "1", run.image).splitlines()
    assert lines[1] == "lost         100 kB of 300 kB (33.3 %)"
    assert lines[-1].split() == ["100", "kB", "1", "overwritten", "by", "3", "/opt/big"]


def test_equal_files_are_found_by_reading_them(run: Waste) -> None:
    found = json.loads(run("waste", "--json", "--duplicates", run.image))
    assert found["duplicated"] == {"files": 1, "size": 100_000}
    assert found["duplicates"][0]["same_as"] == {"path": "/copy"}
    assert found["lost"] == 200_022
    assert "as in 2: /copy" in run("waste", "--duplicates", run.image)


@pytest.mark.parametrize(("limit", "code"), [("1MB", 0), ("100kB", 1), ("33%", 1), ("34%", 0), ("0", 1)])
def test_more_than_is_allowed_fails(run: Waste, limit: str, code: int) -> None:
    run("waste", "--fail-over", limit, run.image, code=code)
    assert ("more than" in run.complaint) == bool(code)


@pytest.mark.parametrize("limit", ["5 %%", "-1", "nan", "inf", "1e999", "MB", "%", "5XB"])
def test_a_limit_that_is_none_is_named(run: Waste, limit: str) -> None:
    run("waste", f"--fail-over={limit}", run.image, code=2)
    assert "is neither a size" in run.complaint


def test_no_file_data_is_fetched_of_an_indexed_image(run: Waste) -> None:
    with FaultServer() as server:
        name = serve(server, "app", "v1", [gzipped(FIRST), plain(SECOND), plain(THIRD)])
        run("ls", name)
        server.log.clear()
        run("waste", name)
        assert server.seen("/blobs/") == []


def test_find_lists_what_later_layers_hide(run: Waste) -> None:
    assert run("find", "--deleted", run.image).splitlines() == [
        "C  layer 1, by layer 2  /etc/conf",
        "D  layer 1, by layer 2  /etc/key",
        "C  layer 1, by layer 3  /opt/big",
        "D  layer 1, by layer 2  /opt/old",
        "D  layer 1, by layer 2  /opt/old/a",
    ]
    found = json.loads(run("find", "--deleted", "--json", "--name", "k*", run.image, "/settings/key"))
    assert run("find", "--deleted", run.image, "/settings") == ""
    assert [(one["path"], one["layer"], one["hidden_by"], one["change"]) for one in found] == [
        ("/etc/key", 1, 2, "deleted")
    ]
    assert (found[0]["size"], found[0]["mode"]) == (9, "0600")
    assert run("find", "--deleted", "-0", "--type", "f", "--size", "+1k", run.image) == "/opt/big\0"
    assert run("find", "--deleted", run.image, "/opt/o*") == (
        "D  layer 1, by layer 2  /opt/old\nD  layer 1, by layer 2  /opt/old/a\n"
    )
    assert json.loads(run("find", "--deleted", "--json", run.image, "/etc", "--newer", "2020-01-01")) == []
    run("find", "--deleted", run.image, "/nowhere", code=1)
    assert "/nowhere" in run.complaint


def test_grep_searches_every_version(run: Waste) -> None:
    assert run("grep", "-r", "--all-layers", "-E", "secret|password", run.image).splitlines() == [
        "1:/etc/key:secret=1",
        "1:/opt/old/a:password",
    ]
    assert run("grep", "--all-layers", "-n", ".", f"{run.image}:/etc/conf").splitlines() == [
        "2:/etc/conf:1:new",
        "1:/etc/conf:1:old",
    ]
    assert run("grep", "--all-layers", "-l", "secret", run.image, "/settings/key") == "1:/etc/key\n"
    assert run("grep", "-r", "--all-layers", "-l", "secret", run.image, "/settings") == "1:/etc/key\n"
    run("grep", "--all-layers", "x", run.image, "/opt/old", code=1)  # no -r: what is in it is not searched
    run("grep", "--all-layers", "x", run.image, "/nowhere", code=2)
    assert "/nowhere" in run.complaint
    run("grep", "--all-layers", "secret", run.image, "/etc", code=2)


def test_a_hidden_file_is_fetched_by_its_spans(run: Waste) -> None:
    noise = [random.Random(seed).randbytes(3_000_000) for seed in range(3)]
    lower = tar.archive(*(tar.file(f"{seed}", body) for seed, body in enumerate(noise)))
    key = tar.archive(tar.file("key", b"-----BEGIN PRIVATE KEY-----\n"), tar.file("z", noise[0][:500_000]))
    layers = [gzipped(lower), gzipped(key), plain(tar.archive(tar.whiteout("key")))]
    with FaultServer() as server:
        name = serve(server, "app", "v1", layers)
        run("ls", name)
        assert main(["store", "rm", "--store", run.store, "--data", name]) == 0
        run("ls", name)
        server.log.clear()
        run("find", "--deleted", name)
        assert server.seen("/blobs/") == []
        assert run("grep", "-r", "--all-layers", "PRIVATE", name, "/key") == (
            "2:/key:-----BEGIN PRIVATE KEY-----\n"
        )
        assert len(server.seen("/blobs/")) == 1


def test_of_a_published_index_the_entries_are_fetched_and_no_file(run: Waste, tmp_path: Path) -> None:
    """A mount needs the published tree alone: what it leaves in the store has no entries of layers."""
    noise = random.Random(1).randbytes(5_000_000)
    layers = [gzipped(tar.archive(tar.file("a", body))) for body in (noise, noise[:1_000_000])]
    with FaultServer() as server:
        server.referrers_api = True
        name = serve(server, "app", "v1", layers)
        assert main(["index", "push", "--store", str(tmp_path / "other"), name]) == 0
        run("ls", name)
        server.log.clear()
        assert json.loads(run("waste", "--json", name))["lost"] == 5_000_000
        assert server.seen("/blobs/")
        blobs = {layer["digest"] for layer in json.loads(documents(layers).manifest)["layers"]}
        assert [seen.path for seen in server.seen("/blobs/") if seen.path.rpartition("/")[2] in blobs] == []
