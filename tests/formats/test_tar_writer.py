"""Tar streams written from entries: read back as they were, by this project's reader and by others."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import InvalidImage
from imgfs.layer.entry import Entry, Kind
from imgfs.layer.tar.reader import tar_entries
from imgfs.layer.tar.writer import Member, tar_of
from tests.support.patience import allowed
from tests.support.umoci_oracle import Seen, differences, unpack, walk_directory

NANO = 1_000_000_000
T = 1_600_000_000_123_456_789
GIB = 1 << 30
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def entry(path: bytes, kind: Kind = Kind.FILE, **more: object) -> Entry:
    """An entry of root's, of 1970, for what a test does not care about."""
    plain = Entry(path, kind, 0o755 if kind is Kind.DIRECTORY else 0o644, 0, 0, 0, 0)
    return plain._replace(**more)  # type: ignore[arg-type]  # passed on


def file(path: bytes, body: bytes = b"", **more: object) -> Member:
    return entry(path)._replace(size=len(body), **more), [body]  # type: ignore[arg-type]  # passed on


def link(path: bytes, target: bytes, kind: Kind = Kind.SYMLINK, **more: object) -> Member:
    return entry(path, kind, target=target, **more), ()


def written(*members: Member) -> bytes:
    return b"".join(tar_of(members))


def read(flat: bytes) -> list[tuple[Entry, bytes]]:
    """The entries of a stream without their extents, and their bytes."""
    found = []
    for each in tar_entries(flat):
        body = b"".join(flat[piece.flat : piece.flat + piece.length] for piece in each.extents)
        found.append((each._replace(extents=()), body))
    return found


def read_one(*members: Member) -> Entry:
    ((found, _),) = read(written(*members))
    return found


def refusal(*members: Member) -> str:
    with pytest.raises(InvalidImage) as caught:
        written(*members)
    return str(caught.value)


def header_blocks(member: Member) -> int:
    """How many blocks the headers of one member of no bytes take."""
    return len(written(member)) // 512 - 2


def test_a_plain_member_is_one_ustar_header() -> None:
    flat = written(file(b"etc/hosts", b"localhost", mode=0o640, uid=7, gid=8, mtime_ns=9 * NANO))
    assert len(flat) == 512 + 512 + 1024
    assert flat[:9] == b"etc/hosts"
    assert flat[100:136] == b"0000640\x000000007\x000000010\x0000000000011\0"
    assert flat[136:148] == b"00000000011\0"
    assert flat[156:157] == b"0"
    assert flat[257:265] == b"ustar\x0000"
    assert flat[512:1024] == b"localhost".ljust(512, b"\0")
    assert flat[1024:] == bytes(1024)


def test_no_members_are_the_end_alone() -> None:
    assert written() == bytes(1024)


def test_the_same_members_make_the_same_bytes() -> None:
    def members() -> list[Member]:
        return [file("ä".encode(), b"x", mtime_ns=T, xattrs={b"user.b": b"2", b"user.a": b"1"})]

    reordered = [file("ä".encode(), b"x", mtime_ns=T, xattrs={b"user.a": b"1", b"user.b": b"2"})]
    assert written(*members()) == written(*members()) == written(*reordered)


def test_a_body_may_come_in_any_chunks() -> None:
    body = bytes(range(256)) * 5
    whole = written(file(b"f", body))
    assert written((entry(b"f", size=len(body)), [body[:1], b"", body[1:700], body[700:]])) == whole


def test_a_directory_ends_in_a_slash() -> None:
    for path in (b"d", b"d/", b"d/e", b"."):
        found = read_one((entry(path, Kind.DIRECTORY), ()))
        assert found.path == path.rstrip(b"/") + b"/"


@pytest.mark.parametrize(
    ("path", "fits"),
    [
        (b"n" * 100, True),
        (b"n" * 101, False),
        (b"p" * 155 + b"/" + b"n" * 100, True),
        (b"p" * 156 + b"/" + b"n" * 99, False),
        (b"p/" * 100 + b"n", True),
        (b"/" + b"n" * 100, False),
        ("naïve".encode(), False),
        (b"\xff\xfe", False),
    ],
)
def test_a_path_goes_into_the_header_if_it_fits(path: bytes, fits: bool) -> None:
    member = file(path)
    assert read_one(member).path == path
    assert header_blocks(member) == (1 if fits else 3)


@pytest.mark.parametrize(("target", "fits"), [(b"t/" * 50, True), (b"t" * 101, False), ("ü".encode(), False)])
def test_a_target_goes_into_the_header_if_it_fits(target: bytes, fits: bool) -> None:
    for kind in (Kind.SYMLINK, Kind.HARDLINK):
        member = link(b"l", target, kind)
        assert read_one(member).target == target
        assert header_blocks(member) == (1 if fits else 3)


def test_a_name_that_is_no_text_says_so_before_it_comes() -> None:
    flat = written(file(b"\xff", xattrs={b"a": b""}))
    assert flat[512:].startswith(b"21 hdrcharset=BINARY\n19 SCHILY.xattr.a=\n9 path=\xff\n")
    assert b"hdrcharset" not in written(file("ü".encode()))


def test_a_header_is_ascii_whatever_the_names() -> None:
    flat = written(link("ü".encode() * 80, "日/".encode() * 40))
    assert flat[:512].isascii()
    assert flat[1024 : 1024 + 512].isascii()
    assert read_one(link("ü".encode() * 80, "日/".encode() * 40)).path == "ü".encode() * 80


@pytest.mark.parametrize(
    "change",
    [
        {"uid": 0o7777777, "gid": 0o10000000},
        {"uid": (1 << 32) - 1},
        {"mtime_ns": -1},
        {"mtime_ns": -1_500_000_000},
        {"mtime_ns": -2 * NANO},
        {"mtime_ns": 8**11 * NANO},
        {"mtime_ns": (8**11 - 1) * NANO},
        {"mtime_ns": T},
        {"mtime_ns": (1 << 63) - 1},
        {"mtime_ns": -(1 << 63)},
        {"xattrs": {b"security.capability": CAPABILITY, b"user.empty": b"", b"user.lines": b"a\n9 b=c\n\0"}},
        {"xattrs": {b"user.a=b%": b"=\0=", b"user.c=": b""}},
        {"xattrs": {b"user.\xff": b"\xff" * 5000}},
    ],
)
def test_what_the_header_has_no_room_for_is_not_lost(change: dict[str, object]) -> None:
    member = file(b"f", b"body", **change)
    assert read_one(member) == member[0]


@pytest.mark.parametrize("major", [0, 1, 0o7777777, 0o10000000, (1 << 32) - 1])
def test_device_numbers_of_any_size(major: int) -> None:
    for kind in (Kind.CHARACTER, Kind.BLOCK):
        member = (entry(b"dev/x", kind, device=(major, 1 << 20)), ())
        assert read_one(member) == member[0]


def test_a_file_of_more_than_8_gib_says_so_in_a_record() -> None:
    body: Iterable[bytes] = []
    pieces = tar_of([(entry(b"big", size=8 * GIB), body)])
    head = next(pieces)
    assert b"19 size=8589934592\n" in head
    with pytest.raises(InvalidImage, match="8589934592 fewer"):
        list(pieces)


def test_a_file_of_8_gib_less_one_needs_no_record() -> None:
    head = next(tar_of([(entry(b"big", size=8 * GIB - 1), ())]))
    assert len(head) == 512
    assert head[124:136] == b"77777777777\0"


def test_a_record_counts_its_own_length() -> None:
    for size in range(1, 1200):
        member = file(b"f", xattrs={b"a": b"x" * size})
        assert read_one(member).xattrs == {b"a": b"x" * size}


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        ((entry(b"d/f", size=3), [b"ab"]), "d/f: has 2 bytes, 1 fewer than its entry says"),
        ((entry(b"d/f", size=3), [b"ab", b"cd"]), "d/f: has more than the 3 bytes its entry says"),
        ((entry(b"\xff", size=3), ()), "\\xff: has 0 bytes, 3 fewer than its entry says"),
        ((entry(b"d", Kind.DIRECTORY), [b"x"]), "d: has more than the 0 bytes its entry says"),
        ((entry(b"d", Kind.DIRECTORY, size=4096), ()), "d: has 0 bytes, 4096 fewer than its entry says"),
        (file(b""), "no path can be empty or hold a NUL"),
        (file(b"a\0b"), "a\0b: no path can be empty or hold a NUL"),
        (link(b"l", b"a\0b"), "l: no path can be empty or hold a NUL"),
        (file(b"f/"), "f/: ends in a slash: it would be read as a directory"),
        (link(b"l", b""), "l: a link without a target"),
        (link(b"h", b"", Kind.HARDLINK), "h: a link without a target"),
        (file(b"f", target=b"t"), "f: a target but no link"),
        (file(b"f", uid=1 << 32), "f: owner 4294967296 is out of range"),
        (file(b"f", xattrs={b"": b"x"}), "f: b'' is not a name for an extended attribute"),
        (file(b"f", xattrs={b"a\0": b"x"}), "f: b'a\\x00' is not a name for an extended attribute"),
        (
            file(b"f", xattrs={b"a": bytes(1 << 20)}),
            "f: its names and attributes have more than 1048576 bytes",
        ),
        ((entry(b"c", Kind.CHARACTER, device=(-1, 0)), ()), "c: device number -1:0 is out of range"),
    ],
)
def test_what_no_tar_can_say_is_refused_by_name(member: Member, complaint: str) -> None:
    assert refusal(member) == complaint


def test_a_chunk_too_many_is_not_written() -> None:
    taken = []

    def endless() -> Iterable[bytes]:
        while True:
            taken.append(1)
            yield b"x" * 10

    with pytest.raises(InvalidImage):
        written((entry(b"f", size=25), endless()))
    assert len(taken) == 3


names = st.lists(
    st.one_of(st.binary(min_size=1, max_size=6), st.text("aé日", min_size=1, max_size=90).map(str.encode))
    .map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"-")),
    min_size=1,
    max_size=5,
).map(b"/".join)  # fmt: skip
xattrs = st.dictionaries(
    st.binary(min_size=1, max_size=20).map(lambda name: name.replace(b"\0", b"=")),
    st.binary(max_size=300),
    max_size=3,
)
owners = st.one_of(st.integers(0, (1 << 32) - 1), st.integers(0, 70000))
times = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-9, 9).map(lambda second: second * NANO)
)
numbers = st.integers(0, (1 << 32) - 1)


@st.composite
def members_of_any_kind(draw: st.DrawFn) -> tuple[Entry, bytes]:
    kind = draw(st.sampled_from(Kind))
    body = draw(st.binary(max_size=1100)) if kind is Kind.FILE else b""
    return (
        Entry(
            draw(names) + b"/" * (kind is Kind.DIRECTORY),
            kind,
            draw(st.integers(0, 0o7777)),
            draw(owners),
            draw(owners),
            len(body),
            draw(times),
            draw(names) if kind in (Kind.SYMLINK, Kind.HARDLINK) else b"",
            draw(st.tuples(numbers, numbers)) if kind in (Kind.CHARACTER, Kind.BLOCK) else (0, 0),
            draw(xattrs),
        ),
        body,
    )


@settings(deadline=None, max_examples=150)
@given(st.lists(members_of_any_kind(), max_size=4))
def test_entries_are_read_back_as_they_were(members: list[tuple[Entry, bytes]]) -> None:
    flat = written(*((each, [body]) for each, body in members))
    assert read(flat) == members
    assert len(flat) % 512 == 0


# A tree of everything that a file system and all the tools can hold.
TREE: Sequence[Member] = [
    (entry(b"d", Kind.DIRECTORY, mode=0o1777, uid=3, gid=4, mtime_ns=T, xattrs={b"user.d": b"\0\xff"}), ()),
    file(b"d/cap", b"c" * 5000, mode=0o755, mtime_ns=T, xattrs={b"security.capability": CAPABILITY}),
    (entry(b"d/disk", Kind.BLOCK, mode=0o660, device=(259, 70000), mtime_ns=NANO), ()),
    file(b"d/f", b"f" * 512, mode=0o6755, uid=70000, gid=3_000_000_000, mtime_ns=T + 2),
    link(b"d/h", b"d/f", Kind.HARDLINK, mode=0o6755, uid=70000, gid=3_000_000_000, mtime_ns=T + 2),
    (entry(b"d/null", Kind.CHARACTER, mode=0o666, device=(1, 3), mtime_ns=NANO), ()),
    file(b"d/old", b"", mtime_ns=-1_500_000_000),
    (entry(b"d/p", Kind.FIFO, mode=0o620, mtime_ns=T), ()),
    link(b"d/s", b"../no/where/" + b"t" * 200, mode=0o777, uid=6, gid=7, mtime_ns=T + 3),
    (entry(b"d/" + b"long" * 40, Kind.DIRECTORY, mtime_ns=T), ()),
    file(b"d/" + b"long" * 40 + b"/" + b"name" * 50, b"long", mtime_ns=T, xattrs={b"user.a": b"1\n2"}),
    file("d/ü".encode(), b"umlaut", mtime_ns=T),
    link("d/ü-link".encode(), "ü".encode(), mode=0o777, mtime_ns=T),
    file(b"d/\xff\xfe", b"name that is no text", mtime_ns=T),
]
FORMATS = {
    Kind.FILE: stat.S_IFREG,
    Kind.HARDLINK: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}


def seen_of(member: Member, body: bytes) -> Seen:
    """What is to be seen of a member of TREE, whose bytes are `body`, when it is unpacked."""
    each = member[0]
    is_shared = body == b"f" * 512
    target = each.target if each.kind is Kind.SYMLINK else b""
    return Seen(
        mode=FORMATS[each.kind] | each.mode,
        uid=each.uid,
        gid=each.gid,
        mtime_ns=each.mtime_ns,
        size=len(body or target),
        nlink=0 if each.kind is Kind.DIRECTORY else 1 + is_shared,
        device=os.makedev(*each.device),
        target=target,
        content=hashlib.sha256(body).digest() if FORMATS[each.kind] == stat.S_IFREG else b"",
        group=b"d/f" if is_shared else b"",
        xattrs=tuple(sorted(each.xattrs.items())),
    )


def unpacked_tree() -> dict[bytes, Seen]:
    """What unpacking TREE is to make, the root left out."""
    bodies = {each.path: b"".join(chunks) for each, chunks in TREE}
    by_path = [(member[0].path, member) for member in TREE]
    linked = {each.path: each.target for each, _ in TREE if each.kind is Kind.HARDLINK}
    return {member[0].path: seen_of(member, bodies[linked.get(path, path)]) for path, member in by_path}


def compare(root: Path) -> None:
    actual = walk_directory(root)
    del actual[b""]
    assert differences(unpacked_tree(), actual) == []


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")


@needs_root
@pytest.mark.parts
@pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed")
def test_umoci_unpacks_the_same_tree(tmp_path: Path) -> None:
    compare(unpack(tmp_path, [written(*TREE)]))


@needs_root
def test_gnu_tar_unpacks_the_same_tree(tmp_path: Path) -> None:
    command = ["tar", "-xp", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", str(tmp_path)]
    done = subprocess.run(
        command, input=written(*TREE), check=False, capture_output=True, timeout=allowed(60)
    )
    assert (done.returncode, done.stdout) == (0, b"")
    compare(tmp_path)


def test_the_standard_library_reads_the_same_members() -> None:
    with tarfile.open(fileobj=io.BytesIO(written(*TREE)), errorlevel=2) as archive:
        found = archive.getmembers()
        bodies = {each.name: archive.extractfile(each) for each in found if each.isreg()}
        names = [os.fsencode(each.name) for each in found]
        assert names == [each.path for each, _ in TREE]
        for (each, chunks), info in zip(TREE, found, strict=True):
            assert (info.mode, info.uid, info.gid, info.size) == (each.mode, each.uid, each.gid, each.size)
            assert os.fsencode(info.linkname) == each.target
            assert (info.devmajor, info.devminor) == each.device
            assert info.mtime == pytest.approx(each.mtime_ns / NANO)
            file = bodies.get(info.name)
            assert (file.read() if file else b"") == b"".join(chunks)
