"""What others offer is looked for while the config is fetched: when, when not, and what becomes of errors."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from imgfs.errors import Unavailable
from imgfs.image.discover import early_discovery
from imgfs.image.indexing import PrepareReporter
from imgfs.image.prepare import prepare
from imgfs.image.resolve import Resolved, resolve
from imgfs.image.trust import Readiness, Trust
from imgfs.layer.index import LayerIndex
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.image import OCI_CONFIG, Manifest
from imgfs.oci.policy import Policy
from imgfs.oci.published import (
    FIRST_AT,
    MOST_FIRST,
    TREE_AT,
    LayerRange,
    Published,
    listed_annotations,
    listed_first,
)
from imgfs.oci.reference import parse_reference
from imgfs.store.store import Store
from imgfs.transport.ahead import AheadRange
from tests.support import tarmake
from tests.support.fake_source import FakeSource, add_image
from tests.support.mounted import gzipped
from tests.support.offerings import Offering, Warnings, offering
from tests.unit.test_prepare import SMALL, Journal, lower_layer

AMD64 = Platform("linux", "amd64")
TAG = "registry.example/app:1"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


class Registry(FakeSource):
    """Sends configs only once it has been asked for referrers, or after seconds."""

    def __init__(self, layers: Sequence[bytes]) -> None:
        super().__init__()
        add_image(self, layers)
        self.asked = threading.Event()
        self.was_asked_in_time = False
        self.referrers_error: Unavailable | None = None
        self.whole: list[bool] = []

    def resolve(self, *, whole: bool = False) -> Descriptor:
        self.whole.append(whole)
        return super().resolve(whole=whole)

    def document(self, descriptor: Descriptor) -> bytes:
        if descriptor.media_type == OCI_CONFIG:
            self.was_asked_in_time = self.asked.wait(0.5)
        return super().document(descriptor)

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        self.asked.set()
        found = super().referrers(digest, artifact_type)
        if self.referrers_error:
            raise self.referrers_error
        return found


def mounted(
    source: Registry,
    store: Store,
    reference: str = TAG,
    policy: Policy = Policy.AUTO,
    reporter: PrepareReporter | None = None,
) -> Resolved:
    """Resolve and prepare, as a mount does that looks ahead."""
    trust = Trust.of(parse_reference(reference), policy)
    begun = []

    def look(digest: Digest, manifest: Manifest) -> None:
        begun.append(early_discovery(digest, manifest, source, store, trust, lambda _: None))

    resolved = resolve(reference, source, store, AMD64, meanwhile=look)
    prepare(resolved, source, store, reporter or Journal(), trust, *begun)
    return resolved


def test_what_refers_to_an_image_is_asked_for_while_its_config_is_fetched_and_once(store: Store) -> None:
    source = Registry([lower_layer()])
    resolved = mounted(source, store)
    assert source.was_asked_in_time
    assert source.referrers_asked == [resolved.digest]
    assert store.tree(resolved.digest)


def test_an_image_that_is_in_the_store_has_nothing_looked_for(store: Store) -> None:
    source = Registry([lower_layer()])
    mounted(source, store)
    source.forget_requests()
    mounted(source, store)
    assert source.referrers_asked == []


def test_for_a_small_image_nothing_is_looked_for_ahead(store: Store) -> None:
    source = Registry([SMALL])
    mounted(source, store)
    assert not source.was_asked_in_time


@pytest.mark.parametrize("policy", [Policy.NONE, Policy.VERIFIED])
def test_a_registry_whose_word_does_not_count_is_not_asked_for_it(store: Store, policy: Policy) -> None:
    source = Registry([lower_layer()])
    mounted(source, store, policy=policy)
    assert source.referrers_asked == []


def test_a_registry_that_fails_meanwhile_is_asked_again_and_its_error_is_the_mounts(store: Store) -> None:
    source = Registry([lower_layer()])
    source.referrers_error = Unavailable("no answer")
    with pytest.raises(Unavailable, match="no answer"):
        mounted(source, store)
    assert len(source.referrers_asked) == 2


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_an_image_of_which_the_list_of_referrers_is_refused_is_mounted_without(
    store: Store, status: int
) -> None:
    """As by a cache of a registry that is away: it has the image, and not what refers to it."""
    source, warnings = Registry([lower_layer()]), Warnings()
    source.referrers_error = Unavailable(f"{TAG}: {status}", status=status)
    resolved = mounted(source, store, reporter=warnings)
    assert store.tree(resolved.digest)
    assert warnings.warned == [f"the list of what refers to the image is not used: {TAG}: {status}"]
    assert len(source.referrers_asked) == 1


@pytest.mark.parametrize(
    "said", ["right", "of nothing that is there", "of another size", "no size", "no digest", "nothing"]
)
def test_a_tree_that_a_list_names_is_fetched_once_and_counts_only_if_the_artifact_names_it(
    tmp_path: Path, store: Store, said: str
) -> None:
    made = offering(tmp_path / "theirs", [gzipped(lower_layer())])
    made.refer()
    tree, entry = made.published.tree, made.referrer
    assert tree
    assert entry
    notes = {
        "right": listed_annotations(made.published)[TREE_AT],
        "of nothing that is there": f"{Digest.of(b'else')} {tree.size}",
        "of another size": f"{tree.digest} {tree.size - 1}",
        "no size": f"{tree.digest} 1e3",
        "no digest": f"tree {tree.size}",
        "nothing": "",
    }
    listed = replace(entry, annotations={TREE_AT: notes[said]})
    made.source.referring = {made.manifest.digest: [listed]}
    trust, begun = Trust.of(parse_reference(TAG), Policy.AUTO), []

    def look(digest: Digest, manifest: Manifest) -> None:
        begun.append(early_discovery(digest, manifest, made.source, store, trust, lambda _: None))

    resolved = resolve(TAG, made.source, store, AMD64, meanwhile=look)
    journal = Journal()
    prepare(resolved, made.source, store, journal, trust, *begun)
    assert store.tree(resolved.digest)
    assert Readiness(resolved, store, trust).has_tree()
    whole = [piece for piece in made.source.ranges if piece == (0, tree.size)]
    assert len(whole) == 1
    with closing(LayerIndex(store.layer(resolved.manifest.layers[0].digest).index_file)) as index:
        assert index.summary.is_lean  # the layer was not streamed


def test_a_tag_comes_with_its_document_the_first_time_only(store: Store) -> None:
    source = Registry([tarmake.archive(tarmake.file("file"))])
    for _ in range(3):
        mounted(source, store)
    assert source.whole == [True, False, False]


def first_of(made: Offering, store: Store, said: str) -> list[AheadRange]:
    """Return what is told to be read first of an image where a list says this of it."""
    assert made.referrer
    made.source.referring = {made.manifest.digest: [replace(made.referrer, annotations={FIRST_AT: said})]}
    told: list[AheadRange] = []

    def look(digest: Digest, manifest: Manifest) -> None:
        trust = Trust.of(parse_reference(TAG), Policy.AUTO)
        discovery = early_discovery(digest, manifest, made.source, store, trust, told.extend)
        assert discovery
        assert discovery.published.tree

    resolve(TAG, made.source, store, AMD64, meanwhile=look)
    return told


def test_what_a_list_says_to_be_read_first_is_told(tmp_path: Path, store: Store) -> None:
    made = offering(tmp_path / "theirs", [gzipped(lower_layer()), gzipped(SMALL)])
    made.refer()
    lower, small = made.layers
    first = (LayerRange(1, 0, small.size), LayerRange(0, 17, 5000))
    said = listed_annotations(Published(None, {}, first=first))[FIRST_AT]
    assert first_of(made, store, said) == [AheadRange(small, 0, small.size), AheadRange(lower, 17, 5000)]
    with store.layer(
        small.digest
    ).new_index() as path:  # what another image has fetched of it is not asked for
        path.write_bytes(b"")
    assert first_of(made, store, said) == [AheadRange(lower, 17, 5000)]


@pytest.mark.parametrize(
    "said",
    [
        "",
        "0:0-",
        "0:-1-5",
        "0:5-5",
        "0:6-5",
        "2:0-5",
        "0:0-5,0:6-7",
        "0:0-5  0:6-7",
        "0:0-5 1:0-99999999",
        "0:0-٥",
        "0:0-5\n",
        f"0:0-5 0:0-{'9' * 30}",
        " ".join(["0:0-5"] * 65),
    ],
)
def test_what_a_list_cannot_mean_is_passed_over(tmp_path: Path, store: Store, said: str) -> None:
    made = offering(tmp_path / "theirs", [gzipped(lower_layer()), gzipped(SMALL)])
    made.refer()
    assert first_of(made, store, said) == []


def test_what_is_read_first_is_bounded() -> None:
    layer = Descriptor("layer", Digest.of(b""), MOST_FIRST + 1)
    for end, is_known in ((MOST_FIRST, True), (MOST_FIRST + 1, False)):
        listed = replace(layer, annotations={FIRST_AT: f"0:1-2 0:1-{end}"})
        assert bool(listed_first(listed, [layer])) == is_known
