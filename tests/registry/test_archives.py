"""Images in files: archives of docker, podman and skopeo, skopeo's directories, and bare tars."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import zstandard

from imgfs.cli import main
from imgfs.errors import ImgfsError, InvalidImage, NotFound, UsageError
from imgfs.image.image import Image
from imgfs.image.prepare import prepare
from imgfs.image.resolve import resolve
from imgfs.maintenance.gc import evict
from imgfs.oci.descriptor import Platform
from imgfs.oci.reference import parse_reference
from imgfs.store.store import Store
from imgfs.transport.connect import open_source
from imgfs.transport.source import Source
from tests.support import tarmake
from tests.support.mounted import Imgfs, Stored, documents, gzipped, plain, sha256, write_image, zstd
from tests.support.offerings import Warnings

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="no skopeo")
needs_podman = pytest.mark.skipif(
    shutil.which("podman") is None or os.geteuid() != 0, reason="no podman for root"
)

NOISE = random.Random(3).randbytes(1 << 20)
LOWER = tarmake.archive(
    tarmake.directory("etc"), tarmake.file("etc/name", b"lower"), tarmake.file("noise", NOISE)
)
UPPER = tarmake.archive(tarmake.file("etc/name", b"upper"), tarmake.whiteout("gone"))
CONTENTS = {"etc/name": b"upper", "noise": NOISE}


class World:
    """A directory with an image in a layout, and a store."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store(path / "store")
        self.layout = write_image(path / "layout", [gzipped(LOWER), plain(UPPER)], tag="v1")

    def open(self, text: str) -> Source:
        return open_source(parse_reference(text), open_store=lambda: self.store)

    def files(self, text: str) -> dict[str, bytes]:
        """The regular files of an image, read through everything."""
        with closing(self.open(text)) as source:
            resolved = resolve(text, source, self.store, Platform("linux", "amd64"))
            prepare(resolved, source, self.store, Warnings())
            with Image(resolved, source, self.store) as image:
                return {
                    image.tree.path(record.node.ino).decode(): b"".join(image.read(record.node.ino))
                    for record in image.tree.nodes()
                    if stat.S_ISREG(record.node.mode)
                }

    def error(self, text: str) -> str:
        with pytest.raises(ImgfsError) as raised:
            self.files(text)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def write(self, name: str, body: bytes) -> str:
        (self.path / name).write_bytes(body)
        return str(self.path / name)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("IMGFS_STORE", str(tmp_path / "store"))
    return World(tmp_path)


def tool(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def copied(*words: str) -> int:
    return main(["copy", *words])


def oci_archive(world: World) -> bytes:
    top = world.path / "layout"
    paths = sorted(path for path in top.rglob("*") if path.is_file())
    return tarmake.archive(*(tarmake.file(f"./{path.relative_to(top)}", path.read_bytes()) for path in paths))


def old_docker(*, layers: list[bytes] | None = None, listed: object = None, **more: object) -> bytes:
    """What `docker save` of 2016 to 2023 wrote: a directory for each layer, with links to those before."""
    made = documents([plain(LOWER), plain(UPPER)])
    entry = {
        "Config": "c.json",
        "RepoTags": ["app:v1"],
        "Layers": ["0a/layer.tar", "0b/layer.tar"],
        **more,
    }
    return tarmake.archive(
        tarmake.file("c.json", made.config),
        tarmake.directory("0a"),
        tarmake.file("0a/VERSION", b"1.0"),
        tarmake.file("0a/json", b"{}"),
        *(
            layers
            or [tarmake.symlink("0a/layer.tar", "../0c/layer.tar"), tarmake.file("0b/layer.tar", UPPER)]
        ),
        tarmake.file("0c/layer.tar", LOWER),
        tarmake.file("manifest.json", json.dumps([entry] if listed is None else listed).encode()),
        tarmake.file("repositories", b"{}"),
    )


def new_docker(world: World) -> bytes:
    """What `docker save` writes since version 25: an OCI layout, and a manifest.json that leads into it."""
    config = documents([gzipped(LOWER), plain(UPPER)]).config
    names = [f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}" for blob in (config, UPPER)]
    lower = f"blobs/sha256/{sha256(gzipped(LOWER).blob).removeprefix('sha256:')}"
    entry = {"Config": names[0], "RepoTags": ["app:v1"], "Layers": [lower, names[1]]}
    body = oci_archive(world)[: -len(tarmake.end())]
    return body + tarmake.file("manifest.json", json.dumps([entry]).encode()) + tarmake.end()


# -- read ----------------------------------------------------------------------------------------------------

PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": partial(gzip.compress, compresslevel=1, mtime=0),
    ".zst": partial(zstandard.compress, level=1),
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_oci_archive_is_read_in_place(world: World, packing: str) -> None:
    name = world.write(f"a.tar{packing}", PACKINGS[packing](oci_archive(world)))
    assert world.files(f"oci-archive:{name}:v1") == world.files(f"oci-archive:{name}") == CONTENTS
    assert "no tag 'v2'; there are: v1" in world.error(f"oci-archive:{name}:v2")


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_archive_of_docker_save_is_read_in_place(world: World, packing: str) -> None:
    name = world.write(f"a.tar{packing}", PACKINGS[packing](old_docker()))
    for tag in ("", ":app:v1", ":docker.io/library/app:v1", ":v1", ":@0"):
        with closing(world.open(f"docker-archive:{name}{tag}")) as source:
            named = source.resolve()
    assert world.files(f"docker-archive:{name}") == CONTENTS
    assert world.files(f"docker-archive:{name}@{named.digest}") == CONTENTS
    assert "there are: app:v1" in world.error(f"docker-archive:{name}:other")


def test_a_packed_archive_is_scanned_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    name = world.write("a.tar.gz", gzip.compress(old_docker(), 1, mtime=0))
    with closing(world.open(f"docker-archive:{name}")) as source:
        first = source.resolve()

    def fail(*_: object) -> None:
        raise AssertionError("scanned again")

    monkeypatch.setattr("imgfs.layer.scan.scan_unknown", fail)
    with closing(world.open(f"docker-archive:{name}")) as source:
        assert source.resolve() == first
    os.utime(name, ns=(1, 1))
    with closing(world.open(f"docker-archive:{name}")) as source, pytest.raises(AssertionError):
        source.resolve()


@pytest.mark.parametrize("packed", [gzipped(LOWER), zstd(LOWER)], ids=["gzip", "zstd"])
def test_layers_of_a_docker_archive_may_be_packed(world: World, packed: Stored) -> None:
    layers = [tarmake.file("0a/layer.tar", packed.blob), tarmake.hardlink("0b/layer.tar", "up.tar")]
    archive = old_docker(layers=[*layers, tarmake.file("up.tar", UPPER)])
    assert world.files(f"docker-archive:{world.write('a.tar', archive)}") == CONTENTS


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_member_that_is_there_twice_and_the_same_is_one(world: World, packing: str) -> None:
    """As go-containerregistry writes the config of an image that has two names: crane, ko, kaniko."""
    config = tarmake.file("sha256:c", documents([plain(LOWER)]).config)
    entries = [{"Config": "sha256:c", "RepoTags": [f"app:v{n}"], "Layers": ["l"]} for n in (1, 2)]
    listed = tarmake.file("manifest.json", json.dumps(entries).encode())
    archive = tarmake.archive(config, tarmake.file("l", LOWER), config, tarmake.file("l", LOWER), listed)
    name = f"docker-archive:{world.write('twice.tar', PACKINGS[packing](archive))}"
    assert (
        world.files(f"{name}:app:v1") == world.files(f"{name}:app:v2") == {**CONTENTS, "etc/name": b"lower"}
    )


def test_dockers_own_manifest_is_kept(world: World) -> None:
    name = world.write("a.tar", new_docker(world))
    with closing(world.open(world.layout)) as layout, closing(world.open(f"docker-archive:{name}")) as source:
        assert source.resolve().digest == layout.resolve().digest
    assert world.files(f"docker-archive:{name}:app:v1") == CONTENTS


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_bare_tar_is_an_image_of_one_layer(world: World, packing: str) -> None:
    name = world.write(f"root.tar{packing}", PACKINGS[packing](LOWER))
    assert world.files(f"tar:{name}") == {"etc/name": b"lower", "noise": NOISE}


def test_what_is_no_archive_is_named_once(world: World, tmp_path: Path) -> None:
    with closing(world.open(f"tar:{tmp_path}")) as source, pytest.raises(InvalidImage) as caught:
        source.resolve()
    assert str(caught.value) == f"{tmp_path}: not a regular file"


# -- read: what other tools have written ---------------------------------------------------------------------


@needs_skopeo
@pytest.mark.parametrize("target", ["oci-archive:a.tar:v1", "docker-archive:a.tar:h.io/app:v1", "dir:d"])
def test_what_skopeo_writes_is_read(world: World, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.path)
    tool("skopeo", "copy", "--quiet", "--preserve-digests" if "dir" in target else "--quiet",
         world.layout, target)  # fmt: skip
    assert world.files(target) == CONTENTS


@needs_podman
def test_podman_loads_what_is_written_and_what_it_saves_is_read(world: World, tmp_path: Path) -> None:
    assert copied(world.layout, f"docker-archive:{tmp_path / 'w.tar'}:h.io/app:v1") == 0
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # podman takes no runroot of over 50 characters
        place = ["--root", f"{short}/p", "--runroot", f"{short}/r", "--storage-driver", "vfs"]
        podman = partial(tool, "podman", *place)
        assert "h.io/app:v1" in podman("load", "-i", tmp_path / "w.tar")
        for form in ("docker-archive", "oci-archive"):
            podman("save", "-q", "--format", form, "-o", tmp_path / form, "h.io/app:v1")
            assert world.files(f"{form}:{tmp_path / form}") == CONTENTS


@needs_podman
def test_podmans_own_store_is_read_where_it_lies(world: World) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        store = f"containers-storage:[vfs@{short}/p+{short}/r]"
        tool("skopeo", "copy", "--quiet", world.layout, f"{store}h.io/app:v1")
        for name in (
            "h.io/app:v1",
            json.loads(tool("skopeo", "inspect", "--raw", f"{store}h.io/app:v1"))["config"]["digest"][7:19],
        ):
            assert world.files(f"{store}{name}") == CONTENTS
        assert copied(f"{store}h.io/app:v1", f"oci-archive:{world.path / 'copy.tar'}") == 0
        assert world.files(f"oci-archive:{world.path / 'copy.tar'}") == CONTENTS
        assert "there are: h.io/app:v1" in world.error(f"{store}other")
        [*_, noise] = Path(short).rglob("noise")
        noise.write_bytes(NOISE[:-1] + b"?")
        evict(world.store.layers())
        assert "expected" in world.error(f"{store}h.io/app:v1")


@needs_skopeo
def test_a_users_store_of_podmans_is_read_as_podman_unshare_has_it(nobody: Imgfs, tmp_path: Path) -> None:
    mine = tarmake.file("mine", b"secret", uid=0, gid=0, mode=0o600)
    layout = write_image(tmp_path / "layout", [gzipped(tarmake.archive(mine))], tag="v1")
    root = nobody.directory / "home/.local/share/containers/storage"
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        tool("skopeo", "copy", "--quiet", layout, f"containers-storage:[vfs@{root}+{short}/r]h.io/app:v1")
    tool(
        "chown",
        "-R",
        f"{nobody.user.uid}:{nobody.user.gid}" if nobody.user else "",
        nobody.directory / "home",
    )
    del nobody.environment["IMGFS_STORE"]
    nobody.environment["_CONTAINERS_ROOTLESS_UID"] = str(nobody.user.uid if nobody.user else 0)
    words = nobody.command("cat", "containers-storage:h.io/app:v1:/mine")
    ran = nobody.program("unshare", "--user", "--map-root-user", *words)
    assert (ran.code, ran.out, ran.err) == (0, b"secret", "")
    conf = nobody.directory / "home/.config/containers/storage.conf"
    conf.parent.mkdir(parents=True)
    (root / "overlay-images").mkdir()  # of another driver, tried before
    (root / "overlay-images/images.json").write_text("[]")
    assert "no image 'h.io/app:v1'" in nobody.program("unshare", "--user", "--map-root-user", *words).err
    conf.write_text('[storage]\ndriver = "vfs"\n')
    assert nobody.program("unshare", "--user", "--map-root-user", *words).out == b"secret"
    assert (nobody.directory / "home/.cache/imgfs/version").exists()


# -- written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_a_written_archive_is_read_again(
    world: World, transport: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = f"{transport}:{world.path / 'w.tar'}:app:v1"
    assert copied(world.layout, target) == copied(world.layout, target) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(target)
    assert world.files(target) == world.files(said) == CONTENTS
    assert [path.name for path in world.path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_an_archive_is_written_behind_a_link_which_stays(world: World, transport: str) -> None:
    """/dev/stdout is one, which may lead to a pipe."""
    link = world.path / "link"
    link.symlink_to("w.tar")
    assert copied(world.layout, f"{transport}:{link}:app:v1") == 0
    assert link.is_symlink()
    assert world.files(f"{transport}:{world.path / 'w.tar'}:app:v1") == CONTENTS
    link.unlink()
    reader, writer = os.pipe()
    link.symlink_to(f"/proc/self/fd/{writer}")
    assert copied(world.layout, f"{transport}:{link}:app:v1") == 2
    assert link.is_symlink()
    os.close(reader)
    os.close(writer)


@needs_skopeo
def test_skopeo_reads_what_is_written(world: World) -> None:
    for transport in ("oci-archive", "docker-archive"):
        target = f"{transport}:{world.path / transport}:app:v1"
        assert copied(world.layout, target) == 0
        tool("skopeo", "copy", "--quiet", target, f"oci:{world.path / 'back'}:{transport}")
        assert world.files(f"oci:{world.path / 'back'}:{transport}") == CONTENTS


def test_every_transport_is_a_source_of_copies(world: World) -> None:
    names = [
        f"oci-archive:{world.write('o.tar', oci_archive(world))}",
        f"docker-archive:{world.write('old.tar.gz', gzip.compress(old_docker(), 1))}",
        f"docker-archive:{world.write('new.tar', new_docker(world))}",
        f"tar:{world.write('root.tar', LOWER)}",
    ]
    for number, name in enumerate(names):
        target = f"oci:{world.path / 'copies'}:{number}"
        assert copied(name, target) == 0
        assert world.files(target) == world.files(name)


def test_a_failed_copy_leaves_the_archive_as_it_was(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    digest = sha256(gzipped(LOWER).blob).removeprefix("sha256:")
    blob = world.path / "layout/blobs/sha256" / digest
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    for transport in ("oci-archive", "docker-archive"):
        world.write("w.tar", b"what was here")
        assert copied(world.layout, f"{transport}:{world.path / 'w.tar'}") == 1
        assert "expected" in capsys.readouterr().err
        assert (world.path / "w.tar").read_bytes() == b"what was here"
    assert [path.name for path in world.path.iterdir() if path.name.startswith(".")] == []


def test_layers_that_are_not_the_configs_are_not_written_for_docker(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    lies = write_image(world.path / "lies", [gzipped(LOWER)._replace(diff_id=sha256(b"other"))])
    assert copied(lies, f"docker-archive:{world.path / 'w.tar'}") == 1
    assert "DiffID" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["dir:d", "tar:t.tar", "oci-archive:/dev/null"])
def test_what_cannot_be_written_is_refused(
    world: World, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert copied(world.layout, target) == 2
    assert target.partition(":")[2] in capsys.readouterr().err


# -- hostile -------------------------------------------------------------------------------------------------

CONFIG = tarmake.file("c.json", documents([plain(LOWER)]).config)
L = partial(tarmake.file, "l")


def listing(**fields: object) -> bytes:
    entry = {"Config": "c.json", "RepoTags": None, "Layers": ["l"], **fields}
    return tarmake.file("manifest.json", json.dumps([entry]).encode())


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (b"", "no manifest.json"),
        (b"no tar" * 200, "tar offset 0"),
        (tarmake.archive(tarmake.file("x", b"")), "no manifest.json"),
        (tarmake.archive(CONFIG, listing()), "member l: there is none"),
        (tarmake.archive(CONFIG, listing(Layers=["../../etc/passwd"])), "leads out of the archive"),
        (tarmake.archive(CONFIG, listing(), tarmake.symlink("l", "/etc/passwd")), "leads out of"),
        (tarmake.archive(CONFIG, listing(), tarmake.symlink("l", "../l")), "leads out of the archive"),
        (tarmake.archive(CONFIG, listing(), tarmake.symlink("l", "l")), "loop of links"),
        (tarmake.archive(CONFIG, listing(), tarmake.fifo("l")), "not a regular file"),
        (tarmake.archive(CONFIG, listing(), *map(L, (LOWER, UPPER))), "two of this name"),
        (tarmake.archive(CONFIG, listing(), *map(L, (LOWER, UPPER, LOWER))), "two of this name"),
        (
            tarmake.archive(CONFIG, listing(), L(LOWER), L(LOWER[:-1024] + bytes(1023) + b"?")),
            "two of this name",
        ),
        (tarmake.archive(CONFIG, listing(), L(LOWER), tarmake.hardlink("l", "l")), "two of this name"),
        (
            tarmake.archive(CONFIG, listing(), tarmake.sparse_old("l", 2048, [(1024, b"a" * 512)])),
            "sparse",
        ),
        (tarmake.archive(CONFIG, listing(), tarmake.file("l", UPPER)), "layer blob: expected"),
        (tarmake.archive(CONFIG, listing(Layers=["l", "l"]), tarmake.file("l", LOWER)), "2 layers"),
        (tarmake.archive(CONFIG, listing(Layers=3), tarmake.file("l", LOWER)), "layers"),
        (tarmake.archive(CONFIG, listing(layers=["l"])), "ambiguous"),
        (tarmake.archive(CONFIG, listing(Config="/../c.json")), "leads out of the archive"),
        (tarmake.archive(tarmake.file("manifest.json", b"[]")), "not a list of"),
        (tarmake.archive(tarmake.file("manifest.json", b"[1]")), "[0]"),
        (tarmake.archive(tarmake.file("manifest.json", b"{")), "manifest.json"),
        ((CONFIG + tarmake.file("l", LOWER))[:-700], "truncated"),
        (gzip.compress(tarmake.archive(CONFIG, listing()))[:-9], "ends in mid-member"),
    ],
)
def test_a_hostile_archive_is_one_line(world: World, archive: bytes, says: str) -> None:
    name = world.write("h.tar", archive)
    assert says in world.error(f"docker-archive:{name}")
    assert main(["ls", "--store", str(world.path / "store"), f"docker-archive:{name}"]) in (1, 2)


def test_what_another_transport_reads_is_told(world: World) -> None:
    """A person tries one of the two archives, or one of the two directories."""
    old, layout = world.write("old.tar", old_docker()), world.write("layout.tar", oci_archive(world))
    (world.path / "dir").mkdir()
    (world.path / "dir/manifest.json").write_bytes(documents([plain(LOWER)]).manifest)
    oldest = world.write("oldest.tar", tarmake.archive(tarmake.file("repositories", b"{}")))
    for given, meant in (
        (f"oci-archive:{old}", f"docker-archive:{old}"),
        (f"docker-archive:{layout}", f"oci-archive:{layout}"),
        (f"oci:{world.path / 'dir'}", f"dir:{world.path / 'dir'}"),
        (f"dir:{world.path / 'layout'}", f"oci:{world.path / 'layout'}"),
        (f"docker-archive:{oldest}", "load and save it by a newer one"),
    ):
        assert world.error(given).endswith(meant)


def test_a_file_that_is_not_there_or_none_is_told(world: World) -> None:
    for transport in ("oci-archive", "docker-archive", "tar"):
        with pytest.raises(UsageError, match="no such file"):
            world.files(f"{transport}:{world.path / 'nothing'}")
    os.mkfifo(world.path / "fifo")
    assert "not a regular file" in world.error(f"tar:{world.path / 'fifo'}")
    with pytest.raises(UsageError, match="not an image directory"):
        world.files(f"dir:{world.path}")
    name = world.write("root.tar", LOWER)
    with pytest.raises(NotFound):
        world.files(f"tar:{name}@{sha256(b'other')}")
