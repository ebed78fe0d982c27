"""What others publish of an image, damaged or lying: done without, or refused, not believed for good."""

from __future__ import annotations

import gzip
import random
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imgfs.content.requests import requests_for
from imgfs.content.scheduler import Priority
from imgfs.content.stats import Cause
from imgfs.errors import ImgfsError, IntegrityError, InvalidImage
from imgfs.image.image import Image
from imgfs.image.verify import Verifier
from imgfs.layer.artifact import unpack
from imgfs.layer.schema import SCHEMA as INDEX_SCHEMA
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.published import unpacked_size
from imgfs.store.store import Store
from imgfs.tree.database import SCHEMA as TREE_SCHEMA
from imgfs.tree.reader import Tree
from tests.support import tarmake as tar
from tests.support.blobs import prose
from tests.support.fake_source import FakeSource
from tests.support.mounted import Stored, gzipped, plain
from tests.support.offerings import Offering, contents, image_of, offering, pinned, prepared, repacked
from tests.support.tocmake import chunked_layer, estargz_layer

FILES = {
    b"etc/one": b"the first",
    b"noise": random.Random(2).randbytes(300_000),
    **{f"lib/{number}".encode(): prose(25_000, number) for number in range(90)},
    b"two": b"the other",
}
TAR = tar.archive(
    *(
        tar.file(name, body, xattrs={b"user.x": b"y"} if name == b"two" else {})
        for name, body in FILES.items()
    ),
    tar.symlink("link", "two"),
    tar.hardlink("hard", "etc/one"),
)
ALL = {**FILES, b"hard": FILES[b"etc/one"]}
LAYER = gzipped(TAR, 1)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Offering:
    """An image of one layer, with all that there is to publish of it."""
    assert len(LAYER.blob) > 256 << 10, "a smaller one is streamed without asking"
    return offering(tmp_path_factory.mktemp("published") / "theirs", [LAYER])


@pytest.fixture(scope="module")
def ztocs(published: Offering) -> list[bytes]:
    """The zTOC of its layer."""
    return published.ztocs()


def copy_of(made: Offering) -> Offering:
    """One that can be damaged."""
    source = FakeSource(made.source.root)
    source.bodies = dict(made.source.bodies)
    return replace(made, source=source)


class Damage(NamedTuple):
    """What is done to bytes: at a place, a hundred thousandth of the whole, some are replaced by others."""

    place: int
    removed: int
    put: bytes

    def done_to(self, body: bytes) -> bytes:
        at = len(body) * self.place // 100_000
        return body[:at] + self.put + body[at + self.removed :]


DAMAGE = st.builds(Damage, st.integers(0, 100_000), st.integers(0, 9), st.binary(max_size=9))


def outcome(source: FakeSource, directory: Path) -> dict[bytes, bytes] | ImgfsError:
    """What a mount would show, or why there is none."""
    store = Store(directory / "store")
    try:
        resolved, _ = prepared(source, store)
        with Image(resolved, source, store) as image:
            return dict(contents(image))
    except (InvalidImage, IntegrityError) as error:
        return error


# -- damage: a digest says that something is wrong -----------------------------------------------------------


@settings(max_examples=30)
@example(kind="windows", damage=Damage(677, 4, bytes(4)))  # a window all the same, of other bytes
@given(kind=st.sampled_from(["lean", "full", "tree", "windows", "artifact"]), damage=DAMAGE)
def test_damage_to_what_is_published_never_shows_other_bytes(
    published: Offering, kind: str, damage: Damage
) -> None:
    made = copy_of(published)
    made.refer()
    layer = made.published.layers[made.layers[0].digest]
    assert made.referrer
    victims = {"lean": layer.lean, "full": layer.full, "tree": made.published.tree, "windows": layer.windows}
    victim = made.referrer if kind == "artifact" else victims[kind]
    assert victim
    damaged = damage.done_to(made.source.bodies[victim.digest])
    made.source.bodies[victim.digest] = (damaged + bytes(victim.size))[: victim.size]
    with tempfile.TemporaryDirectory() as directory:
        found = outcome(made.source, Path(directory))
    assert isinstance(found, IntegrityError) if isinstance(found, Exception) else found == ALL


TOCS = {
    "estargz": lambda: estargz_layer(TAR, chunk=1 << 20),
    "estargz, shared streams": lambda: estargz_layer(TAR, shared=60_000),
    "zstd:chunked": lambda: chunked_layer(TAR),
    "zstd:chunked, surplus": lambda: chunked_layer(TAR, surplus=True),
}


@pytest.fixture(scope="module", params=TOCS)
def tabled(request: pytest.FixtureRequest) -> FakeSource:
    """An image of a layer with a table of contents."""
    made = TOCS[request.param]()
    flat = gzip.decompress(made.blob) if "estargz" in request.param else TAR
    layer = made.layer
    source = FakeSource()
    stored = Stored(made.blob, str(Digest.of(flat)), layer.media_type, annotations=layer.annotations)
    image_of(source, [stored])
    return source


@settings(max_examples=25)
@given(damage=DAMAGE, late=st.booleans())
def test_damage_to_a_layer_with_a_table_never_shows_other_bytes(
    tabled: FakeSource, damage: Damage, late: bool
) -> None:
    """Anywhere, or, `late`, in its last part, where the table is."""
    source = FakeSource(tabled.root)
    source.bodies = dict(tabled.bodies)
    digest, body = max(source.bodies.items(), key=lambda pair: len(pair[1]))
    kept = len(body) - 2000 if late else 0
    source.bodies[digest] = (body[:kept] + damage.done_to(body[kept:]) + bytes(9))[: len(body)]
    with tempfile.TemporaryDirectory() as directory:
        found = outcome(source, Path(directory))
    assert isinstance(found, ImgfsError) or found == ALL


@settings(max_examples=25)
@given(damage=DAMAGE)
def test_damage_to_a_ztoc_is_done_without(published: Offering, ztocs: list[bytes], damage: Damage) -> None:
    made = copy_of(published)
    (ztoc,) = made.refer_soci(ztocs)
    body = made.source.bodies[ztoc.digest]
    made.source.bodies[ztoc.digest] = (damage.done_to(body) + bytes(9))[: len(body)]
    with tempfile.TemporaryDirectory() as directory:
        assert outcome(made.source, Path(directory)) == ALL


# -- lies: the digests are right -----------------------------------------------------------------------------

NASTY = st.one_of(
    st.sampled_from(
        [-1, 0, 1, 7, 8, 512, 1 << 20, 1 << 31, 1 << 32, (1 << 62) + 1, (1 << 63) - 1, -(1 << 63)]
    ),
    st.integers(0, 400_000),
    st.sampled_from([None, 1.5, "text", "", b"", b"x" * 7, b"\0" * 24, b"\xff" * 24, b"\xff" * 48, b"../x"]),
)


class Lie(NamedTuple):
    """A column of a table in which every `every`-th row gets another value, or `added` to what it has."""

    column: tuple[str, str]
    value: Any
    every: int
    added: bool

    def told_in(self, path: Path) -> None:
        table, column = self.column
        new = f"{column} + ?" if self.added else "?"
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            query = f"UPDATE OR REPLACE {table} SET {column} = {new} WHERE {column} % ? = 0 OR ? = 1"
            db.execute(query, (self.value, self.every, self.every))


def columns_of(schema: str) -> list[tuple[str, str]]:
    """(table, column) of all tables."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(schema)
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [
            (table, name)
            for table in tables
            for (name,) in db.execute("SELECT name FROM pragma_table_info(?)", (table,))
        ]


def lies(schema: str) -> st.SearchStrategy[Lie]:
    return st.builds(
        Lie, st.sampled_from(columns_of(schema)), NASTY, st.sampled_from([1, 2, 7]), st.booleans()
    )


def glance(image: Image) -> None:
    """Do with an image what the kernel would, as far as nobody would wait for it."""
    seen: set[int] = set()
    left = [1]
    while left and len(seen) < 200:
        ino = left.pop()
        if ino not in seen:
            seen.add(ino)
            left += _glance_at(ino, image)


def _glance_at(ino: int, image: Image) -> list[int]:
    tree, found = image.tree, []
    try:
        node = tree.node(ino)
        if node is None:
            return []
        tree.xattrs(ino)
        found = [child.ino for _, (_, _, child) in zip(range(100), tree.children(ino), strict=False)]
        layer, extents = tree.extents(ino)
        for offset in (0, max(0, node.size - 4096)):
            length = min(node.size - offset, 1 << 17)
            if length > 0 and node.mode & 0o170000 == 0o100000:
                image.content.cached(layer, extents, offset, length)
                assert len(image.content.read(layer, extents, offset, length)) == length
        tree.path(ino)
        tree.target(ino)
    except (ImgfsError, OSError):
        pass
    return found


def unpacked(descriptor: Descriptor, made: Offering, directory: Path) -> Path:
    """A published file as it is used."""
    path = directory / f"unpacked-{descriptor.digest.short}"
    unpack([made.source.bodies[descriptor.digest]], path, unpacked_size(descriptor, 1 << 30))
    return path


def told(made: Offering, directory: Path) -> Offering:
    """Have a mount use what is published, then have all of it fetched and proved."""
    store = Store(directory / "store")
    try:
        resolved, _ = prepared(made.source, store)
        with Image(resolved, made.source, store) as image:
            glance(image)
            for content in image.content.layers:
                for future in content.fetch_in_background(
                    requests_for(content.missing(), content.table), Priority.BACKGROUND, Cause.FILL
                ):
                    future.exception(30)
            Verifier(image, store).verify_complete()
            glance(image)
    except ImgfsError:
        pass
    resolved, _ = prepared(made.source, store, pinned(made.manifest))
    with Image(resolved, made.source, store) as image:
        assert dict(contents(image)) == ALL, "whoever has a digest is shown what it is of"
    return made


@settings(max_examples=60)
@given(
    lie=lies(INDEX_SCHEMA),
    kinds=st.sampled_from([("lean",), ("lean", "full"), ("full",)]),
    tree=st.booleans(),
)
def test_an_index_that_lies_is_never_another_exception_and_never_believed_for_good(
    published: Offering, lie: Lie, kinds: tuple[str, ...], tree: bool
) -> None:
    made = copy_of(published)
    layer = made.published.layers[made.layers[0].digest]
    with tempfile.TemporaryDirectory() as directory:
        for kind in kinds:
            descriptor = getattr(layer, kind)
            path = unpacked(descriptor, made, Path(directory))
            try:
                lie.told_in(path)
            except sqlite3.Error:
                return
            layer = layer._replace(**{kind: repacked(descriptor, path, made.source)})
        made.published = replace(made.published, layers={made.layers[0].digest: layer})
        if not tree:
            made.published = replace(made.published, tree=None)
        made.refer()
        told(made, Path(directory))


@settings(max_examples=60)
@given(lie=lies(TREE_SCHEMA))
def test_a_tree_that_lies_is_never_another_exception_and_never_believed_for_good(
    published: Offering, lie: Lie
) -> None:
    made = copy_of(published)
    tree = made.published.tree
    assert tree
    with tempfile.TemporaryDirectory() as directory:
        path = unpacked(tree, made, Path(directory))
        try:
            lie.told_in(path)
        except sqlite3.Error:
            return
        made.published = replace(made.published, tree=repacked(tree, path, made.source))
        made.refer()
        told(made, Path(directory))


@settings(max_examples=30)
@given(damage=DAMAGE)
def test_a_ztoc_that_lies_is_never_another_exception_and_never_believed_for_good(
    published: Offering, ztocs: list[bytes], damage: Damage
) -> None:
    made = copy_of(published)
    made.refer_soci([damage.done_to(body) for body in ztocs])
    with tempfile.TemporaryDirectory() as directory:
        told(made, Path(directory))


@settings(max_examples=30)
@given(kind=st.sampled_from(["artifact", "soci"]), damages=st.lists(DAMAGE, min_size=1, max_size=3))
def test_a_document_that_lies_is_never_another_exception_and_never_believed_for_good(
    published: Offering, ztocs: list[bytes], kind: str, damages: list[Damage]
) -> None:
    made = copy_of(published)
    if kind == "soci":
        made.refer_soci(ztocs)
    else:
        made.refer()
    assert made.referrer
    body = made.source.bodies[made.referrer.digest]
    for damage in damages:
        body = damage.done_to(body)
    made.source.bodies[made.referrer.digest] = body
    with tempfile.TemporaryDirectory() as directory:
        told(made, Path(directory))


def test_a_tree_merged_from_somebodys_word_is_somebodys_word(
    published: Offering, ztocs: list[bytes], tmp_path: Path
) -> None:
    made = copy_of(published)
    made.refer_soci(ztocs)
    store = Store(tmp_path / "store")
    resolved, said = prepared(made.source, store)
    assert said.streamed == set()
    path = store.tree(resolved.tree)
    assert path
    with Tree(path) as tree:
        assert tree.origin == "registry.example/app"
    _, said = prepared(made.source, store, pinned(made.manifest))
    assert said.streamed == {made.layers[0].digest}
    path = store.tree(resolved.tree)
    assert path
    with Tree(path) as tree:
        assert tree.origin == ""


class _Together(FakeSource):
    """Another source, which sends some blobs only once all of them are asked for."""

    def __init__(self, other: FakeSource, blobs: set[Digest]) -> None:
        super().__init__(other.root)
        self.bodies, self.referring = other.bodies, other.referring
        self._blobs, self._asked = blobs, threading.Barrier(len(blobs))

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        if descriptor.digest in self._blobs:
            self._asked.wait(10)
        return super().blob(descriptor, start, end)


def test_the_indexes_of_an_images_layers_are_asked_for_at_once(tmp_path: Path) -> None:
    noise = random.Random(3)
    tars = [tar.archive(tar.file(f"{number}", noise.randbytes(100_000))) for number in range(6)]
    made = offering(tmp_path / "theirs", [gzipped(body) for body in tars])
    apart = {
        layer: each._replace(lean=replace(each.lean, data=None))
        for layer, each in made.published.layers.items()
    }
    made.refer(replace(made.published, layers=apart))
    source = _Together(made.source, {each.lean.digest for each in apart.values()})
    _, told = prepared(source, Store(tmp_path / "ours"))
    assert (told.warned, told.streamed) == ([], set())


def test_a_tree_of_another_number_of_layers_is_done_without(published: Offering, tmp_path: Path) -> None:
    made = copy_of(published)
    other = offering(tmp_path / "other", [LAYER, plain(tar.archive(tar.file("more")))])
    assert other.published.tree
    made.source.bodies |= other.source.bodies
    made.published = replace(made.published, tree=other.published.tree)
    made.refer()
    resolved, said = prepared(made.source, Store(tmp_path / "store"))
    assert any("the published tree is of 2 layers, not 1" in text for text in said.warned)
    with Image(resolved, made.source, Store(tmp_path / "store")) as image:
        assert dict(contents(image)) == ALL
