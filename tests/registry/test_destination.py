"""Destinations: a registry and an OCI layout directory keep the same promises; what a layout survives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import IntegrityError, InvalidImage, StoreError, Unavailable, UsageError
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_INDEX, OCI_MANIFEST
from imgfs.oci.reference import parse_reference
from imgfs.registry.retry import Timeouts
from imgfs.transport.connect import open_source
from imgfs.transport.destination import Destination, tag_of
from imgfs.transport.layout_writer import entered
from imgfs.transport.open_destination import open_destination
from tests.support.fault_server import LAYER, FaultServer
from tests.support.mounted import CHECKOUT, SESSION, gzipped, write_image
from tests.support.patience import allowed
from tests.support.tarmake import archive, file

FAST = Timeouts(connect=5.0, read=5.0, deadline=10.0, backoff=0.001)
BODY = bytes(range(256)) * 4096  # 1 MiB
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
REF_NAME = "org.opencontainers.image.ref.name"


@pytest.fixture(params=["layout", "registry"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """What a reference into the destination begins with."""
    if request.param == "layout":
        yield f"oci:{tmp_path / 'layout'}"
        return
    with FaultServer() as server:
        yield f"{server.host}/ns/app"


Opener = Callable[[str], Destination]


@pytest.fixture
def opened() -> Iterator[Opener]:
    made: list[Destination] = []

    def open_named(text: str) -> Destination:
        made.append(open_destination(parse_reference(text), timeouts=FAST))
        return made[-1]

    yield open_named
    for destination in made:
        destination.close()


def layer(body: bytes = BODY) -> Descriptor:
    return Descriptor(LAYER, Digest.of(body), len(body))


def manifest(body: bytes = MANIFEST) -> Descriptor:
    return Descriptor(OCI_MANIFEST, Digest.of(body), len(body))


def from_bytes(body: bytes, chunk: int = 100_000) -> Callable[[int], Iterator[bytes]]:
    return lambda offset: (body[at : at + chunk] for at in range(offset, len(body), chunk))


def read_back(text: str, descriptor: Descriptor) -> bytes:
    source = open_source(parse_reference(text), timeouts=FAST)
    try:
        return b"".join(source.blob(descriptor))
    finally:
        source.close()


def resolved(text: str) -> tuple[Descriptor, bytes]:
    source = open_source(parse_reference(text), timeouts=FAST)
    try:
        found = source.resolve()
        return found, source.document(found)
    finally:
        source.close()


# both


@pytest.mark.parametrize("body", [BODY, b"x", b""], ids=len)
def test_a_blob_that_was_put_is_there(place: str, opened: Opener, body: bytes) -> None:
    destination = opened(place)
    assert not destination.has(layer(body))
    destination.put_blob(layer(body), from_bytes(body))
    assert destination.has(layer(body))
    assert read_back(place, layer(body)) == body
    assert destination.traffic().bytes == len(body)


@pytest.mark.parametrize("lie", [BODY[:-1] + b"?", b"?" + BODY[1:], BODY[:-1], BODY + b"?", b""])
def test_a_blob_that_is_not_its_digest_is_not_kept(place: str, opened: Opener, lie: bytes) -> None:
    destination = opened(place)
    with pytest.raises(IntegrityError):
        destination.put_blob(layer(), from_bytes(lie))
    assert not destination.has(layer())
    assert destination.traffic().bytes == 0


def test_a_source_that_fails_leaves_nothing_behind(place: str, opened: Opener) -> None:
    def fails(offset: int) -> Iterator[bytes]:
        yield BODY[:1000]
        raise Unavailable("away")

    destination = opened(place)
    with pytest.raises(Unavailable, match="away"):
        destination.put_blob(layer(), fails)
    assert not destination.has(layer())


def test_the_named_manifest_has_the_tag_and_others_only_their_digest(place: str, opened: Opener) -> None:
    destination = opened(f"{place}:v1")
    other = MANIFEST + b" "
    destination.put_manifest(manifest(other), other, named=False)
    destination.put_manifest(manifest(), MANIFEST, named=True)
    assert resolved(f"{place}:v1")[1] == MANIFEST
    assert resolved(f"{place}:v1")[0].digest == manifest().digest
    assert resolved(f"{place}@{manifest(other).digest}")[1] == other


def test_without_a_tag_it_is_the_latest(place: str, opened: Opener) -> None:
    opened(place).put_manifest(manifest(), MANIFEST, named=True)
    assert resolved(f"{place}:latest")[1] == MANIFEST


def test_a_digest_alone_gives_no_tag(place: str, opened: Opener) -> None:
    pinned = f"{place}@{manifest().digest}"
    opened(pinned).put_manifest(manifest(), MANIFEST, named=True)
    assert resolved(pinned)[1] == MANIFEST
    assert tag_of(parse_reference(pinned)) is None


def test_a_pinned_name_takes_no_other_image(place: str, opened: Opener) -> None:
    destination = opened(f"{place}@{Digest.of(b'other')}")
    destination.check_name(Digest.of(b"other"))
    with pytest.raises(UsageError, match="names one image for ever"):
        destination.check_name(manifest().digest)
    with pytest.raises(UsageError):
        destination.put_manifest(manifest(), MANIFEST, named=True)


def test_a_manifest_is_its_digest_or_not_taken(place: str, opened: Opener) -> None:
    with pytest.raises(IntegrityError):
        opened(place).put_manifest(manifest(), MANIFEST + b" ", named=True)


# the layout directory


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return tmp_path / "a" / "layout"


def index_of(layout: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((layout / "index.json").read_text())
    return found


def tags(layout: Path) -> list[str]:
    return [entry["annotations"][REF_NAME] for entry in index_of(layout)["manifests"]]


def put(layout: Path, tag: str, body: bytes = MANIFEST) -> None:
    destination = open_destination(parse_reference(f"oci:{layout}:{tag}"))
    destination.put_manifest(manifest(body), body, named=True)


def files(layout: Path) -> set[str]:
    return {str(path.relative_to(layout)) for path in layout.rglob("*") if path.is_file()}


def test_nothing_is_made_before_something_is_put(layout: Path, opened: Opener) -> None:
    destination = opened(f"oci:{layout}")
    assert not destination.has(layer())
    assert not layout.exists()


def test_a_new_layout_is_what_the_specification_says(layout: Path) -> None:
    put(layout, "v1")
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    entry = {"mediaType": OCI_MANIFEST, "digest": str(manifest().digest), "size": len(MANIFEST)}
    assert index_of(layout) == {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{**entry, "annotations": {REF_NAME: "v1"}}],
    }
    blob = f"blobs/sha256/{manifest().digest.hex}"
    assert files(layout) == {"oci-layout", "index.json", ".imgfs.lock", blob}


def test_a_tag_that_is_given_again_leaves_its_older_image(layout: Path) -> None:
    put(layout, "v1")
    put(layout, "v2")
    put(layout, "v1", MANIFEST + b" ")
    assert tags(layout) == ["v2", "v1"]
    assert resolved(f"oci:{layout}:v1")[1] == MANIFEST + b" "
    assert resolved(f"oci:{layout}:v2")[1] == MANIFEST


def test_what_others_wrote_into_the_index_stays(layout: Path) -> None:
    put(layout, "v1")
    foreign = {"mediaType": "x/y", "digest": "md5:00", "size": 1, "platform": {"os": "é"}, "more": [1]}
    known = index_of(layout)
    known |= {"annotations": {"a": "b"}, "unknown": {"x": 1}, "manifests": [*known["manifests"], foreign]}
    (layout / "index.json").write_text(json.dumps(known))
    put(layout, "v2")
    after = index_of(layout)
    assert after["manifests"][:2] == known["manifests"]
    assert {**after, "manifests": []} == {**known, "manifests": []}


def test_an_image_written_by_another_tool_stays_readable(layout: Path) -> None:
    older = write_image(layout, [gzipped(archive(file("a", b"1")))], tag="old")
    put(layout, "new")
    assert resolved(older)[0].media_type == OCI_MANIFEST
    assert tags(layout) == ["old", "new"]


def test_a_digest_that_is_there_gets_no_second_nameless_entry(layout: Path, opened: Opener) -> None:
    for _ in range(2):
        destination = opened(f"oci:{layout}@{manifest().digest}")
        destination.put_manifest(manifest(), MANIFEST, named=True)
    assert len(index_of(layout)["manifests"]) == 1


@given(
    st.lists(st.none() | st.integers() | st.dictionaries(st.text(), st.none()) | st.just({"annotations": 1})),
    st.lists(st.sampled_from(["a", "b", "c"])),
)
def test_a_tag_is_in_the_index_once_and_nothing_else_goes(others: list[Any], given_tags: list[str]) -> None:
    entries: list[object] = list(others)
    for tag in given_tags:
        entries = entered(entries, manifest(), tag)
    named = [entry for entry in entries if isinstance(entry, dict) and "digest" in entry]
    assert sorted(entry["annotations"][REF_NAME] for entry in named) == sorted(set(given_tags))
    assert entries[: len(others)] == others


def test_a_blob_of_the_wrong_size_is_written_again(layout: Path, opened: Opener) -> None:
    destination = opened(f"oci:{layout}")
    destination.put_blob(layer(), from_bytes(BODY))
    os.truncate(layout / "blobs/sha256" / layer().digest.hex, 5)
    assert not destination.has(layer())
    destination.put_blob(layer(), from_bytes(BODY))
    assert read_back(f"oci:{layout}", layer()) == BODY


def test_a_sha512_blob_has_its_own_directory(layout: Path, opened: Opener) -> None:
    blob = Descriptor(LAYER, Digest.of(BODY, "sha512"), len(BODY))
    opened(f"oci:{layout}").put_blob(blob, from_bytes(BODY))
    assert (layout / "blobs/sha512" / blob.digest.hex).read_bytes() == BODY


def test_a_directory_that_is_something_else_is_left_alone(layout: Path, opened: Opener) -> None:
    layout.mkdir(parents=True)
    (layout / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match="neither empty nor an OCI image layout"):
        opened(f"oci:{layout}").put_blob(layer(), from_bytes(BODY))
    assert files(layout) == {"thesis.tex"}


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("oci-layout", '{"imageLayoutVersion": "2.0.0"}', UsageError),
        ("oci-layout", "[]", InvalidImage),
        ("oci-layout", "nonsense", InvalidImage),
        ("index.json", "nonsense", InvalidImage),
        ("index.json", "[]", InvalidImage),
        ("index.json", '{"manifests": 1}', InvalidImage),
    ],
)
def test_a_broken_layout_is_an_error_and_stays_as_it_is(
    layout: Path, name: str, text: str, kind: type[Exception]
) -> None:
    put(layout, "v1")
    (layout / name).write_text(text)
    with pytest.raises(kind, match=str(layout)):
        put(layout, "v2")
    assert (layout / name).read_text() == text


def test_what_cannot_be_written_is_one_line_that_says_where(layout: Path) -> None:
    put(layout, "v1")
    shutil.rmtree(layout / "blobs")
    (layout / "blobs").write_text("in the way")
    with pytest.raises(StoreError, match=str(layout / "blobs")):
        put(layout, "v2")
    assert tags(layout) == ["v1"]
    assert not list(layout.glob(".imgfs-*"))


OTHER = 65_533
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
BLOBS = f"blobs/{layer().digest.algorithm}"


def _to_directory(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)


def _to_file(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere / "precious")


def _fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


PLANTED: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "blobs lead away": ("blobs", _to_directory),
    "blobs of an algorithm lead away": (BLOBS, _to_directory),
    "a link for the index": ("index.json", _to_file),
    "a link for the marker": ("oci-layout", _to_file),
    "a link for the lock": (".imgfs.lock", _to_file),
    "a FIFO for the index": ("index.json", _fifo),
    "a FIFO for the marker": ("oci-layout", _fifo),
    "a FIFO for the lock": (".imgfs.lock", _fifo),
    "a FIFO for the blobs": (BLOBS, _fifo),
}


@root_only
@pytest.mark.parametrize("case", PLANTED)
def test_what_another_user_has_planted_in_a_layout_is_refused_and_leads_nowhere(
    layout: Path, tmp_path: Path, case: str
) -> None:
    """In a layout that anybody may add to, as in /tmp."""
    name, plant = PLANTED[case]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("precious")
    put(layout, "v0")
    shutil.rmtree(layout / name) if (layout / name).is_dir() else (layout / name).unlink()
    (layout / name).parent.chmod(0o1777)
    plant(layout / name, elsewhere)
    os.chown(layout / name, OTHER, OTHER, follow_symlinks=False)
    with pytest.raises(StoreError, match=str(layout / name)):
        put(layout, "v1")
    assert {path.name: path.read_text() for path in elsewhere.iterdir()} == {"precious": "precious"}


@root_only
@pytest.mark.parametrize("place", ["", "blobs", BLOBS])
def test_another_users_layout_is_refused_and_stays_as_it_is(layout: Path, place: str) -> None:
    put(layout, "v1")
    os.chown(layout / place, OTHER, OTHER)
    before = files(layout)
    with pytest.raises(StoreError, match=f"belongs to uid {OTHER}, not to you"):
        put(layout, "v2", b"another layer")
    assert (files(layout), tags(layout)) == (before, ["v1"])


def test_a_link_of_ones_own_to_a_layout_or_its_blobs_is_followed(layout: Path, tmp_path: Path) -> None:
    put(layout, "v1")
    (layout / "blobs").rename(tmp_path / "large-disk")
    (layout / "blobs").symlink_to(tmp_path / "large-disk")
    (tmp_path / "link").symlink_to(layout)
    put(tmp_path / "link", "v2", b"another layer")
    assert tags(layout) == ["v1", "v2"]
    assert (tmp_path / "large-disk/sha256" / Digest.of(b"another layer").hex).read_bytes() == b"another layer"


def test_threads_may_put_the_same_blobs_at_once(layout: Path, opened: Opener) -> None:
    destinations = [opened(f"oci:{layout}:t{number}") for number in range(4)]

    def work(destination: Destination) -> None:
        for size in (10, 100_000, 0):
            destination.put_blob(layer(BODY[:size]), from_bytes(BODY[:size]))
        destination.put_manifest(manifest(), MANIFEST, named=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, destinations * 2))
    assert sorted(tags(layout)) == ["t0", "t1", "t2", "t3"]
    assert not list(layout.glob(".imgfs-*"))


_WRITER = """
import json, sys
from imgfs.transport.open_destination import open_destination
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.reference import parse_reference
layout, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.stdin.read(1)
for number in range(count):
    body = json.dumps({"schemaVersion": 2, "layers": [], "annotations": {"a": f"{name}{number}"}}).encode()
    destination = open_destination(parse_reference(f"oci:{layout}:{name}-{number}"))
    destination.put_manifest(Descriptor("application/x", Digest.of(body), len(body)), body, named=True)
"""
_HALF = """
import sys, time
from imgfs.transport.open_destination import open_destination
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.reference import parse_reference
def half(offset):
    yield b"x" * 500_000
    print("half", flush=True)
    time.sleep(60)
whole = b"x" * 1_000_000
open_destination(parse_reference(f"oci:{sys.argv[1]}")).put_blob(
    Descriptor("application/x", Digest.of(whole), len(whole)), half)
"""


def script(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    name, _, value = SESSION.partition("=")
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT), name: value},
    )


def test_processes_may_write_one_layout_at_once(layout: Path) -> None:
    writers = [script(_WRITER, layout, f"w{number}", 12) for number in range(3)]
    for writer in writers:
        assert writer.stdin
        writer.stdin.write(b"!")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=allowed(60))
        assert writer.returncode == 0
    assert sorted(tags(layout)) == sorted(f"w{one}-{number}" for one in range(3) for number in range(12))
    assert len(list((layout / "blobs/sha256").iterdir())) == 36


def test_a_killed_writer_leaves_no_blob_and_the_next_one_tidies_up(layout: Path, opened: Opener) -> None:
    with script(_HALF, layout) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == b"half\n"
        put(layout, "meanwhile")
        aside = list(layout.glob(".imgfs-*"))
        assert len(aside) == 1  # what is being written is left alone
        writer.kill()
    whole = b"x" * 1_000_000
    assert not opened(f"oci:{layout}").has(layer(whole))
    put(layout, "next")
    assert not list(layout.glob(".imgfs-*"))
    assert tags(layout) == ["meanwhile", "next"]


def test_writers_killed_at_any_moment_leave_a_layout_whose_tags_are_whole(layout: Path) -> None:
    for delay in (0.0, 0.002, 0.01, 0.03):
        with script(_WRITER, layout, f"k{delay}", 1000) as writer:
            assert writer.stdin
            writer.stdin.write(b"!")
            writer.stdin.flush()
            while (
                not (layout / "index.json").exists()
                or f"k{delay}-0" not in (layout / "index.json").read_text()
            ):
                assert writer.poll() is None
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(delay)
            writer.send_signal(signal.SIGKILL)
        for tag in tags(layout):
            resolved(f"oci:{layout}:{tag}")
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
