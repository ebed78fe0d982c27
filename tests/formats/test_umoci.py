"""The merged tree against `umoci unpack`, the reference unpacker: the same layers, entry by entry."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings

from imgfs.layer.entry import Entry, Kind
from tests.support.layers import merged
from tests.support.tarmake import (
    archive,
    device,
    directory,
    fifo,
    file,
    hardlink,
    opaque,
    sparse_pax,
    symlink,
    whiteout,
)
from tests.support.umoci_oracle import (
    Seen,
    UmociError,
    differences,
    reader,
    undated,
    unpack,
    walk_directory,
    walk_tree,
)
from tests.unit.test_merge_model import LAYERS, Model, Refused, accepted

pytestmark = [
    pytest.mark.parts,
    pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root"),
]

T = 1_600_000_000_123_456_789
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def both(scratch: Path, layers: list[bytes]) -> tuple[dict[bytes, Seen], dict[bytes, Seen]]:
    """What umoci makes of the layers, and what the merged tree says."""
    expected = walk_directory(unpack(scratch, layers))
    with merged(scratch, *layers) as tree:
        return expected, walk_tree(tree, reader(layers))


def compare(scratch: Path, *layers: bytes) -> dict[bytes, Seen]:
    expected, actual = both(scratch, list(layers))
    assert differences(expected, actual, ignoring_mtime=undated(actual)) == []
    return actual


def test_kinds_attributes_and_contents(tmp_path: Path) -> None:
    seen = compare(
        tmp_path,
        archive(
            directory("./", mtime_ns=T),
            directory("d", mode=0o1777, uid=3, gid=4, mtime_ns=T + 1, xattrs={b"user.d": b"\0\xff"}),
            file("d/f", b"x" * 5000, mode=0o6755, uid=70000, gid=70001, mtime_ns=T + 2),
            file(
                "d/cap",
                b"cap",
                mode=0o755,
                uid=5,
                xattrs={b"security.capability": CAPABILITY, b"user.a": b"1"},
            ),
            file("d/empty", mtime_ns=-1_500_000_000),
            symlink("d/s", "../no/where", uid=6, gid=7, mtime_ns=T + 3),
            hardlink("d/h", "d/f"),
            hardlink("d/hs", "d/s"),
            device("d/null", "c", 1, 3, mode=0o666),
            device("d/disk", "b", 259, 70000),
            fifo("d/p", mode=0o620),
            file(b"d/\xff\xfe", b"name that is no text"),
            file("d/" + "long" * 40 + "/" + "name" * 50, b"long"),
        ),
    )
    assert seen[b"d/f"].nlink == 2
    assert seen[b"d/hs"].group == b"d/hs"
    assert seen[b"d"].mtime_ns == T + 1


def test_upper_over_lower(tmp_path: Path) -> None:
    kinds = {
        "file": lambda path: file(path, b"f", mtime_ns=T),
        "dir": lambda path: directory(path, mode=0o711, mtime_ns=T, xattrs={b"user.x": b"1"}),
        "full": lambda path: archive(directory(path, mtime_ns=T), file(f"{path}/in/side", b"i"))[:-1024],
        "link": lambda path: symlink(path, "elsewhere", mtime_ns=T),
        "fifo": lambda path: fifo(path),
    }
    pairs = [(lower, upper) for lower in kinds for upper in kinds]
    seen = compare(
        tmp_path,
        archive(directory("elsewhere", mtime_ns=T), *(kinds[a](f"{a}-{b}") for a, b in pairs)),
        archive(*(kinds[b](f"{a}-{b}") for a, b in pairs)),
    )
    assert b"full-dir/in/side" in seen
    assert b"full-file/in" not in seen


def test_whiteouts_and_opaque_directories(tmp_path: Path) -> None:
    lower = archive(
        *(directory(path, mode=0o701, mtime_ns=T) for path in ("d", "d/e", "o", "o/p", "usr", "usr/lib")),
        *(
            file(path, path.encode(), mtime_ns=T)
            for path in ("a", "d/b", "d/e/c", "o/x", "o/p/y", "usr/lib/z")
        ),
        *(file(f"keep{n}", b"k") for n in range(3)),
        symlink("lib", "usr/lib", mtime_ns=T),
    )
    upper = archive(
        file("a", b"new"),
        whiteout("a"),  # after its namesake: hides the lower one only
        whiteout("d/e"),
        file("o/n", b"n"),
        opaque("o"),
        whiteout("lib/z"),
        whiteout("keep1"),
        whiteout("not/there"),
        opaque("nowhere"),
        file(".wh..wh.aufs", b"metadata"),
    )
    seen = compare(tmp_path, lower, upper)
    assert {b"a", b"d/b", b"o/n", b"lib", b"keep0"} <= seen.keys()
    assert not {b"d/e", b"o/p", b"o/x", b"usr/lib/z", b"keep1", b"not", b".wh..wh.aufs"} & seen.keys()


def test_parents_that_are_symlinks_or_missing(tmp_path: Path) -> None:
    lower = archive(
        directory("usr/lib", mtime_ns=T),
        symlink("lib", "usr/lib", mtime_ns=T),
        symlink("abs", "/usr/../../usr/lib", mtime_ns=T),
        symlink("usr/lib/up", "../../lib", mtime_ns=T),
        symlink("dangling", "made/by/entry", mtime_ns=T),
        symlink("replaced", "usr", mtime_ns=T),
        file("lib/one", b"1"),
        file("abs/two", b"2"),
        file("lib/up/up/three", b"3"),
        file("dangling/four", b"4"),
        hardlink("abs/six", "lib/up/one"),
    )
    upper = archive(
        directory("replaced", mode=0o700, mtime_ns=T),
        file("replaced/five", b"5"),
        file("/absolute/../seven", b"7"),
        file("./usr//lib/eight", b"8"),
        file("../../nine", b"9"),
    )
    seen = compare(tmp_path, lower, upper)
    assert {b"usr/lib/" + name for name in (b"one", b"two", b"three", b"six", b"eight")} <= seen.keys()
    assert {b"made/by/entry/four", b"replaced/five", b"seven", b"nine"} <= seen.keys()


def test_hard_links_across_layers(tmp_path: Path) -> None:
    first = archive(file("a", b"a", mtime_ns=T), hardlink("b", "a"), hardlink("c", "b"), symlink("s", "a"))
    second = archive(hardlink("d", "/c"), hardlink("t", "./s"), file("b", b"changed"), whiteout("a"))
    third = archive(file("e/a", b"e"), hardlink("e/b", "../e/a"), hardlink("d", "e/b"))
    seen = compare(tmp_path, first, second, third)
    assert (seen[b"c"].nlink, seen[b"t"].nlink, seen[b"e/a"].nlink, seen[b"b"].nlink) == (1, 2, 3, 1)


def test_duplicates_in_one_layer(tmp_path: Path) -> None:
    layer = archive(
        file("f", b"1"),
        file("f", b"22"),
        directory("d", mode=0o700, mtime_ns=T),
        file("d/x"),
        directory("d", mode=0o711, mtime_ns=T),
        file("gone/x"),
        file("gone", b"file"),
        symlink("s", "f"),
        directory("s", mtime_ns=T),
    )
    assert compare(tmp_path, layer)[b"f"].size == 2


def test_sparse_files(tmp_path: Path) -> None:
    pieces = [(512, b"a" * 512), (5000, b"b" * 70)]
    layer = archive(*(sparse_pax(version, version, 9000, pieces) for version in ("0.0", "0.1", "1.0")))
    assert compare(tmp_path, layer)[b"1.0"].size == 9000


def test_an_attribute_that_differs_is_told_in_a_line(tmp_path: Path) -> None:
    expected, actual = both(tmp_path, [archive(file("f", b"x", uid=1), file("g"))])
    changed = {
        **actual,
        b"f": Seen(mode=0o100600, uid=2, gid=0, mtime_ns=0, size=1, nlink=1),
        b"h": actual[b"g"],
    }
    del changed[b"g"]
    lines = differences(expected, changed, ignoring_mtime={b""})
    assert lines[:2] == ["f: mode is 0o100600, expected 0o100644", "f: uid is 2, expected 1"]
    assert lines[3:] == ["g: missing", "h: too much"]
    assert differences(expected, changed, limit=1) == lines[:1]


# umoci obeys one entry after the other. So only stacks are compared that mean the same with every entry in a
# layer of its own, whiteouts first; what a layer's order or lower view decides is left to the other tests.
def _one_by_one(layers: list[list[Entry]]) -> list[list[Entry]]:
    return [[entry] for layer in _whiteouts_first(layers) for entry in layer]


def _whiteouts_first(layers: list[list[Entry]]) -> list[list[Entry]]:
    return [sorted(layer, key=lambda entry: b".wh." not in entry.path) for layer in layers]


def _tar(layer: list[Entry]) -> bytes:
    return archive(*map(_member, layer))


def _member(entry: Entry) -> bytes:
    match entry.kind:
        case Kind.FILE:
            return file(entry.path.rstrip(b"/"), b"%d" % entry.mtime_ns, mtime_ns=entry.mtime_ns)
        case Kind.DIRECTORY:
            return directory(entry.path, mtime_ns=entry.mtime_ns)
        case Kind.SYMLINK:
            return symlink(entry.path, entry.target, mtime_ns=entry.mtime_ns)
    return hardlink(entry.path, entry.target)


class Follows(Model):
    """As umoci was before 0.5: symlinks of lower layers are followed as if they were the layer's own."""

    lower_gives_way = False


def _is_sequential(layers: list[list[Entry]]) -> bool:
    try:
        one_by_one = Follows(_one_by_one(layers)).rows()
        return Model(layers).rows() == Follows(layers).rows() == one_by_one
    except Refused:
        return False


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)
@given(LAYERS.map(accepted))
def test_random_stacks(layers: list[list[Entry]]) -> None:
    assume(_is_sequential(layers))
    with tempfile.TemporaryDirectory() as scratch:
        try:
            expected, actual = both(Path(scratch), [_tar(layer) for layer in _whiteouts_first(layers)])
        except UmociError as error:
            assume(not any(known in str(error) for known in ("link: ", "too many levels of symbolic links")))
            raise
    directories = {path for path, seen in actual.items() if seen.mode & 0o170000 == 0o040000}
    ignored = directories if Model(layers).made_parents else {b""}
    assert differences(expected, actual, ignoring_mtime=ignored) == []
