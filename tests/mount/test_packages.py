"""imgfs packages: what is installed, where it came from, in table, JSON and CycloneDX; hostile metadata."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from imgfs.cli import main
from tests.support import tarmake as tar
from tests.support.blobs import noise
from tests.support.fault_server import FaultServer
from tests.support.mounted import gzipped, plain, serve, write_image
from tests.support.rpm_databases import header, ndb, sqlite_database

DEB = b"Package: %s\nStatus: install ok installed\nArchitecture: amd64\nVersion: %s\n\n"


@cache
def lower_layer() -> bytes:
    return tar.archive(
        tar.file("usr/lib/os-release", b'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n'),
        tar.symlink("etc/os-release", "../usr/lib/os-release"),
        tar.file("var/lib/dpkg/status", DEB % (b"base", b"1:2.0+b1")),
        tar.file("var/lib/dpkg/info/base.list", b"/usr\n"),
        tar.file("var/lib/dpkg/status.d/tz", b"Package: tzdata\nVersion: 2024a\nArchitecture: all\n"),
        tar.file("var/lib/dpkg/status.d/tz.md5sums", b"Package: no\nVersion: no\n"),
        tar.file("usr/share/big", noise(1, 6 << 20)),
    )


UPPER = tar.archive(
    tar.file("var/lib/dpkg/status", DEB % (b"base", b"1:2.0+b1") + DEB % (b"curl", b"7")),
    tar.file("var/lib/dpkg/info/curl:amd64.list", b"/usr\n"),
    tar.file("lib/apk/db/installed", b"P:musl\nV:1.2\nA:x86_64\nL:MIT\n\n"),
    tar.file("usr/lib/python3/dist-packages/A_b-1.0.dist-info/METADATA", b"Name: A_b\nVersion: 1.0\n\nx"),
    tar.file("usr/lib/python3/old-2.egg-info", b"Name: old\nVersion: 2\n"),
    tar.file("opt/x-1.egg-info/PKG-INFO", b"Name: x\nVersion: 1\n"),
    tar.file("app/node_modules/@s/n/package.json", b'{"name":"@s/n","version":"3.0.0","license":"MIT"}'),
    tar.file("app/node_modules/@s/n/dist/package.json", b'{"name":"inner","version":"9"}'),
    tar.file("app/node_modules/@s/n/node_modules/m/package.json", b'{"name":"m","version":"1.0.0"}'),
    tar.file("app/package.json", b'{"name":"app","version":"1.0.0"}'),
)
FOUND = [
    ("apk", "musl", "1.2", 2),
    ("deb", "base", "1:2.0+b1", 1),
    ("deb", "curl", "7", 2),
    ("deb", "tzdata", "2024a", 1),
    ("npm", "@s/n", "3.0.0", 2),
    ("npm", "m", "1.0.0", 2),
    ("pypi", "A_b", "1.0", 2),
    ("pypi", "old", "2", 2),
    ("pypi", "x", "1", 2),
]
Capture = pytest.CaptureFixture[str]


def run(capfd: Capture, store: Path, *words: str, code: int = 0) -> tuple[str, str]:
    assert main(["packages", "--store", str(store), *words]) == code
    out, err = capfd.readouterr()
    return out, err


def listed(text: str) -> list[tuple[str, str, str, int]]:
    return [(one["type"], one["name"], one["version"], one["layer"]) for one in json.loads(text)["packages"]]


def test_every_manager_is_asked_and_each_layer_named(tmp_path: Path, capfd: Capture) -> None:
    name = write_image(tmp_path / "layout", [gzipped(lower_layer()), plain(UPPER)])
    out, err = run(capfd, tmp_path / "store", "--json", name)
    assert listed(out) == FOUND
    assert json.loads(out)["distribution"] == {"id": "debian", "version": "12", "name": "Debian 12"}
    assert err == ""
    table = [line.split() for line in run(capfd, tmp_path / "store", name)[0].splitlines()]
    assert table[0] == ["NAME", "VERSION", "TYPE", "LAYER", "PATH"]
    assert table[3] == ["curl", "7", "deb", "2", "/var/lib/dpkg/status"]
    some = run(capfd, tmp_path / "store", "--type", "apk,npm", "--json", name)[0]
    assert listed(some) == [one for one in FOUND if one[0] in ("apk", "npm")]
    assert "other types" in run(capfd, tmp_path / "store", "--type", "gem", name, code=2)[1]


def test_only_metadata_is_fetched(tmp_path: Path, capfd: Capture) -> None:
    with FaultServer() as server:
        name = serve(server, "app", "v1", [gzipped(lower_layer()), gzipped(UPPER)])
        size = sum(map(len, server.blobs.values()))
        assert main(["index", "push", "--store", str(tmp_path / "first"), name]) == 0
        capfd.readouterr()
        server.log.clear()
        assert listed(run(capfd, tmp_path / "store", "--json", name)[0]) == FOUND
        ranges = [seen.headers.get("range", "") for seen in server.seen("/blobs/", "GET")]
        fetched = sum(
            int(end) - int(start) + 1 for start, end in re.findall(r"=(\d+)-(\d+)", " ".join(ranges))
        )
        assert 0 < fetched < size / 2


def checked_bom(text: str) -> dict[str, Any]:
    """A bill of materials that keeps the rules of bom-1.5.schema.json that matter for what is written."""
    bom: dict[str, Any] = json.loads(text)
    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.5", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bom["serialNumber"])
    known = {"$schema", "bomFormat", "specVersion", "serialNumber", "version", "metadata", "components"}
    assert bom.keys() <= known
    everything = [bom["metadata"]["component"], *bom["components"]]
    assert len({one["bom-ref"] for one in everything}) == len(everything)
    for one in everything:
        assert one.keys() <= {
            *("type", "bom-ref", "group", "name", "version", "description", "licenses", "purl", "properties")
        }
        assert one["type"] in ("container", "operating-system", "library")
        assert all(
            isinstance(value, str) and value for key, value in one.items() if key in ("name", "bom-ref")
        )
        assert [*one.get("licenses", [])] == [
            {"license": {"name": x["license"]["name"]}} for x in one.get("licenses", [])
        ]
        assert all(each.keys() == {"name", "value"} for each in one.get("properties", []))
        assert re.fullmatch(
            r"pkg:[a-z]+/[A-Za-z0-9%.:/_~-]+(@[A-Za-z0-9%.:_~-]+)?(\?[A-Za-z0-9%.:_~=&-]+)?",
            one.get("purl", "pkg:a/b"),
        )
    return bom


def test_a_bill_of_materials_keeps_the_rules_and_is_the_same_again(tmp_path: Path, capfd: Capture) -> None:
    name = write_image(tmp_path / "layout", [gzipped(lower_layer()), plain(UPPER)])
    text = run(capfd, tmp_path / "store", "--cyclonedx", name)[0]
    bom = checked_bom(text)
    assert [one["purl"] for one in bom["components"][1:4]] == [
        "pkg:apk/debian/musl@1.2?arch=x86_64&distro=debian-12",
        "pkg:deb/debian/base@1:2.0%2Bb1?arch=amd64&distro=debian-12",
        "pkg:deb/debian/curl@7?arch=amd64&distro=debian-12",
    ]
    assert text == run(capfd, tmp_path / "other", "--cyclonedx", name)[0]


def test_rpms_of_every_database_that_is_a_plain_file(tmp_path: Path, capfd: Capture) -> None:
    one = header(name="bash", version="5", release="1.fc40", arch="x86_64", epoch=2)
    two = header(name="zlib", version="1", release="2", arch="x86_64")
    layer = tar.archive(
        tar.file("usr/lib/sysimage/rpm/rpmdb.sqlite", sqlite_database(tmp_path / "db", [one])),
        tar.file("usr/lib/sysimage/rpm/rpmdb.sqlite-wal", b"x"),
        tar.file("usr/lib/sysimage/rpm/Packages.db", ndb([two])),
        tar.file("var/lib/rpm/Packages", b"\0" * 100),
    )
    out, err = run(capfd, tmp_path / "store", "--json", write_image(tmp_path / "layout", [plain(layer)]))
    assert listed(out) == [("rpm", "bash", "2:5-1.fc40", 1), ("rpm", "zlib", "1-2", 1)]
    assert "Packages: a Berkeley DB of rpm's, which imgfs does not read" in err
    assert "write-ahead log" in err


def test_hostile_metadata_is_named_and_the_rest_is_listed(tmp_path: Path, capfd: Capture) -> None:
    evil = b"\x1b[31mevil\x07\xff"
    layer = tar.archive(
        tar.file("etc/os-release", b"ID=" + b"a" * 100_000 + b"\nVERSION_ID=$(x)\n"),
        tar.file(
            "var/lib/dpkg/status", DEB % (evil, b"1\xfe") + b"x" * 3_000_000 + b"\n\n" + DEB % (b"ok", b"2")
        ),
        tar.file("lib/apk/db/installed", b"P:" + b"y" * 200_000 + b"\nV:1\n"),
        tar.file("var/lib/rpm/rpmdb.sqlite", b"SQLite format 3\0" + bytes(5000)),
        tar.file("a/node_modules/x/package.json", b"[" * 200_000),
        tar.file("b/node_modules/y/package.json", b" " * (2 << 20)),
        tar.file("c/x.dist-info/METADATA", b"\0" * 100),
        tar.symlink("d/node_modules/z/package.json", "/dev/zero"),
        tar.directory("e/f.egg-info"),
    )
    name = write_image(tmp_path / "layout", [plain(layer)])
    out, err = run(capfd, tmp_path / "store", name)
    assert r"\x1b[31mevil\x07" in out
    assert len(max(out.splitlines(), key=len)) < 5_000
    assert "ok" in [line.split()[0] for line in out.splitlines()]
    assert len(err.splitlines()) == 4
    assert all(line.startswith("imgfs: warning: /") for line in err.splitlines())
    document = json.loads(run(capfd, tmp_path / "store", "--json", name)[0])
    assert len(document["unread"]) == 4
    checked_bom(run(capfd, tmp_path / "store", "--cyclonedx", name)[0])


@pytest.mark.parts
@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="no dpkg")
def test_this_machines_packages_are_those_of_dpkg_query(tmp_path: Path, capfd: Capture) -> None:
    body = Path("/var/lib/dpkg/status").read_bytes()
    name = write_image(tmp_path / "layout", [gzipped(tar.archive(tar.file("var/lib/dpkg/status", body)))])
    form = "${Package} ${Version} ${Architecture} ${db:Status-Status}\n"
    theirs = subprocess.run(["dpkg-query", "-W", "-f", form], check=True, capture_output=True, text=True)
    expected = [line.split()[:3] for line in theirs.stdout.splitlines() if not line.endswith("config-files")]
    found = json.loads(run(capfd, tmp_path / "store", "--json", name)[0])["packages"]
    assert sorted([one["name"], one["version"], one["architecture"]] for one in found) == sorted(expected)


def test_this_environments_distributions_are_those_of_python(tmp_path: Path, capfd: Capture) -> None:
    place = Path(next(path for path in sys.path if path.endswith("site-packages")))
    heads = [*place.glob("*.dist-info/METADATA"), *place.glob("*.egg-info/PKG-INFO")]
    members = (tar.file(f"site/{head.relative_to(place)}", head.read_bytes()) for head in heads)
    name = write_image(tmp_path / "layout", [gzipped(tar.archive(*members))])
    found = json.loads(run(capfd, tmp_path / "store", "--json", name)[0])["packages"]
    theirs = importlib.metadata.distributions(path=[str(place)])
    assert sorted((one["name"], one["version"]) for one in found) == sorted(
        (one.metadata["Name"], one.version) for one in theirs
    )
