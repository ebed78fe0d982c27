"""Inputs made to cost more than they weigh: each is refused, or costs what `layer.limits` says."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from imgfs.errors import InvalidImage
from imgfs.layer.entry import Codec, Entry, Kind, Span
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter, import_index
from imgfs.layer.soci.flatbuffer import FlatbufferBuilder
from imgfs.layer.soci.ztoc import FILE, INFO, KINDS, POINT, POINTS_HEAD, TOC, VERSION, XATTR, ZTOC, parse_ztoc
from imgfs.tree.import_tree import import_tree
from imgfs.tree.reader import Tree
from scripts.proving.damage import damage_database
from tests.support import tarmake
from tests.support.hostile_sqlite import loop, share_children
from tests.support.layers import write_tree
from tests.support.tarmake import archive

_SIZE = 1 << 20  # bytes of the blob that zTOCs here are of
_TABLES = {True: ("summary", "layer", "node", "dirent"), False: ("summary", "entry", "span")}


class TooDear(AssertionError):
    """Something costs more than its bound."""


def _hold(what: str, cost: int, most: int) -> None:
    if cost > most:
        raise TooDear(f"{what}: {cost} where {most} are allowed")


# -- SQLite --------------------------------------------------------------------------------------------------


@cache
def _databases() -> dict[bool, bytes]:
    """Return a tree (True) and a layer's index."""
    with TemporaryDirectory() as directory:
        place = Path(directory)
        names = [tarmake.file(f"d{number % 7}/e/{number}", b"x") for number in range(400)]
        write_tree(place / "tree", [archive(*names, tarmake.symlink("l", "d1"))], place)
        writer = IndexWriter(place / "index")
        for number in range(400):
            writer.add_entry(Entry(b"%d" % number, Kind.FILE, 0o644, 0, 0, 0, 0))
            writer.add_span(Span(number, number, number + 1, number, number + 1, Codec.IDENTITY, bytes(32)))
        writer.finish(digest="sha256:x", diff_id="sha256:y", format="tar", size=400, flat_size=400)
        return {True: (place / "tree").read_bytes(), False: (place / "index").read_bytes()}


def sqlite(directory: Path, chance: Random, damage: Callable[[bytes], bytes]) -> str:
    """Return a published tree or index whose b-trees, pages or rows are not what they should be."""
    is_tree = chance.random() < 0.6
    path = directory / "published"
    path.write_bytes(_databases()[is_tree])
    table = chance.choice(_TABLES[is_tree])
    how = chance.randrange(4)
    if how == 0:
        share_children(
            path, table, depth=chance.choice((1, 2, 9, 19, 20, 40)), fan=chance.choice((1, 2, 583))
        )
    elif how == 1:
        loop(path, table)
    elif how == 2:
        damage_database(path, chance)
    if how == 3 or chance.random() < 0.2:
        path.write_bytes(damage(path.read_bytes()))
    size = path.stat().st_size
    try:
        (import_tree if is_tree else import_index)(path, "registry.test/app")
    except InvalidImage:
        return "refused"
    _hold("bytes of what is written", path.stat().st_size, 2 * size + (1 << 20))
    _read_through(path, is_tree)
    return "taken"


def _read_through(path: Path, is_tree: bool) -> None:
    if not is_tree:
        with LayerIndex(path) as index:
            _hold("entries", sum(1 for _ in index.entries()), index.summary.entries)
        return
    with Tree(path) as tree:
        seen, left = 0, [1]
        while left:
            for _, _, node in tree.children(left.pop()):
                seen += 1
                _hold("names", seen, 100_000)
                left += [node.ino] if node.mode >> 12 == 4 else []


# -- paths ---------------------------------------------------------------------------------------------------

_ORDERS = (b".wh.a", b".wh..wh..opq", b".wh..wh.p")
_PARTS = (b"a", b"b", b".", b"..", b"", b"x" * 255, b"x" * 256, *_ORDERS, b"\xff")


def paths(directory: Path, chance: Random) -> str:
    """Layers of long, deep and winding paths; the tree of them has a bound in their size."""
    layers = [_layer(chance) for _ in range(chance.randint(1, 3))]
    try:
        write_tree(directory / "tree", layers, directory)
    except InvalidImage:
        return "refused"
    flat = sum(map(len, layers))
    _hold("bytes of the tree", (directory / "tree").stat().st_size, 8 * flat + (4 << 20))
    _read_through(directory / "tree", is_tree=True)
    return "taken"


def _layer(chance: Random) -> bytes:
    most, weights = chance.choice((1, 3, 10, 2000)), _weights(chance)
    members = []
    for _ in range(chance.choice((3, 30, 300))):
        path = b"/".join(chance.choices(_PARTS, weights, k=chance.randint(1, most)))
        target = b"/".join(chance.choices(_PARTS[:5], k=chance.randint(1, chance.choice((3, 3, 2000)))))
        kind = chance.randrange(5)
        if kind == 0 and chance.random() < 0.3:
            members.append(tarmake.symlink(path, target))
        elif kind == 1 and chance.random() < 0.1:
            members.append(tarmake.hardlink(path, target))
        elif kind == 2:
            members.append(tarmake.device(path, "c", 0, chance.randrange(2)))
        else:
            members.append((tarmake.file if kind == 3 else tarmake.directory)(path))
    return archive(*members)


def _weights(chance: Random) -> list[int]:
    long, rare, orders = (int(chance.random() < 0.2) for _ in range(3))
    return [20, 20, 5, 2, 2, long, rare, orders, orders, orders, 1]


# -- zTOC ----------------------------------------------------------------------------------------------------


def lying_ztoc(chance: Random) -> str:
    """Return a well-formed zTOC that lies: shared strings and tables, files and spans that cannot be."""
    body = _ztoc(chance)
    entries = 0
    tracemalloc.start()
    try:
        entries = len(parse_ztoc(body, size=_SIZE).entries)
        outcome = "parsed"
    except InvalidImage:
        outcome = "refused"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    _hold("bytes of memory", peak, 4 * len(body) + 2048 * max(entries, len(body) // 100) + (1 << 20))
    return outcome


def _ztoc(chance: Random) -> bytes:
    made = FlatbufferBuilder()
    spans = chance.choice((1, 3, 100))
    points = b"".join(_points(spans, chance))
    digest = made.string(b"sha256:" + b"0" * 64, shared=True)
    info = made.table(INFO, [0, spans - 1 + _lie(chance), made.vector([digest] * spans), made.string(points)])
    names = [made.string(b"n" * chance.choice((1, 100, 70_000))) for _ in range(3)]
    attributes = [made.table(XATTR, [names[0], names[1]])] * chance.choice((0, 1, 1000))
    xattrs = made.vector(attributes)
    kinds = [made.string(kind) for kind in (*KINDS, b"lie")]
    when = made.string(b"2020-01-01T00:00:00Z")
    files, at = [], 0
    for _ in range(chance.choice((0, 5, 2000))):
        size = chance.choice((0, 1, 100, 1 << 40)) if _lie(chance) else chance.choice((0, 100))
        head = [chance.choice(names), chance.choice(kinds[:-1]), at, size, names[2], 0o644, 0, 0, None, None]
        files.append(made.table(FILE, [*head, when, 0, 0, xattrs if chance.random() < 0.1 else None]))
        at += size
    files += chance.choices(files, k=chance.choice((0, 5000))) if files else []
    toc = made.table(TOC, [made.vector(files)])
    flat = chance.choice((_SIZE, at, 1 << 50))
    return made.finish(made.table(ZTOC, [made.string(VERSION), names[0], _SIZE, flat, toc, info]))


def _points(count: int, chance: Random) -> Iterator[bytes]:
    yield POINTS_HEAD.pack(count + _lie(chance), 1 << 20)
    for number in range(count):
        place = 10 + number * 100 + _lie(chance), number * 1000 + _lie(chance)
        yield POINT.pack(*place, chance.choice((0, 0, 3, 9)), bytes(32768))


def _lie(chance: Random) -> int:
    return chance.choice((0,) * 40 + (1, -1, 1 << 30))
