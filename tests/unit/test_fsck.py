"""What a disk has done to a store is found, and mended; where it has done nothing, nothing is found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from imgfs.image.image import Image
from imgfs.layer.index import LayerIndex
from imgfs.maintenance.fsck import Fault, check
from imgfs.maintenance.gc import evict
from imgfs.oci.descriptor import Digest
from imgfs.store.checksum import write_checksum
from imgfs.store.flat import FlatLayer
from imgfs.store.layer import StoredLayer
from imgfs.store.store import Store
from scripts.proving.cases import Opened, expected, opened
from scripts.proving.specimens import Specimen, every, gzips, tars
from tests.support import tarmake
from tests.support.mounted import gzipped

TAR, GZIP = tars()[0], gzips()[0]


def flat_of(layer: StoredLayer) -> FlatLayer:
    assert layer.index
    with LayerIndex(layer.index) as index:
        return layer.flat(size=index.summary.flat_size, spans=index.span_count())


def upper(made: Opened) -> StoredLayer:
    return made.store.layer(made.resolved.manifest.layers[1].digest)


def place_of(made: Opened, path: bytes) -> int:
    """Where in the upper layer's flat layer the first byte of a file is."""
    with Image(made.resolved, made.shelf, made.store) as image:
        return image.tree.extents(image.tree.resolve(path).ino)[1][0].flat


def spoil(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def found(store: Store) -> list[tuple[str, str, bool]]:
    return [(fault.where.name, fault.what, fault.is_doubt) for fault in check(store)]


def mend(store: Store) -> None:
    for fault in list(check(store)):
        fault.mend()


@pytest.mark.parametrize("specimen", every(), ids=lambda specimen: specimen.name)
def test_a_wrong_byte_is_found_in_every_format_and_fetched_again(specimen: Specimen, tmp_path: Path) -> None:
    made = opened(specimen.shelf(), tmp_path)
    made.sight()
    assert found(made.store) == []
    spoil(upper(made).flat_file, place_of(made, b"/usr/noise") + 100_000)
    assert made.sight() != expected(specimen)
    ((where, what, is_doubt),) = found(made.store)
    assert (where, is_doubt) == ("flat", False)
    assert "spans not what their digests say" in what
    mend(made.store)
    assert found(made.store) in ([], [("flat", what, True) for _, what, _ in found(made.store)])
    assert made.sight() == expected(specimen)
    assert found(made.store) == []


def test_only_the_span_that_is_wrong_is_fetched_again(tmp_path: Path) -> None:
    made = opened(TAR.shelf(), tmp_path)
    with closing(flat_of(upper(made))) as flat:
        assert flat.spans == flat.count_present() > 0
        spoil(upper(made).flat_file, place_of(made, b"/usr/noise"))
        mend(made.store)
        assert flat.count_present() == flat.spans - 1


def test_what_nothing_vouches_for_is_in_doubt(tmp_path: Path) -> None:
    """The digests of a gzip layer's spans are of compressed bytes; its DiffID wants all of it."""
    layer = gzipped(tarmake.archive(tarmake.file("noise", Random(1).randbytes(9_000_000))))
    made = opened(Specimen("large", layer).shelf(), tmp_path)
    with closing(flat_of(upper(made))) as flat:
        flat.forget([0])
        ((where, what, is_doubt),) = found(made.store)
        assert (where, is_doubt) == ("flat", True)
        assert what == f"cached bytes: {flat.spans - 1} of {flat.spans} spans of which nothing here can tell"
        mend(made.store)
        assert flat.count_present() == 0


def test_nothing_is_found_in_an_empty_store_or_in_one_without_bytes(tmp_path: Path) -> None:
    assert found(Store(tmp_path / "empty")) == []
    made = opened(GZIP.shelf(), tmp_path)
    evict(made.store.layers())
    assert found(made.store) == []
    for layer in made.store.layers():
        layer.drop_flat()
    assert found(made.store) == []
    assert not upper(made).has_flat()


def spoil_document(made: Opened) -> None:
    made.store.document_file(made.resolved.manifest.config.digest).write_bytes(b"{}")


def spoil_reference(made: Opened) -> None:
    (path,) = (made.store.root / "references").iterdir()
    path.write_bytes(path.read_bytes()[:-9])


def spoil_profile(made: Opened) -> None:
    made.store.put_profile(made.resolved.digest, "default", b'{"version": 1')


def spoil_index(made: Opened) -> None:
    spoil(upper(made).index_file, 5000)


def exchange_indexes(made: Opened) -> None:
    lower, higher = (made.store.layer(layer.digest).index_file for layer in made.resolved.manifest.layers)
    higher.write_bytes(lower.read_bytes())


def spoil_tree(made: Opened) -> None:
    spoil(made.store.tree_file(made.resolved.digest), 9000)


def empty_tree(made: Opened) -> None:
    made.store.tree_file(made.resolved.digest).write_bytes(b"")


def age_tree(made: Opened) -> None:
    """As one from before there were checksums, and damaged."""
    path = made.store.tree_file(made.resolved.digest)
    body = bytearray(path.read_bytes())
    body[60:64] = bytes(4)
    body[4096 * 3 :] = bytes(len(body) - 4096 * 3)
    path.write_bytes(body)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (spoil_document, "document: not what its digest says"),
        (spoil_reference, "reference: no record of one"),
        (spoil_profile, "profile: "),
        (spoil_index, "index: its checksum is another"),
        (exchange_indexes, "index: of another layer"),
        (spoil_tree, "tree: its checksum is another"),
        (empty_tree, "tree: "),
        (age_tree, "tree: "),
    ],
)
def test_each_kind_of_file_is_looked_at_and_what_is_wrong_removed(
    damage: Callable[[Opened], None], what: str, tmp_path: Path
) -> None:
    made = opened(GZIP.shelf(), tmp_path)
    damage(made)
    (fault,) = list(check(made.store))
    assert fault.what.startswith(what)
    assert not fault.is_doubt
    fault.mend()
    assert found(made.store) == []
    assert opened(GZIP.shelf(), tmp_path).sight() == expected(GZIP)


def test_a_file_from_before_there_were_checksums_is_looked_through_and_stays(tmp_path: Path) -> None:
    made = opened(GZIP.shelf(), tmp_path)
    for path in (upper(made).index_file, made.store.tree_file(made.resolved.digest)):
        body = bytearray(path.read_bytes())
        body[60:64] = bytes(4)
        path.write_bytes(body)
    assert found(made.store) == []


def test_a_mount_after_damage_makes_anew_what_is_seen_to_be_damaged(tmp_path: Path) -> None:
    made = opened(GZIP.shelf(), tmp_path)
    spoil_index(made)
    spoil_tree(made)
    assert opened(GZIP.shelf(), tmp_path).sight() == expected(GZIP)
    assert found(made.store) == []


def test_the_digest_of_another_layer_in_a_sealed_index_is_found(tmp_path: Path) -> None:
    made = opened(TAR.shelf(), tmp_path)
    other = made.store.layer(Digest.of(b"other"))
    with other.new_index() as path:
        path.write_bytes(upper(made).index_file.read_bytes())
    write_checksum(other.index_file)
    faults: list[Fault] = list(check(made.store))
    assert [fault.where for fault in faults] == [other.index_file]
