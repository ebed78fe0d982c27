"""Who vouches for what: a lie of one registry, or of one image, is nothing to others that share a layer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from imgfs.content.profile import AccessProfile, FlatRange, ProfileLayer
from imgfs.errors import IntegrityError, InvalidImage, StoreError
from imgfs.image.image import Image
from imgfs.image.import_index import import_ztoc
from imgfs.image.profiles import profile_for
from imgfs.image.verify import Verifier
from imgfs.layer.entry import Checkpoint, Codec, Span
from imgfs.layer.flat_digests import add_flat_digests
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.soci.ztoc_writer import build_ztoc, members
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_MANIFEST
from imgfs.oci.policy import Policy
from imgfs.oci.published import NAME_OF, PROFILE, SIZE_OF, Published
from imgfs.oci.soci import CONFIG_BODY, with_soci_v2, ztoc_descriptor
from imgfs.publish import publication_of
from imgfs.store.flat import FlatLayer
from imgfs.store.store import Store
from tests.support import tarmake as tar
from tests.support.blobs import prose
from tests.support.fake_source import FakeSource
from tests.support.fault_server import FaultServer
from tests.support.lies import lie
from tests.support.mounted import Imgfs, Stored
from tests.support.offerings import AMD64, Offering, contents, image_of, offering, prepared, stored_gzip
from tests.support.tocmake import chunked_layer
from tests.support.ztocs import reader, scanned

T, E, OTHER = "registry.example/app:1", "evil.example/app:1", "registry.example/other:1"
NOISE = random.Random(8).randbytes(600_000)
FILES = {b"etc/one": b"the first", b"noise": NOISE, b"prose": prose(1_500_000, 9), b"two": b"the other"}
TAR = tar.archive(*(tar.file(name, body) for name, body in FILES.items()))
EVIL = TAR.replace(b"the other", b"the devil").replace(NOISE[:64], bytes(64))
EVIL_FILES = {**FILES, b"two": b"the devil", b"noise": bytes(64) + NOISE[64:]}
LAYER = stored_gzip(TAR)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "mine")


@pytest.fixture
def evil(tmp_path: Path) -> Offering:
    """The image at a registry that serves other bytes of its layer, and has an index and a tree of those."""
    return lie(tmp_path, TAR, EVIL)


@pytest.fixture
def honest(tmp_path: Path) -> Offering:
    """The same image where it is at home, with a true index."""
    made = offering(tmp_path / "honest", [LAYER])
    made.refer()
    return made


def read_at(
    source: FakeSource, store: Store, reference: str, policy: Policy = Policy.AUTO
) -> dict[bytes, bytes]:
    """All files, as a mount would show them."""
    resolved, _ = prepared(source, store, reference, policy)
    with Image(resolved, source, store) as image:
        return dict(contents(image))


def pinned_at(host: str, manifest: Descriptor) -> str:
    return f"{host}/app@{manifest.digest}"


def test_the_lie_is_one(evil: Offering, store: Store) -> None:
    assert read_at(evil.source, store, E) == EVIL_FILES


@pytest.mark.parametrize("policy", [Policy.AUTO, Policy.ANY, Policy.VERIFIED, Policy.NONE])
@pytest.mark.parametrize("reference", [T, OTHER, "pinned"])
def test_bytes_that_one_registry_vouched_for_are_nothing_to_another(
    evil: Offering, honest: Offering, store: Store, policy: Policy, reference: str
) -> None:
    assert evil.manifest == honest.manifest
    resolved, _ = prepared(evil.source, store, E)
    with Image(resolved, evil.source, store) as mounted:
        assert dict(contents(mounted)) == EVIL_FILES
        name = pinned_at("registry.example", honest.manifest) if reference == "pinned" else reference
        assert read_at(honest.source, store, name, policy) == FILES
        assert dict(contents(mounted)) == EVIL_FILES, "who has it open keeps it"
        assert read_at(honest.source, store, name, policy) == FILES, "what that reads goes nowhere else"


def test_what_is_read_by_a_lie_after_the_truth_came_is_not_found_by_others(
    evil: Offering, honest: Offering, store: Store
) -> None:
    lying, _ = prepared(evil.source, store, E)
    with Image(lying, evil.source, store) as theirs:
        resolved, _ = prepared(honest.source, store, T)
        with Image(resolved, honest.source, store) as ours:
            assert dict(contents(theirs)) == EVIL_FILES
            assert dict(contents(ours)) == FILES


def test_a_false_tree_counts_where_it_is_from_and_nowhere_else(
    evil: Offering, honest: Offering, store: Store
) -> None:
    assert evil.published.tree
    read_at(evil.source, store, E)
    path = store.tree(honest.manifest.digest)
    assert path
    resolved, told = prepared(honest.source, store, T)
    assert told.warned == []
    with Image(resolved, honest.source, store) as image:
        assert image.tree.origin == "registry.example/app"
        assert dict(contents(image)) == FILES


def test_two_repositories_of_one_registry_are_two_vouchers(
    honest: Offering, store: Store, tmp_path: Path
) -> None:
    prepared(honest.source, store, OTHER)
    _, told = prepared(honest.source, store, T, Policy.VERIFIED)
    assert told.streamed == {honest.layers[0].digest}
    other = Store(tmp_path / "other")
    prepared(honest.source, other, OTHER)
    resolved, _ = prepared(honest.source, other, T)
    with Image(resolved, honest.source, other) as image:
        assert image.content.layers[0].index.summary.origin == "registry.example/app"


def test_the_same_index_of_another_voucher_finds_the_bytes_again(honest: Offering, store: Store) -> None:
    read_at(honest.source, store, OTHER)
    resolved, _ = prepared(honest.source, store, T)
    honest.source.forget_requests()
    with Image(resolved, honest.source, store) as image:
        assert dict(contents(image)) == FILES
    assert honest.source.ranges == []


def test_what_workloads_read_is_the_word_of_a_repository_too(
    honest: Offering, store: Store, tmp_path: Path
) -> None:
    name = honest.manifest.digest
    layer = ProfileLayer(str(honest.layers[0].digest), "tar", 3000)
    body = AccessProfile((layer,), (FlatRange(0, 2000, 1000),)).to_json()
    told = Descriptor(PROFILE, Digest.of(body), len(body), {NAME_OF: "default"}, data=body)
    honest.source.bodies[told.digest] = body
    honest.refer(replace(honest.published, profiles={"default": told}))
    resolved, _ = prepared(honest.source, store, E)
    assert profile_for(resolved, store, None) is not None
    assert profile_for(replace(resolved, reference=T), store, None) is None
    with Image(resolved, honest.source, store) as image:
        assert dict(contents(image)) == FILES
        Verifier(image, store).verify_complete()
    for reference, names in ((T, []), (E, ["default"])):
        again = replace(resolved, reference=reference)
        with Image(again, honest.source, store) as image:
            directory = tmp_path / f"made-{len(names)}"
            directory.mkdir()
            made = publication_of(image, store, directory, soci=False, on_layer=lambda _: None)
        assert list(made.published.profiles) == names
    assert store.profile(name, "default")


# -- what they cost ------------------------------------------------------------------------------------------


def test_an_index_that_unpacks_to_far_more_than_it_is_is_not_even_fetched(
    honest: Offering, store: Store
) -> None:
    layer = honest.published.layers[honest.layers[0].digest]
    claimed = {**layer.lean.annotations, SIZE_OF: str(100 * layer.lean.size + (1 << 20) + 1)}
    lean = replace(layer.lean, annotations=claimed)
    honest.refer(Published(honest.published.tree, {honest.layers[0].digest: layer._replace(lean=lean)}))
    _, told = prepared(honest.source, store, T)
    assert told.streamed == {honest.layers[0].digest}
    assert any("is not a size of at most" in text for text in told.warned)


def test_an_index_that_is_too_much_for_the_stores_limit_is_not_taken_in(
    honest: Offering, store: Store
) -> None:
    store.limit.put(40_000)
    _, told = prepared(honest.source, store, T)
    assert told.streamed == {honest.layers[0].digest}
    assert any("too much for the store's limit" in text for text in told.warned)


def test_indexes_and_trees_count_in_the_stores_limit(honest: Offering, store: Store) -> None:
    prepared(honest.source, store, T, Policy.NONE)
    place = store.layer(honest.layers[0].digest)
    cached = place.cached()
    assert store.kept() > 0
    store.limit.put(cached + store.kept() + 4096)
    assert store.limit.keep() == 0
    store.limit.put(cached + store.kept() // 2)
    assert store.limit.keep() > 0
    assert place.cached() == 0
    assert place.index is not None


def test_an_image_of_more_layers_than_overlayfs_stacks_is_refused(store: Store) -> None:
    source = FakeSource()
    image_of(source, [LAYER] * 501)
    with pytest.raises(InvalidImage, match="501 layers are more than 500"):
        prepared(source, store, T)


def test_a_ztoc_too_large_for_memory_is_not_fetched(store: Store) -> None:
    source = FakeSource()
    layer = Descriptor(LAYER.media_type, Digest.of(LAYER.blob), len(LAYER.blob))
    vast = Descriptor("application/octet-stream", Digest.of(b"vast"), (256 << 20) + 1)
    with pytest.raises(InvalidImage, match="a zTOC of 268435457 bytes"):
        import_ztoc(vast, layer, Digest.parse(LAYER.diff_id), store.layer(layer.digest), source, "a/b")
    assert source.ranges == []


# -- what a manifest names -----------------------------------------------------------------------------------


def soci_image(source: FakeSource, ztoc: bytes, stored: Stored = LAYER) -> Descriptor:
    """Another image of the layer, whose manifest names a SOCI index with `ztoc`; it becomes the root."""
    plain = image_of(source, [stored])
    layer = Descriptor(stored.media_type, Digest.of(stored.blob), len(stored.blob))
    found = ztoc_descriptor(layer, ztoc)
    source.bodies[found.digest] = ztoc
    source.add(CONFIG_BODY)
    documents = with_soci_v2(source.bodies[plain.digest], [found], platform=AMD64, tool="test")
    source.add(documents.soci_index, OCI_MANIFEST)
    source.root = source.add(documents.manifest, OCI_MANIFEST)
    return source.root


def lying_ztoc() -> bytes:
    """A zTOC with the layer's own spans, and other names."""
    found = scanned(LAYER.blob, step=65_536)
    other = tar.archive(*(tar.file("owt" if name == b"two" else name, body) for name, body in FILES.items()))
    sizes = {"size": len(LAYER.blob), "flat_size": len(TAR)}
    return build_ztoc(members(reader(other)), found.soci_spans(), **sizes, tool="test")


def test_a_soci_index_that_another_manifest_names_is_nothing_to_an_image(store: Store) -> None:
    source = FakeSource()
    soci_image(source, lying_ztoc())
    resolved, told = prepared(source, store, E)
    assert (told.warned, told.streamed) == ([], set())
    with Image(resolved, source, store) as image:
        assert {name for name, _ in contents(image)} == {b"etc/one", b"noise", b"prose", b"owt"}
        assert image.content.layers[0].index.summary.trusted_by == "", (
            "for this image it is as good as verified"
        )
    manifest = image_of(source, [LAYER])
    for reference in (pinned_at("registry.example", manifest), T, E):
        assert read_at(source, store, reference) == FILES


def test_a_soci_index_that_two_images_name_is_taken_in_once(store: Store) -> None:
    source = FakeSource()
    manifest = soci_image(source, scanned(LAYER.blob, step=65_536).ztoc())
    prepared(source, store, E)
    source.forget_requests()
    resolved, told = prepared(source, store, pinned_at("registry.example", manifest))
    assert (told.streamed, source.ranges) == (set(), [])
    with Image(resolved, source, store) as image:
        assert dict(contents(image)) == FILES
        Verifier(image, store).verify_complete()
        assert image.content.layers[0].index.summary.origin == ""
    image_of(source, [LAYER])
    _, told = prepared(source, store, T)
    assert told.streamed == set(), "once it has been proved it counts for everybody"


def test_a_lying_soci_index_is_found_out_and_not_used_for_the_layer_again(store: Store) -> None:
    source = FakeSource()
    soci_image(source, scanned(stored_gzip(EVIL).blob, step=65_536).ztoc())
    honest_blob = source.bodies[Digest.of(LAYER.blob)]
    source.bodies[Digest.of(LAYER.blob)] = stored_gzip(EVIL).blob
    resolved, _ = prepared(source, store, E)
    with Image(resolved, source, store) as image:
        assert dict(contents(image)) == EVIL_FILES, "its own registry's lie"
        Verifier(image, store).verify_complete()
        with pytest.raises(IntegrityError):
            dict(contents(image))
    source.bodies[Digest.of(LAYER.blob)] = honest_blob
    resolved, told = prepared(source, store, E)
    assert told.streamed == {Digest.of(LAYER.blob)}
    assert any("was wrong" in text for text in told.warned)


def test_a_table_of_contents_that_another_manifest_names_is_nothing_to_an_image(store: Store) -> None:
    made = chunked_layer(EVIL, chunk=200_000)
    notes = made.layer.annotations
    lying = FakeSource()
    image_of(lying, [LAYER._replace(media_type=made.layer.media_type, annotations=notes)])
    assert len(made.blob) <= len(LAYER.blob)
    lying.bodies[Digest.of(LAYER.blob)] = made.blob + bytes(len(LAYER.blob) - len(made.blob))
    resolved, told = prepared(lying, store, E)
    assert (told.warned, told.streamed) == ([], set())
    with Image(resolved, lying, store) as image:
        assert dict(contents(image)) == EVIL_FILES
        source = FakeSource()
        manifest = image_of(source, [LAYER])
        for reference in (pinned_at("registry.example", manifest), T):
            assert read_at(source, store, reference) == FILES
        assert dict(contents(image)) == EVIL_FILES


# -- what a config says --------------------------------------------------------------------------------------


def wrong_diff_id(source: FakeSource) -> Descriptor:
    """An image of the layer whose config says that it decodes to something else."""
    return image_of(source, [LAYER._replace(diff_id=str(Digest.of(EVIL)))])


def test_an_image_that_lies_of_a_diff_id_does_not_make_others_unreadable(store: Store) -> None:
    source = FakeSource()
    soci_image(source, lying_ztoc(), LAYER._replace(diff_id=str(Digest.of(EVIL))))
    prepared(source, store, E)
    image_of(source, [LAYER])
    assert read_at(source, store, T) == FILES


def test_an_image_that_lies_of_a_diff_id_costs_the_others_nothing_that_is_cached(store: Store) -> None:
    source = FakeSource()
    manifest = image_of(source, [LAYER])
    read_at(source, store, T)
    wrong_diff_id(source)
    with pytest.raises(IntegrityError, match="DiffID"):
        prepared(source, store, E)
    source.forget_requests()
    source.root = manifest
    resolved, told = prepared(source, store, T)
    with Image(resolved, source, store) as image:
        assert dict(contents(image)) == FILES
    assert (told.streamed, source.ranges) == (set(), [])


def test_a_scan_that_fails_leaves_the_cached_bytes_of_another_index(store: Store, honest: Offering) -> None:
    read_at(honest.source, store, T)
    source = FakeSource()
    wrong_diff_id(source)
    with pytest.raises(IntegrityError, match="DiffID"):
        prepared(source, store, E)
    honest.source.forget_requests()
    assert read_at(honest.source, store, T) == FILES
    assert honest.source.ranges == []
    place = store.layer(Digest.of(LAYER.blob))
    assert not list(place.directory.glob("scanned*"))


def test_a_descriptor_that_lies_of_the_size_is_nothing_to_others(store: Store) -> None:
    source = FakeSource()
    named = soci_image(source, scanned(LAYER.blob, step=65_536).ztoc())
    read_at(source, store, E)
    fields = json.loads(source.bodies[named.digest])
    fields["layers"][0]["size"] += 1
    source.root = source.add(json.dumps(fields).encode(), OCI_MANIFEST)
    with pytest.raises(
        IntegrityError, match="length of"
    ):  # the footer's, or the layer's: which is read first
        prepared(source, store, E)
    source.forget_requests()
    source.root = named
    assert read_at(source, store, E) == FILES
    assert source.ranges == []


# -- at a moment's notice ------------------------------------------------------------------------------------


def test_an_image_is_not_opened_by_an_index_that_came_in_between(
    evil: Offering, honest: Offering, store: Store
) -> None:
    resolved, _ = prepared(honest.source, store, T)
    prepared(evil.source, store, E)
    with pytest.raises(StoreError, match="mount it again"), Image(resolved, honest.source, store):
        pass


def test_an_index_that_took_anothers_place_finds_none_of_its_bytes(
    evil: Offering, honest: Offering, store: Store
) -> None:
    """As after a kill: the index is there, and nothing has been done about the bytes."""
    read_at(evil.source, store, E)
    place = store.layer(honest.layers[0].digest)
    before = (place.flat_file.read_bytes(), (place.directory / "presence").read_bytes())
    read_at(honest.source, store, T)
    place.flat_file.write_bytes(before[0])
    (place.directory / "presence").write_bytes(before[1])
    assert read_at(honest.source, store, T) == FILES


# -- bindings ------------------------------------------------------------------------------------------------


def binding(path: Path, spans: list[Span], origin: str, diff_id: str = "i", flat: bytes = b"") -> bytes:
    writer = IndexWriter(path)
    writer.add_spans(spans)
    writer.finish(digest="d", diff_id=diff_id, format="gzip", size=140, flat_size=300, origin=origin)
    if flat:
        add_flat_digests(path, flat)
    with LayerIndex(path) as index:
        found = index.binding()
    path.unlink()
    return found


SPANS = [
    Span(0, 0, 100, 0, 50, Codec.GZIP, bytes(32)),
    Span(1, 100, 300, 49, 140, Codec.DEFLATE, b"\1" * 32, Checkpoint(3, prose(32768, 1))),
]
OTHERS = {
    "digest": SPANS[1]._replace(digest=b"\2" * 32),
    "window": SPANS[1]._replace(checkpoint=Checkpoint(3, prose(32768, 2))),
    "bits": SPANS[1]._replace(checkpoint=Checkpoint(4, prose(32768, 1))),
    "cut": SPANS[1]._replace(flat_start=99),
    "codec": SPANS[1]._replace(codec=Codec.GZIP),
}


@pytest.mark.parametrize("what", OTHERS)
def test_an_index_that_would_let_other_bytes_pass_is_bound_to_others(tmp_path: Path, what: str) -> None:
    path = tmp_path / "index"
    assert binding(path, SPANS, "a/b") == binding(path, SPANS, "c/d"), "whoever says so"
    assert binding(path, SPANS, "a/b") != binding(path, [SPANS[0], OTHERS[what]], "a/b")


def test_flat_digests_are_part_of_what_an_imported_index_lets_pass(tmp_path: Path) -> None:
    """Else a repository that lies of them, and a peer of its, would bring other bytes to others' images."""
    path = tmp_path / "index"
    lists = [b"", bytes(64), bytes(63) + b"\1"]
    assert len({binding(path, SPANS, "a/b", flat=digests) for digests in lists}) == 3
    assert len({binding(path, SPANS, "", flat=digests) for digests in lists}) == 1


def test_verified_bytes_are_bound_to_their_diff_id(tmp_path: Path) -> None:
    path = tmp_path / "index"
    proved = [SPANS[0], OTHERS["window"]]
    assert binding(path, SPANS, "") == binding(path, proved, "")
    assert binding(path, SPANS, "") != binding(path, SPANS, "a/b")
    assert binding(path, SPANS, "") != binding(path, SPANS, "", diff_id="j")


def put(flat: FlatLayer, body: bytes) -> None:
    """Write and mark the first of two spans."""
    aside = flat.span_buffer()
    aside.write(body)
    flat.put(0, flat.begin(0, 0), [(0, aside)])


def test_marks_of_another_binding_are_not_found_and_stay_for_those_who_have_them(store: Store) -> None:
    place = store.layer(Digest.of(b"layer"))
    with closing(place.flat(size=10, spans=2, binding=b"a" * 24)) as old:
        put(old, b"01234")
        with closing(place.flat(size=10, spans=2, binding=b"a" * 24)) as same:
            assert same.count_present() == 1
        with closing(place.flat(size=10, spans=2, binding=b"b" * 24)) as new:
            assert new.count_present() == 0
            old.forget([0])
            put(old, b"43210")
            assert (old.count_present(), new.count_present()) == (1, 0)
            put(new, b"abcde")
            new.rebind(b"c" * 24)
    with closing(place.flat(size=10, spans=2, binding=b"c" * 24)) as last:
        assert last.read(0, 5, last.marks(0, 0), 0) == b"abcde"


# -- two registries ------------------------------------------------------------------------------------------


@pytest.fixture
def servers(evil: Offering, honest: Offering) -> Iterator[tuple[FaultServer, FaultServer]]:
    """The lying registry, and the honest one."""
    with FaultServer() as lying, FaultServer() as true:
        for server, made in ((lying, evil), (true, honest)):
            server.referrers_api = True
            server.blobs |= {str(digest): body for digest, body in made.source.bodies.items()}
            server.add_manifest("app", "v1", made.source.bodies[made.manifest.digest])
            assert made.referrer
            server.add_manifest("app", str(made.referrer.digest), made.source.bodies[made.referrer.digest])
        yield lying, true


@pytest.mark.kernel
def test_what_one_registry_said_is_not_shown_of_anothers_image(
    imgfs: Imgfs, servers: tuple[FaultServer, FaultServer], honest: Offering
) -> None:
    lying, true = servers
    assert imgfs.ok("cat", f"{lying.host}/app:v1", "/two") == "the devil"
    pinned = f"{true.host}/app@{honest.manifest.digest}"
    assert imgfs.ok("cat", "--index", "any", pinned, "/two") == "the other"
    assert imgfs.ok("cat", f"{true.host}/app:v1", "/two") == "the other"
    assert imgfs.ok("cat", pinned, "/two") == "the other"
    assert imgfs.ok("cat", f"{lying.host}/app:v1", "/two") == "the other", "it is verified by now"


@pytest.mark.kernel
def test_what_is_published_has_been_verified_here(
    imgfs: Imgfs, servers: tuple[FaultServer, FaultServer]
) -> None:
    lying, true = servers
    image = f"{lying.host}/app:v1"
    assert imgfs.ok("cat", image, "/two") == "the devil"
    assert "layer blob" in imgfs.run("index", "push", image).complaint()
    image = f"{true.host}/app:v1"
    assert imgfs.ok("cat", image, "/two") == "the other"
    imgfs.ok("index", "push", image)
