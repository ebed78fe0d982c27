"""What is damaged, and what must come of it.

On the way: bytes that are not what their digest says. Then nothing but the image's own files is ever seen,
or an error that says so. By the author: bytes whose digests are right, of an image that is not. Then any
files may be seen, but nothing happens other than InvalidImage, IntegrityError, or an errno where one is read.
"""

from __future__ import annotations

import errno
import json
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeVar

import zstandard

from imgfs.content.profile import AccessProfile
from imgfs.errors import ImgfsError, IntegrityError, InvalidImage, NotFound, StoreError, UsageError
from imgfs.image.image import Image
from imgfs.image.prepare import prepare
from imgfs.image.resolve import Resolved, resolve
from imgfs.layer.soci.ztoc import parse_ztoc
from imgfs.maintenance.fsck import check as check_store
from imgfs.maintenance.gc import evict
from imgfs.oci.artifact import parse_artifact, parse_referrers
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_MANIFEST, parse_config, parse_document
from imgfs.oci.published import FULL, LEAN, SIZE_OF, TREE, published_in
from imgfs.oci.soci import parse_soci_index
from imgfs.store.checksum import write_checksum
from imgfs.store.store import Store
from scripts.proving import hostile
from scripts.proving.damage import damage_database, damaged, damaged_at, damaged_json, damaged_tar
from scripts.proving.specimens import (
    AMD64,
    ELSEWHERE,
    NAME,
    UPPER,
    Publication,
    Quiet,
    Shelf,
    Specimen,
    chunkeds,
    estargzes,
    every,
    gzips,
    publication,
    tars,
    zstds,
)
from scripts.proving.urls import url
from tests.support.docker_registry import as_json
from tests.support.mounted import gzipped, plain, sha256, zstd
from tests.support.tocmake import FOOTERS, NEW, OLD, TOC_DIGEST, gzip_toc

_NODES = 2_000  # of a tree that are looked at
_LARGE = 1 << 20  # bytes of a file that are read at once, and of one that claims more, at both ends
_T = TypeVar("_T")
_FAULT = (InvalidImage, IntegrityError)
Sight = Mapping[bytes, object]  # what is seen of a file, None for an error


class Wrong(AssertionError):
    """Something was shown that is not the image's."""


@dataclass
class Case:
    """One case: the chance it goes by, a directory of its own, and the bytes that were damaged."""

    chance: Random
    directory: Path
    evidence: bytes = b""
    about: list[str] = field(default_factory=list)

    def damage(self, what: str, how: Callable[[bytes, Random], bytes], body: bytes) -> bytes:
        """Damage `body`, and keep what came of it."""
        self.evidence = how(body, self.chance)
        self.about.append(what)
        return self.evidence


# -- looking at images ---------------------------------------------------------------------------------------


class Opened(NamedTuple):
    """An image that has been prepared."""

    resolved: Resolved
    shelf: Shelf
    store: Store

    def sight(self) -> Sight:
        """Return all there is to see of it."""
        with Image(self.resolved, self.shelf, self.store) as image:
            return _sight(image)


def opened(shelf: Shelf, directory: Path, name: str = NAME) -> Opened:
    """Resolve and prepare, as a mount does. Raises ImgfsError."""
    store = Store(directory / "store")
    resolved = resolve(name, shelf, store, AMD64)
    prepare(resolved, shelf, store, Quiet())
    return Opened(resolved, shelf, store)


def _sight(image: Image) -> Sight:
    found: dict[bytes, object] = {}
    listed, left = set(), [(b"", 1)]
    while left and len(found) < _NODES:
        path, ino = left.pop()
        found[path] = _attempt(partial(_seen, image, ino))
        if ino in listed:  # a damaged tree may go in circles
            continue
        listed.add(ino)
        children = _attempt(lambda ino=ino: list(image.tree.children(ino)))  # type: ignore[misc]
        left += [(path + b"/" + name, node.ino) for _, name, node in children or ()]
    return found


def _attempt(look: Callable[[], _T]) -> _T | None:
    try:
        return look()
    except (ImgfsError, OSError):
        return None


def _seen(image: Image, ino: int) -> object:
    node = image.tree.node(ino)
    if node is None:
        raise OSError(errno.ESTALE, "a name of nothing")
    if not all(isinstance(field, int) for field in node):  # at which `fuse.errors` says EIO
        raise OSError(errno.EIO, "a node that is none")
    target = image.tree.target(ino) if node.mode & 0o170000 == 0o120000 else None
    image.tree.path(ino)
    if node.mode & 0o170000 != 0o100000:
        return node[1:], target, image.tree.xattrs(ino)
    layer, extents = image.tree.extents(ino)
    size = max(0, node.size)
    places = [(0, min(size, _LARGE))] + ([(size - _LARGE, _LARGE)] if size > _LARGE else [])
    body = [bytes(image.content.read(layer, extents, *place)) for place in places]
    return node[1:], body, image.tree.xattrs(ino)


@cache
def expected(specimen: Specimen) -> Sight:
    """Return what an image shows if nothing is wrong."""
    with tempfile.TemporaryDirectory(prefix="imgfs-fuzz-") as directory:
        found = opened(specimen.shelf(), Path(directory)).sight()
    assert None not in found.values()
    return found


def check(found: Sight, specimen: Specimen) -> str:
    """Raise Wrong if anything but errors differs from the image."""
    right = expected(specimen)
    if found.keys() != right.keys():
        raise Wrong(f"{specimen.name}: other names: {sorted(found.keys() ^ right.keys())[:5]}")
    other = [path for path, seen in found.items() if seen is not None and seen != right[path]]
    if other:
        raise Wrong(f"{specimen.name}: {other[:5]} are not what they were")
    return "the same" if None not in found.values() else "errors"


def strict(case: Case, specimen: Specimen, shelf: Shelf) -> str:
    """Return the image itself, or an error."""
    try:
        found = opened(shelf, case.directory).sight()
    except _FAULT:
        return "refused"
    return check(found, specimen)


def loose(case: Case, shelf: Shelf) -> str:
    """Any image, or an error."""
    try:
        opened(shelf, case.directory).sight()
    except _FAULT:
        return "refused"
    return "taken"


# -- on the way ----------------------------------------------------------------------------------------------


def on_the_way(
    case: Case, specimens: Sequence[Specimen], *, with_ztoc: bool = False, ours: bool = False
) -> str:
    """Damage something that is fetched, before the image is prepared or after."""
    specimen = case.chance.choice(specimens)
    shelf = specimen.shelf()
    if with_ztoc or ours:
        publication(specimen).refer(shelf, soci=with_ztoc)
    if case.chance.random() < 0.5:
        name = case.chance.choice([*shelf.bodies, *[Digest.parse(sha256(specimen.layer.blob))] * 4])
        shelf.bodies[name] = case.damage(f"{specimen.name}: {name}", damaged, shelf.bodies[name])
        return strict(case, specimen, shelf)
    made = opened(shelf, case.directory)
    evict(made.store.layers())
    for name, body in list(shelf.bodies.items()):
        shelf.bodies[name] = case.damage(f"{specimen.name}: {name}", partial(_as_long, 0, len(body)), body)
    return check(made.sight(), specimen)


def _as_long(start: int, end: int, body: bytes, chance: Random) -> bytes:
    return damaged_at(body, start, end, chance)


# -- by the author -------------------------------------------------------------------------------------------


def tar(case: Case) -> str:
    """Return a tar that is none, packed in every way; the digests are right."""
    if case.chance.random() < 0.2:
        return on_the_way(case, tars())
    flat = case.damage("tar", damaged_tar, UPPER)
    packed = case.chance.choice((plain, gzipped, zstd))
    return loose(case, Specimen("tar", packed(flat)).shelf())


def packed(case: Case, specimens: Sequence[Specimen]) -> str:
    """Return a packed layer that unpacks to nothing, or to something else than its DiffID."""
    if case.chance.random() < 0.5:
        return on_the_way(case, specimens)
    specimen = case.chance.choice(specimens)
    blob = case.damage(specimen.name, damaged, specimen.layer.blob)
    return strict(case, specimen, specimen.with_layer(blob).shelf())


def estargz(case: Case) -> str:
    """Return a table of contents of eStargz."""
    if case.chance.random() < 0.3:
        return on_the_way(case, estargzes())
    specimen = case.chance.choice(estargzes())
    made = specimen.made
    assert made
    end = (
        len(made.blob)
        - len(made.external)
        - len(FOOTERS["legacy" if "legacy" in specimen.name else "estargz"](0))
    )
    body = case.damage(f"{specimen.name}: TOC", damaged_json, made.toc)
    table = gzip_toc(body)
    if case.chance.random() < 0.2:
        table = case.damage(f"{specimen.name}: packed TOC", damaged, table)
    footer = FOOTERS["estargz"](end)
    if case.chance.random() < 0.1:
        footer = case.damage(f"{specimen.name}: footer", damaged, footer)
    notes = {TOC_DIGEST: sha256(body)}
    return loose(case, specimen.with_layer(made.blob[:end] + table + footer, annotations=notes).shelf())


def chunked(case: Case) -> str:
    """Return a table of contents of zstd:chunked."""
    if case.chance.random() < 0.3:
        return on_the_way(case, chunkeds())
    specimen = case.chance.choice(chunkeds())
    made = specimen.made
    assert made
    notes = dict(made.layer.annotations)
    prefix = OLD if OLD + "manifest-position" in notes else NEW
    start, length, _, kind = map(int, notes[prefix + "manifest-position"].split(":"))
    body = case.damage(f"{specimen.name}: TOC", damaged_json, made.toc)
    table = zstandard.compress(body)
    if case.chance.random() < 0.2:
        table = case.damage(f"{specimen.name}: packed TOC", damaged, table)
    position = f"{start}:{len(table)}:{len(body)}:{kind}"
    if case.chance.random() < 0.1:
        position = case.damage("position", damaged, position.encode()).decode("utf-8", "replace")
    notes |= {prefix + "manifest-position": position, prefix + "manifest-checksum": sha256(table)}
    if TOC_DIGEST in notes:
        notes[TOC_DIGEST] = sha256(body)
    blob = (
        made.blob[: start - 8]
        + struct.pack("<II", 0x184D2A50, len(table))
        + table
        + made.blob[start + length :]
    )
    return loose(case, specimen.with_layer(blob, annotations=notes).shelf())


def ztoc(case: Case) -> str:
    """Return a zTOC that refers to the image."""
    specimen = case.chance.choice((*tars(), gzips()[0]))
    if case.chance.random() < 0.2:
        return on_the_way(case, (specimen,), with_ztoc=True)
    found = publication(specimen)
    (old,) = found.ztocs
    body = case.damage(f"zTOC of {specimen.name}", damaged, found.bodies[old.digest])
    with suppress(InvalidImage):
        parse_ztoc(body, size=len(specimen.layer.blob))
    if case.chance.random() < 0.7:  # parsing alone is fast
        return "parsed"
    shelf = specimen.shelf()
    found.with_body(old, body).refer(shelf, soci=True)
    return loose(case, shelf)


def artifact(case: Case) -> str:
    """Return what imgfs has published: its tree, indexes, windows, copies."""
    specimen = case.chance.choice((*tars(), *gzips(), *zstds()))
    if case.chance.random() < 0.2:
        return on_the_way(case, (specimen,), ours=True)
    found = publication(specimen)
    old = case.chance.choice([one for one in found.layers if one.size])
    body = found.bodies[old.digest]
    if old.media_type in (TREE, LEAN, FULL) and case.chance.random() < 0.8:
        made = _with_damaged_database(case, specimen, found, old)
    else:
        made = found.with_body(old, case.damage(f"{specimen.name}: {old.media_type}", damaged, body))
    shelf = specimen.shelf()
    made.refer(shelf, soci=False)
    return loose(case, shelf)


def _with_damaged_database(
    case: Case, specimen: Specimen, found: Publication, old: Descriptor
) -> Publication:
    path = case.directory / "database"
    body = found.bodies[old.digest]
    path.write_bytes(zstandard.ZstdDecompressor().decompress(body, max_output_size=1 << 28))
    damage_database(path, case.chance)
    flat = case.damage(f"{specimen.name}: {old.media_type}", lambda body, _: body, path.read_bytes())
    notes = {**old.annotations, SIZE_OF: str(len(flat))}
    return found.with_body(old, zstandard.compress(flat), annotations=notes)


def others(case: Case) -> str:
    """Return what another registry says of the same image, and the bytes it gives: it is never seen here."""
    specimen = case.chance.choice((*tars(), *gzips(), *zstds()))
    lying = specimen.shelf()
    found = publication(specimen)
    old = case.chance.choice([one for one in found.layers if one.size])
    if old.media_type in (TREE, LEAN, FULL):
        found = _with_damaged_database(case, specimen, found, old)
    found.refer(lying, soci=False)
    if case.chance.random() < 0.5:
        name = Digest.parse(sha256(specimen.layer.blob))
        lying.bodies[name] = damaged_at(lying.bodies[name], 0, len(lying.bodies[name]), case.chance)
    with suppress(*_FAULT):
        opened(lying, case.directory, ELSEWHERE).sight()
    honest = specimen.shelf()
    if case.chance.random() < 0.5:
        publication(specimen).refer(honest, soci=False)
    try:
        outcome = check(opened(honest, case.directory).sight(), specimen)
    except _FAULT as error:
        raise Wrong(f"{specimen.name}: the lie of another makes it unreadable: {error}") from error
    if outcome != "the same":
        raise Wrong(f"{specimen.name}: the lie of another makes files unreadable")
    return outcome


def manifest(case: Case) -> str:
    """Return a manifest or a config."""
    specimen = case.chance.choice(every())
    shelf = specimen.shelf()
    assert shelf.root
    fields = json.loads(shelf.bodies[shelf.root.digest])
    if case.chance.random() < 0.4:
        config = case.damage("config", damaged_json, shelf.bodies[Digest.parse(fields["config"]["digest"])])
        fields["config"] = as_json(shelf.add(config, fields["config"]["mediaType"]))
    body = json.dumps(fields).encode()
    if case.chance.random() < 0.8:
        body = case.damage("manifest", damaged_json, body)
    shelf.root = shelf.add(body, OCI_MANIFEST)
    with suppress(UsageError, NotFound):  # it is of another platform, or names what is nowhere
        return loose(case, shelf)
    return "refused"


def index(case: Case) -> str:
    """Documents about images, which are only read."""
    name, read, body = case.chance.choice(_documents())
    damage = case.damage(name, damaged_json, body)
    try:
        read(damage)
    except _FAULT:
        return "refused"
    return "taken"


@cache
def _documents() -> tuple[tuple[str, Callable[[bytes], object], bytes], ...]:
    found = publication(gzips()[0])
    shelf = gzips()[0].shelf()
    assert shelf.root
    image = shelf.bodies[shelf.root.digest]
    config = shelf.bodies[Digest.parse(json.loads(image)["config"]["digest"])]
    found.refer(shelf, soci=True)
    (soci,) = shelf.referring[shelf.root.digest]
    found.refer(shelf, soci=False)
    (ours,) = shelf.referring[shelf.root.digest]
    entry = {**as_json(shelf.root), "platform": {"os": "linux", "architecture": "amd64", "variant": "v8"}}
    several = json.dumps(
        {"schemaVersion": 2, "manifests": [entry, {**entry, "artifactType": "a/b"}]}
    ).encode()
    profile = {
        "version": 2,
        "layers": [{"diff_id": sha256(b""), "space": "tar", "size": 9000}],
        "touches": [[0, 1000, 3000], [0, 7000, 1]],
        "files": [[1, "usr/bin/app", 0, 100, 2000]],
    }
    return (
        ("index", lambda body: parse_document(body, None), several),
        ("manifest", lambda body: parse_document(body, None), image),
        ("config", lambda body: parse_config(body), config),
        ("referrers", parse_referrers, several),
        ("SOCI index", lambda body: parse_soci_index(body, OCI_MANIFEST), shelf.bodies[soci.digest]),
        (
            "artifact",
            lambda body: published_in(parse_artifact(body, OCI_MANIFEST)),
            shelf.bodies[ours.digest],
        ),
        ("profile", AccessProfile.from_json, json.dumps(profile).encode()),
    )


def tree(case: Case) -> str:
    """Return the store's own files, which a disk may damage: its tree or an index.

    The checksums that are in these files find all of it, so half of the damage gets a right one: as if the
    file were too large to be looked through.
    """
    specimen = case.chance.choice(every())
    made = opened(specimen.shelf(), case.directory)
    places = [made.store.tree(made.resolved.tree), *(place.index for place in made.store.layers())]
    path = case.chance.choice([place for place in places if place])
    damage_database(path, case.chance)
    is_sealed = case.chance.random() < 0.5
    if is_sealed:
        write_checksum(path)
    case.damage(f"{specimen.name}: {path.name}", lambda body, _: body, path.read_bytes())
    evict(made.store.layers())
    if not is_sealed:
        return strict(case, specimen, specimen.shelf())
    try:
        made.sight()
    except (*_FAULT, StoreError):
        return "refused"
    return "taken"


def store(case: Case) -> str:
    """Any file of the store: what is checked and repaired then shows the image, and nothing else."""
    specimen = case.chance.choice(every())
    made = opened(specimen.shelf(), case.directory)
    made.sight()
    files = sorted(path for path in made.store.root.rglob("*") if path.is_file() and path.stat().st_size)
    path = case.chance.choice([file for file in files if file.name != "version"])
    path.write_bytes(case.damage(f"{specimen.name}: {path.name}", damaged, path.read_bytes()))
    try:
        opened(specimen.shelf(), case.directory).sight()
        found = list(check_store(made.store))
    except (*_FAULT, StoreError):
        return "refused"
    for fault in found:
        fault.mend()
    return strict(case, specimen, specimen.shelf())


KINDS: dict[str, Callable[[Case], str]] = {
    "tar": tar,
    "gzip": lambda case: packed(case, gzips()),
    "zstd": lambda case: packed(case, zstds()),
    "estargz": estargz,
    "chunked": chunked,
    "ztoc": ztoc,
    "artifact": artifact,
    "others": others,
    "manifest": manifest,
    "index": index,
    "url": url,
    "tree": tree,
    "store": store,
    "sqlite": lambda case: hostile.sqlite(
        case.directory, case.chance, lambda body: case.damage("SQLite", damaged, body)
    ),
    "paths": lambda case: hostile.paths(case.directory, case.chance),
    "lying-ztoc": lambda case: hostile.lying_ztoc(case.chance),
}
_ALONE = {"index", "url", "sqlite", "paths", "lying-ztoc"}  # which need no image


def make_ready(kinds: Sequence[str]) -> None:
    """Make now what many processes would make each for itself."""
    for specimen in every() if set(kinds) - _ALONE else ():
        expected(specimen)
    if {"ztoc", "artifact", "others", "index"} & set(kinds):
        for specimen in (*tars(), *gzips(), *zstds()):
            publication(specimen)
