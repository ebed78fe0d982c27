"""`imgfs report`: sums held against the tar itself, a bounded page, and names that must not become HTML."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import imgfs as api
from imgfs.cli import main
from imgfs.report.page import page_of
from imgfs.report.treemap import Area, SizeMap, measure
from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, gzipped, plain, serve, write_image

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&<!--\u2028"
LOWER = tar.archive(
    tar.directory("etc"),
    tar.file("etc/os-release", b"ID=debian\nVERSION_ID=12\n"),
    tar.file("etc/old", b"o" * 5000),
    tar.file("etc/changed", b"c" * 700),
    tar.directory("var"),
    tar.directory("var/lib"),
    tar.directory("var/lib/dpkg"),
    tar.file("var/lib/dpkg/status", b"Package: bash\nStatus: install ok installed\nVersion: 5.2\n\n"),
)
UPPER = tar.archive(
    tar.whiteout("etc/old"),
    tar.file("etc/changed", b"C" * 900),
    tar.file(f"etc/{EVIL.replace('/', '|')}".encode(), b"e" * 40_000),
    tar.file(b"etc/\xff\x1b[31m\xe2\x80\xae", b"f" * 30_000),
)
CONFIG = {
    "config": {"Cmd": [EVIL], "Labels": {EVIL: EVIL}, "Env": [f"X={EVIL}"]},
    "history": [{"created_by": EVIL, "created": EVIL}, {"created_by": "COPY upper"}],
}


class Elements(HTMLParser):
    """The elements of a page, what their attributes say, and the text of each script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self._in = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names[tag] += 1
        self.attributes += attrs
        self._in = tag

    def handle_endtag(self, _: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._in, []).append(data)


def checked(page: str) -> dict[str, Any]:
    """Check that a page is itself and nothing else; return its facts."""
    found = Elements(page)
    assert found.names == {
        **dict.fromkeys(["html", "head", "title", "style", "body", "noscript", "main"], 1),
        "meta": 4,
        "script": 2,
    }
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "href")]
    facts, script = found.texts["script"]
    (policy,) = (value for name, value in found.attributes if value and "default-src" in value)
    for kind, text in (("script", script), ("style", found.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert page.isascii()
    parsed: dict[str, Any] = json.loads(facts)
    return parsed


@given(
    st.recursive(
        st.text() | st.integers() | st.none() | st.sampled_from([EVIL, "</SCRIPT >", "<!--<script>", "]]>"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    )
)
def test_no_text_gets_out_of_the_facts(anything: object) -> None:
    facts = {"image": EVIL, "anything": anything, "@SCRIPT@": "@POLICY@"}
    page = page_of(facts)
    assert checked(page) == facts
    assert "".join(Elements(page).texts["title"]) == EVIL


def test_the_script_parses_no_html_and_asks_for_nothing() -> None:
    script = (Path(page_of.__globals__["__file__"]).parent / "page.js").read_text()
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
        "fetch(",
    ):
        assert word not in script
    assert not re.search(r"https?:|XMLHttp|import\(|\.src\b|\.href\b|setAttribute\(\"on", script)


def test_the_command_writes_a_page_about_an_image(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = write_image(tmp_path / "layout", [gzipped(LOWER), plain(UPPER)], CONFIG)
    page = tmp_path / "report.html"
    assert main(["report", "--store", str(tmp_path / "store"), image, "-o", str(page)]) == 0
    facts = checked(page.read_text())
    assert facts["image"] == image
    assert [layer["number"] for layer in facts["layers"]] == [1, 2]
    assert [layer["shown"] for layer in facts["layers"]] == [24 + 57, 70_900]
    assert facts["largest"][0] == [
        "/etc/" + EVIL.replace("/", "|").replace("\u2028", "\\U00002028"),
        40_000,
        2,
    ]
    assert facts["largest"][1] == [r"/etc/\xff\x1b[31m\U0000202e", 30_000, 2]
    assert [row[:2] for row in facts["waste"]["largest"]] == [["/etc/old", 5000], ["/etc/changed", 700]]
    assert [row[-1] for row in facts["waste"]["largest"]] == [False, True]
    assert facts["packages"]["list"] == [["deb", "bash", "5.2", 1]]
    assert facts["packages"]["distribution"] == "debian 12"
    assert [step["layer"] for step in facts["steps"]] == [1, 2]
    assert facts["mount"] is None
    assert main(["report", "--store", str(tmp_path / "store"), image, "-o", f"{tmp_path}/no/where"]) == 1
    assert capfd.readouterr().err == f"imgfs: {tmp_path}/no: No such file or directory\n"


def test_no_file_is_fetched_without_packages(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with FaultServer() as server:
        image = serve(server, "app", "v1", [gzipped(LOWER), plain(UPPER)])
        store = ["--store", str(tmp_path / "store")]
        assert main(["report", *store, image]) == 0
        assert main(["store", "rm", *store, "--data", image]) == 0
        capfdbinary.readouterr()
        server.log.clear()
        assert main(["report", *store, "--without-packages", image]) == 0
        assert server.seen("/blobs/") == []
        assert checked(capfdbinary.readouterr().out.decode())["packages"] is None
        assert main(["report", *store, image]) == 0
        assert server.seen("/blobs/")


@pytest.mark.kernel
def test_a_report_of_a_mount_says_what_it_has_fetched(imgfs: Imgfs, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(3_000_000)
    layers = [plain(tar.archive(tar.file("a", content), tar.file("b", content[:1000])))]
    with FaultServer() as server:
        image = serve(server, "app", "v1", layers)
        imgfs.ok("ls", image)
        imgfs.ok("store", "rm", "--data", image)
        at = imgfs.mount(image)
        assert (at / "b").read_bytes() == content[:1000]
        page = tmp_path / "mount.html"
        assert imgfs.ok("report", at, "-o", page) == ""
        found = checked(page.read_text())["mount"]
        imgfs.umount(at)
        assert found["mountpoint"] == str(at)
        assert found["fetched"] > 0
        assert not found["moved"]
        assert sum(bytes_read for *_, bytes_read in found["causes"]) > 0
        assert len(found["layers"]) == 1
        over_time = found["timeline"]
        fetched = sum(sum(sums) for sums in over_time["fetched"].values())
        assert fetched == sum(size for _, _, size, *_ in found["causes"])
        assert 0 < sum(over_time["read"]) <= fetched
        accesses = checked(imgfs.ok("report", image))["accesses"]
        assert accesses["count"] >= 1
        assert all(layer == 1 and 0 <= place <= 1 for layer, place in accesses["points"])


def everything(area: Area) -> Iterator[Area]:
    """An area and all below it."""
    yield area
    for each in area.below:
        yield from everything(each)


def sizes_of(path: Path, *layers: bytes, most: int = 3000) -> SizeMap:
    """What is measured of an image."""
    image = write_image(path / "layout", [plain(layer) for layer in layers])
    with api.open(image, store=path / "store") as opened:
        return measure(opened._opened.tree, most=most)


def test_areas_are_the_sums_of_what_is_in_them(tmp_path: Path) -> None:
    chance = random.Random(3)
    paths = [f"{chance.randrange(5)}/{chance.randrange(9)}/{number}" for number in range(800)]
    files = {path: chance.choice([0, 10, 500, 5000, 20_000]) for path in paths}
    names = list(files)
    lower = tar.archive(*(tar.file(path, b"x" * files[path]) for path in names[:500]))
    upper = tar.archive(
        *(tar.file(path, b"y" * files[path]) for path in names[500:]), tar.hardlink("again", names[600])
    )
    found = sizes_of(tmp_path, lower, upper, most=50)
    assert (found.root.size, found.root.files) == (sum(files.values()), len(files))
    assert found.by_layer == {
        1: sum(files[path] for path in names[:500]),
        2: sum(files[path] for path in names[500:]),
    }
    assert [each.size for each in found.largest] == sorted(files.values(), reverse=True)[:100]
    for area in everything(found.root):
        if area.below:
            assert area.size == sum(each.size for each in area.below)
            assert area.files == sum(each.files for each in area.below)
    assert len(list(everything(found.root))) <= 100
    for directory in found.root.below:
        if directory.name.isdecimal():
            inside = [size for path, size in files.items() if path.startswith(f"{directory.name}/")]
            assert directory.size == sum(inside)


def test_the_page_of_many_files_and_of_deep_directories_is_small(tmp_path: Path) -> None:
    members = [tar.file(f"many/{number % 97}/{number}", b"z" * (number % 7)) for number in range(6000)]
    members += [tar.file(f"{'d/' * depth}file", b"x" * 3000) for depth in range(1, 1500, 2)]
    members.append(tar.file(f"{'e/' * 1500}file", b"x" * 100_000))
    found = sizes_of(tmp_path, tar.archive(*members), most=200)
    areas = list(everything(found.root))
    assert len(areas) <= 400
    assert found.root.files == 6751
    assert found.largest[0].path == f"/{'e/' * 1500}file"
    (deep,) = (area for area in areas if area.name.startswith("e/e/"))
    assert (deep.size, len(list(everything(deep)))) == (100_000, 2)
    json.dumps(found.root)
