"""Images whose registries lie: what is published beside them, or named by them, says other things."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from imgfs.layer.artifact import unpack
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.published import LAYER_OF, Published, PublishedLayer, unpacked_size
from tests.support.offerings import Offering, offering, repacked, stored_gzip


def lie(tmp_path: Path, tar: bytes, evil_tar: bytes) -> Offering:
    """Return a registry whose index, tree and blob fit together, but not the image's manifest and config.

    The image is of `tar`, as one layer; what is published and served, of `evil_tar`, which is as long.
    """
    truth = offering(tmp_path / "truth", [stored_gzip(tar)])
    wrong = offering(tmp_path / "wrong", [stored_gzip(evil_tar)])
    layer, evil = truth.layers[0], wrong.layers[0]
    assert layer.size == evil.size
    published, tree = wrong.published.layers[evil.digest], wrong.published.tree
    assert published.windows
    assert tree
    names = {LAYER_OF: str(layer.digest)}
    claimed = (str(layer.digest), str(Digest.of(tar)))
    kinds = []
    for descriptor in (published.lean, published.full):
        path = unpacked(descriptor, wrong, tmp_path)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("UPDATE summary SET digest = ?, diff_id = ?", claimed)
        kinds.append(repacked(descriptor, path, truth.source, **names))
    truth.source.bodies |= {
        digest: wrong.source.bodies[digest] for digest in (published.windows.digest, tree.digest)
    }
    truth.source.bodies[layer.digest] = wrong.source.bodies[evil.digest]
    windows = replace(published.windows, annotations=names)
    truth.refer(Published(tree, {layer.digest: PublishedLayer(kinds[0], kinds[1], windows)}))
    return truth


def unpacked(descriptor: Descriptor, made: Offering, directory: Path) -> Path:
    """Return a published file as it is used."""
    path = directory / f"unpacked-{descriptor.digest.short}"
    unpack([made.source.bodies[descriptor.digest]], path, unpacked_size(descriptor, 1 << 30))
    return path
