"""What is asked of a registry in the life of an image on a machine: each thing once, and nothing known.

The registry wants tokens and sends who has one to another host for the blobs, as the great ones do.
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from imgfs.oci.published import ARTIFACT_TYPE, TREE
from tests.support import tarmake as tar
from tests.support.fault_server import Fault, FaultServer, Seen
from tests.support.mounted import Imgfs, Stored, gzipped, serve, zstd
from tests.support.patience import allowed

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="drops the kernel's caches"),
]

CHANCE = random.Random(11)


@cache
def large_files() -> dict[str, bytes]:
    return {f"file{number}": CHANCE.randbytes(3 << 20) for number in range(4)}


SMALL = {"small": b"small " * 1000}


@cache
def all_files() -> dict[str, bytes]:
    return {**large_files(), **SMALL}


def tar_of(files: dict[str, bytes]) -> bytes:
    return tar.archive(*(tar.file(name, body) for name, body in files.items()))


@cache
def image_layers() -> dict[str, Stored]:
    return {"large": zstd(tar_of(large_files()), 1 << 20), "small": gzipped(tar_of(SMALL))}


# "+": with Authorization
UNKNOWN_TAG = ["GET tag", "GET token", "GET tag +"]  # the document itself: it is not here in any case
KNOWN_TAG = ["HEAD tag", "GET token", "HEAD tag +"]


class World(NamedTuple):
    """A registry, where it sends those who want blobs, an image, and the command."""

    imgfs: Imgfs
    registry: FaultServer
    cdn: FaultServer
    image: str
    pinned: str
    words: dict[str, str]

    def asked(self) -> tuple[list[str], list[str]]:
        """What was asked of either since this was last asked, in words."""
        both = [[self._told(one) for one in server.log] for server in (self.registry, self.cdn)]
        self.registry.log.clear()
        self.cdn.log.clear()
        return both[0], both[1]

    def _told(self, one: Seen) -> str:
        name = "token" if one.path.startswith("/token") else one.path.removeprefix("/v2/app/")
        for word, meaning in self.words.items():
            name = name.replace(word, meaning)
        trusted = " +" if "authorization" in one.headers else ""
        piece = one.headers.get("range", "")
        return f"{one.method} {name.partition('?')[0]}{f' {piece}' if piece else ''}{trusted}"


@pytest.fixture
def world(imgfs: Imgfs) -> Iterator[World]:
    with FaultServer() as registry, FaultServer() as cdn:
        image = serve(registry, "app", "v1", list(image_layers().values()))
        [manifest] = {name for _, name in registry.manifests if name.startswith("sha256:")}
        registry.token_server, registry.blob_host = registry.url, cdn.host
        cdn.blobs, cdn.signatures = registry.blobs, {registry.signature}
        layers = {str(layer.descriptor()["digest"]): name for name, layer in image_layers().items()}
        words = {
            "manifests/v1": "tag",
            f"manifests/{manifest}": "manifest",
            f"referrers/{manifest}": "referrers",
        }
        words[f"manifests/{manifest.replace(':', '-')}"] = "referrers-tag"
        words |= {f"blobs/{digest}": layers.get(digest, "config") for digest in registry.blobs}
        yield World(imgfs, registry, cdn, image, image.replace(":v1", f"@{manifest}"), words)


def whole_image(at: Path) -> dict[str, bytes]:
    """Every byte of a mount, by several readers."""
    with ThreadPoolExecutor(len(all_files())) as readers:
        return dict(
            zip(all_files(), readers.map(lambda name: (at / name).read_bytes(), all_files()), strict=True)
        )


def test_a_life_of_mounts_asks_for_each_thing_once(world: World) -> None:
    imgfs = world.imgfs
    at = imgfs.mount(world.image)
    registry, cdn = world.asked()
    assert registry[:3] == UNKNOWN_TAG
    documents, layers = (
        ["GET config +", "GET referrers +", "GET referrers-tag +"],
        ["GET large +", "GET small +"],
    )
    assert sorted(registry[3:]) == sorted([*documents, *layers])  # layers whole, the large one, too
    assert sorted(cdn) == ["GET config", "GET large", "GET small"]
    assert whole_image(at) == all_files()
    imgfs.umount(at)
    assert world.asked() == ([], [])

    imgfs.mount(world.image)  # again, by its tag
    assert whole_image(at) == all_files()
    imgfs.umount(at)
    assert world.asked() == (KNOWN_TAG, [])

    imgfs.mount(world.pinned)  # by its digest
    assert whole_image(at) == all_files()
    imgfs.umount(at)
    assert world.asked() == ([], [])

    assert "nothing was missing" in imgfs.run("pull", world.image).err
    assert world.asked() == (KNOWN_TAG, [])

    ran = imgfs.run("mount", "--offline", world.image, at)
    assert ran.code == 0, ran
    imgfs.watch(at)
    assert whole_image(at) == all_files()
    imgfs.umount(at)
    assert world.asked() == ([], [])


def test_a_first_file_is_five_round_trips_away(world: World) -> None:
    """Connecting is one of them. Nothing is answered before all that is to be asked beside it is asked."""
    imgfs, registry = world.imgfs, world.registry
    registry.blob_host = None
    artifact, tree = published(world)
    [config] = [name for name, meaning in world.words.items() if meaning == "config"]
    world.asked()
    meetings = [
        together(registry, "/referrers/", "manifests/sha256-", config),
        together(registry, artifact, tree),
    ]
    at = imgfs.mount(world.image)
    time.sleep(allowed(0.2))  # the daemon's threads connect
    connected = registry.connections
    assert (at / "small").read_bytes() == SMALL["small"]
    asked, _ = world.asked()
    assert asked[:3] == UNKNOWN_TAG
    assert sorted(asked[3:6]) == ["GET config +", "GET referrers +", "GET referrers-tag +"]
    assert sorted(asked[6:]) == ["GET artifact +", "GET small +", "GET tree +"]
    assert [len(met) for met in meetings] == [3, 2]
    assert asked[-1] == "GET small +"  # by the daemon, with its caller's token
    assert registry.connections == connected  # which has connected while its caller asked
    imgfs.umount(at)


def test_a_daemon_has_connected_to_where_blobs_are_redirected_before_the_first_read(world: World) -> None:
    published(world)
    at = world.imgfs.mount(world.image)
    time.sleep(allowed(0.2))
    connected = world.registry.connections, world.cdn.connections
    assert (at / "small").read_bytes() == SMALL["small"]
    assert (world.registry.connections, world.cdn.connections) == connected
    world.imgfs.umount(at)


def published(world: World) -> tuple[str, str]:
    """Publish the image's index and forget all that is here: the artifact's digest, and its tree's."""
    world.imgfs.ok("index", "push", "--soci", "none", world.image)
    world.imgfs.ok("store", "rm", "--all", "--force")
    manifests = {name: json.loads(body) for (_, name), (_, body) in world.registry.manifests.items()}
    [(artifact, tree)] = [
        (name, blob["digest"])
        for name, fields in manifests.items()
        if name.startswith("sha256:") and fields.get("artifactType") == ARTIFACT_TYPE
        for blob in fields["layers"]
        if blob["mediaType"] == TREE
    ]
    world.words.update({f"manifests/{artifact}": "artifact", f"blobs/{tree}": "tree"})
    return artifact, tree


def together(registry: FaultServer, *parts: str) -> list[int]:
    """Have requests with these parts in their paths answered once all of them have come: a list of those."""
    barrier, met = threading.Barrier(len(parts)), []
    for part in parts:
        registry.inject(Fault(meanwhile=lambda: met.append(barrier.wait(allowed(20)))), on=part)
    return met


def test_a_pull_asks_for_each_thing_once(world: World) -> None:
    world.imgfs.run("pull", world.image)
    registry, cdn = world.asked()
    assert registry[:3] == UNKNOWN_TAG
    assert [count for what, count in Counter(registry).items() if not what.startswith("GET large")] == (
        [1] * len({what for what in registry if not what.startswith("GET large")})
    )
    size = len(image_layers()["large"].blob)
    assert covered(piece_of(what) or range(size) for what in cdn if what.startswith("GET large")) == size


def test_readers_that_come_at_once_have_one_of_them_ask_who_may_and_no_byte_twice(world: World) -> None:
    imgfs = world.imgfs
    at = imgfs.mount(world.image)
    imgfs.evict(world.image)
    world.asked()
    assert whole_image(at) == all_files()
    registry, cdn = world.asked()
    strangers = [what for what in registry if not what.endswith(" +")]
    assert len(strangers) <= 2  # who has no token yet asks without one, once
    assert strangers.count("GET token") <= 1
    large = [piece_of(what) for what in cdn if what.startswith("GET large")]
    assert covered(piece for piece in large if piece) <= len(image_layers()["large"].blob)
    assert len([what for what in cdn if what.startswith("GET small")]) == 1
    assert whole_image(at) == all_files()
    assert world.asked() == ([], [])
    imgfs.umount(at)


def piece_of(what: str) -> range | None:
    """The bytes that a request in words is about."""
    found = re.search("bytes=([0-9]+)-([0-9]+)", what)
    return range(int(found[1]), int(found[2]) + 1) if found else None


def covered(pieces: Iterable[range]) -> int:
    """How many bytes the pieces are, none of which may be in two of them."""
    found = sorted(pieces, key=lambda piece: piece.start)
    assert all(one.stop <= other.start for one, other in pairwise(found)), found
    return sum(map(len, found))
