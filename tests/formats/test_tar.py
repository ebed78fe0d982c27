from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import InvalidImage
from imgfs.layer.entry import Entry, Extent, Kind
from imgfs.layer.tar.pax import parse_decimal
from imgfs.layer.tar.reader import parse_tar, tar_entries
from tests.support import tarmake
from tests.support.tarmake import GNU, V7, archive, header, member, pax

NANO = 1_000_000_000
MIB = 1 << 20


def only(*members: bytes) -> Entry:
    """The one entry of an archive of these blocks."""
    (entry,) = tar_entries(archive(*members))
    return entry


def content(entry: Entry, flat: bytes) -> bytes:
    """A file's bytes, its holes filled with NULs."""
    body = bytearray(entry.size)
    for extent in entry.extents:
        body[extent.offset : extent.offset + extent.length] = flat[extent.flat : extent.flat + extent.length]
    assert len(body) == entry.size
    return bytes(body)


def refusal(flat: bytes) -> InvalidImage:
    """The error that reading these bytes ends in."""
    with pytest.raises(InvalidImage) as caught:
        tar_entries(flat)
    return caught.value


def serve(flat: bytes, chunks: Iterator[int] | None = None) -> tuple[list[Entry], int]:
    """Drive the reader over a stream cut into chunks, keeping no more than it may ask for, as a scan does."""
    entries: list[Entry] = []
    reader = parse_tar(entries.append)
    base, arrived, buffer, asked = 0, 0, b"", 0
    try:
        want = next(reader)
        while True:
            assert want.offset >= asked
            assert 0 < want.length <= MIB + 512
            asked = want.offset + want.length
            while arrived < min(asked, len(flat)):
                size = next(chunks) if chunks else len(flat)
                buffer, arrived = buffer + flat[arrived : arrived + size], min(arrived + size, len(flat))
                dropped = min(max(0, want.offset - base), len(buffer))
                buffer, base = buffer[dropped:], base + dropped
            want = reader.send(buffer[want.offset - base :][: want.length])
    except StopIteration as done:
        return entries, done.value


# What a member is


@pytest.mark.parametrize(
    ("typeflag", "kind"),
    [
        (b"0", Kind.FILE),
        (b"\0", Kind.FILE),
        (b"7", Kind.FILE),
        (b"1", Kind.HARDLINK),
        (b"2", Kind.SYMLINK),
        (b"3", Kind.CHARACTER),
        (b"4", Kind.BLOCK),
        (b"5", Kind.DIRECTORY),
        (b"6", Kind.FIFO),
        (b"D", Kind.DIRECTORY),
        (b"Z", Kind.FILE),
    ],
)
def test_the_typeflag_says_what_a_member_is_and_an_unknown_one_is_a_file(typeflag: bytes, kind: Kind) -> None:
    assert only(header(b"x", typeflag)).kind is kind


def test_a_file_with_a_trailing_slash_is_a_directory_in_a_v7_tar() -> None:
    entry = only(header(b"etc/", b"\0", magic=V7))
    assert (entry.kind, entry.path, entry.size) == (Kind.DIRECTORY, b"etc/", 0)


@pytest.mark.parametrize("typeflag", [b"0", b"7"])
def test_a_file_with_a_trailing_slash_stays_a_file_where_the_typeflag_says_so(typeflag: bytes) -> None:
    first, second = tar_entries(archive(member(b"etc/", typeflag, b"x" * 600), tarmake.file("z")))
    assert (first.kind, first.size, second.path) == (Kind.FILE, 600, b"z")


def test_an_old_directory_has_no_payload_whatever_its_size_says() -> None:
    flat = archive(header(b"etc/", b"\0", size=600, magic=V7), tarmake.file("z"))
    assert [entry.path for entry in tar_entries(flat)] == [b"etc/", b"z"]


@pytest.mark.parametrize("typeflag", [b"V", b"N", b"A", b"E", b"I"])
def test_vendor_metadata_is_skipped_with_its_payload_and_the_extensions_before_it(typeflag: bytes) -> None:
    flat = archive(pax({b"path": b"gone"}), member(b"label", typeflag, b"x" * 700), tarmake.file("f"))
    assert [entry.path for entry in tar_entries(flat)] == [b"f"]


@pytest.mark.parametrize("typeflag", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_links_devices_directories_and_fifos_have_no_payload_whatever_their_size_says(
    typeflag: bytes,
) -> None:
    first, second = tar_entries(archive(header(b"a", typeflag, size=1000), tarmake.file("b")))
    assert (first.size, first.extents, second.path) == (0, (), b"b")


def test_only_links_have_targets_and_only_devices_have_numbers() -> None:
    every = {"target": b"there", "device": (4, 5)}
    entries = tar_entries(archive(*(header(b"x", flag, **every) for flag in (b"0", b"1", b"2", b"3", b"6"))))  # type: ignore[arg-type]  # passed on
    assert [entry.target for entry in entries] == [b"", b"there", b"there", b"", b""]
    assert [entry.device for entry in entries] == [(0, 0), (0, 0), (0, 0), (4, 5), (0, 0)]


def test_v7_had_no_device_numbers() -> None:
    assert only(header(b"x", b"3", magic=V7, patch={329: b"0000004\0"})).device == (0, 0)


def test_a_file_is_one_extent_of_the_flat_layer_and_an_empty_one_none() -> None:
    flat = archive(tarmake.file("a", b"x" * 600), tarmake.file("b"), tarmake.file("c", b"y"))
    assert [entry.extents for entry in tar_entries(flat)] == [
        (Extent(0, 600, 512),),
        (),
        (Extent(0, 1, 2560),),
    ]


def test_the_mode_is_twelve_bits_without_the_file_type_some_writers_add() -> None:
    assert only(header(b"x", mode=0o104755)).mode == 0o4755


# Names


def test_posix_ustar_puts_the_prefix_before_the_name() -> None:
    assert only(header(b"name", prefix=b"some/where")).path == b"some/where/name"


def test_fields_that_fill_their_room_have_no_nul() -> None:
    entry = only(header(b"n" * 100, b"2", target=b"t" * 100, prefix=b"p" * 155))
    assert (entry.path, entry.target) == (b"p" * 155 + b"/" + b"n" * 100, b"t" * 100)


def test_star_keeps_times_behind_a_shorter_prefix() -> None:
    entry = only(header(b"name", prefix=b"p" * 131, patch={476: b"01234567012 ", 508: b"tar\0"}))
    assert entry.path == b"p" * 131 + b"/name"


@pytest.mark.parametrize("magic", [GNU, V7])
def test_gnu_and_v7_have_no_prefix(magic: bytes) -> None:
    times = b"13371337133\0" * 2
    assert only(header(b"name", magic=magic, prefix=times)).path == b"name"


def test_a_prefix_under_gnu_magic_counts_if_it_cannot_be_times_as_old_go_wrote_it() -> None:
    assert only(header(b"name", magic=GNU, prefix=b"a/long/directory/name")).path == (
        b"a/long/directory/name/name"
    )


def test_gnu_long_names_replace_path_and_target_of_the_next_member_only() -> None:
    long = tarmake.gnu_long(b"p" * 5000, b"t" * 3000)
    flat = archive(long, header(b"short", b"2", target=b"near", magic=GNU), header(b"b", b"2", target=b"c"))
    assert [(entry.path, entry.target) for entry in tar_entries(flat)] == [
        (b"p" * 5000, b"t" * 3000),
        (b"b", b"c"),
    ]


def test_a_gnu_long_name_ends_at_its_nul() -> None:
    assert only(member(b"././@LongLink", b"L", b"name\0junk"), header(b"x", magic=GNU)).path == b"name"


# Numbers


@pytest.mark.parametrize(
    ("field", "mtime"),
    [
        (b"00000000017\0", 15),
        (b"         17 ", 15),
        (b"17\0\0\0\0\0\0\0\0\0\0", 15),
        (b"17 \0        ", 15),
        (b"17\0garbage!!", 15),
        (b"\0" * 12, 0),
        (b" " * 12, 0),
        (b"777777777777", 8**12 - 1),
        (tarmake.base256(1 << 40, 12), 1 << 40),
        (tarmake.base256(-1, 12), -1),
        (tarmake.base256(-(1 << 40), 12), -(1 << 40)),
    ],
)
def test_numbers_are_octal_however_padded_or_base_256(field: bytes, mtime: int) -> None:
    assert only(header(b"x", patch={136: field})).mtime_ns == mtime * NANO


@pytest.mark.parametrize(
    "field",
    [b"12x", b"9", b"-1", b"+1", b"0o7", b"1_0", b"1\t", b"1 2", b"\x0b17", tarmake.base256(1 << 70, 12)],
)
@pytest.mark.parametrize("at", [124, 136])
def test_garbage_numbers_are_refused(field: bytes, at: int) -> None:
    error = refusal(archive(tarmake.file("ok"), header(b"x", patch={at: field.ljust(12, b"\0")})))
    assert error.where == "tar offset 512"


def test_a_file_of_8_gib_and_more_has_a_base_256_size() -> None:
    entries: list[Entry] = []
    reader = parse_tar(entries.append)
    next(reader)
    assert reader.send(header(b"big", size=9 << 30)).offset == 512 + (9 << 30) - 1
    assert entries[0].extents == (Extent(0, 9 << 30, 512),)


def test_owners_are_32_bits_and_negative_ones_wrap() -> None:
    entry = only(header(b"x", owner=(0xFFFFFFFF, -2)))
    assert (entry.uid, entry.gid) == (0xFFFFFFFF, 0xFFFFFFFE)


@pytest.mark.parametrize(
    "block",
    [
        header(b"x", size=-1),
        header(b"x", b"5", size=-1),
        header(b"x", size=(1 << 63) - 1),
        header(b"x", size=1 << 63),
        header(b"x", owner=(1 << 32, 0)),
        header(b"x", owner=(0, -(1 << 40))),
        header(b"x", b"3", device=(1 << 33, 0)),
        header(b"x", b"4", device=(0, -1)),
        pax({b"size": b"%d" % (1 << 63)}) + header(b"x"),
        pax({b"size": b"-1"}) + header(b"x"),
        pax({b"uid": b"%d" % (1 << 32)}) + header(b"x"),
    ],
)
def test_absurd_numbers_are_refused(block: bytes) -> None:
    assert "out of range" in str(refusal(archive(block)))


@given(st.integers(-(1 << 62), 1 << 62))
def test_base_256_holds_any_number(value: int) -> None:
    assert only(header(b"x", patch={136: tarmake.base256(value, 12)})).mtime_ns == value * NANO


# Checksums


def test_a_checksum_may_be_the_sum_of_signed_bytes() -> None:
    name = b"caf\xc3\xa9"
    unsigned = int(header(name)[148:154], 8)
    assert only(header(name, checksum=b"%06o\0 " % (unsigned - 2 * 256))).path == name


@given(st.binary(min_size=1, max_size=100), st.binary(max_size=155))
def test_checksums_are_exact_for_any_bytes(name: bytes, rest: bytes) -> None:
    block = header(name, patch={265: rest[:64], 345: b"\0", 380: rest[:120]})
    assert only(block).path == name.partition(b"\0")[0]
    wrong = bytearray(block)
    wrong[400] ^= 1
    assert "checksum" in str(refusal(bytes(wrong)))


def test_a_corrupt_header_in_mid_archive_is_refused_not_taken_for_the_end() -> None:
    flat = bytearray(archive(tarmake.file("a", b"x"), tarmake.file("b"), tarmake.file("c")))
    flat[1024 + 3] ^= 0x40
    error = refusal(bytes(flat))
    assert error.where == "tar offset 1024"
    assert "checksum" in str(error)


def test_a_text_is_said_to_be_no_tar_and_not_to_have_a_number_that_is_none() -> None:
    said = str(refusal(b"root:x:0:0:root:/root:/bin/bash\n" * 32))
    assert said == "tar offset 0: not a tar header: its checksum is not a number"


# PAX


def test_pax_records_override_the_header_for_one_member() -> None:
    records = {b"path": b"p", b"size": b"3", b"uid": b"70000", b"gid": b"80000", b"mtime": b"5.25"}
    first, second = tar_entries(archive(pax(records), header(b"x") + tarmake.padded(b"abc"), header(b"y")))
    assert first[:7] == (b"p", Kind.FILE, 0o644, 70000, 80000, 3, 5 * NANO + NANO // 4)
    assert first.extents == (Extent(0, 3, 1536),)
    assert second[:7] == (b"y", Kind.FILE, 0o644, 0, 0, 0, 0)


def test_pax_linkpath_overrides_the_target() -> None:
    assert only(pax({b"linkpath": b"far"}), header(b"x", b"2", target=b"near")).target == b"far"


@pytest.mark.parametrize(
    ("text", "mtime_ns"),
    [
        (b"1700000000.123456789", 1700000000123456789),
        (b"1700000000.1234567899", 1700000000123456789),
        (b"-1.5", -1500000000),
        (b"-0.000000001", -1),
        (b"7.", 7 * NANO),
        (b"0" * 30 + b"16.5", 16_500_000_000),
        (b"+7", 7 * NANO),
        (b"-" + b"0" * 5000 + b"7", -7 * NANO),
        (b"0.03", 30000000),
    ],
)
def test_pax_times_are_exact_to_the_nanosecond_and_may_be_negative(text: bytes, mtime_ns: int) -> None:
    assert only(pax({b"mtime": text}), header(b"x", mtime=9)).mtime_ns == mtime_ns


def test_numbers_are_limited_in_value_not_in_digits() -> None:
    zeros = b"0" * 5000
    records = {b"size": zeros + b"6", b"uid": b"+" + zeros + b"7", b"gid": zeros}
    entry = only(pax(records), member(b"x", b"0", b"sixsix", owner=(1, 1)))
    assert (entry.size, entry.uid, entry.gid) == (6, 7, 0)
    padded = b"00000000024 path=longer\n"
    assert only(member(b"pax", b"x", padded), header(b"x")).path == b"longer"
    for number in (b"1" + b"0" * 19, b"9" * 5000, b"0x10", b"", b"+", b"--1", b" 1"):
        with pytest.raises(InvalidImage):
            parse_decimal(number)


def test_what_a_global_header_says_counts_for_no_member() -> None:
    flat = archive(
        pax({b"uid": b"7", b"mtime": b"3", b"SCHILY.xattr.user.x": b"v" * 5000}, b"g"),
        header(b"a", owner=(5, 0)),
        pax({b"uid": b"8"}),
        header(b"b"),
    )
    entries = tar_entries(flat)
    assert [(entry.uid, entry.mtime_ns, entry.xattrs) for entry in entries] == [(5, 0, {}), (8, 0, {})]


def test_a_global_header_ends_what_others_have_said_before_it() -> None:
    before = pax({b"path": b"lost", b"uid": b"9"}) + tarmake.gnu_long(target=b"t" * 200)
    entry = only(before, pax({b"uid": b"7"}, b"g"), header(b"x", b"2", target=b"t"))
    assert (entry.path, entry.uid, entry.target) == (b"x", 0, b"t")


def test_an_empty_xattr_is_empty() -> None:
    flat = archive(pax({b"SCHILY.xattr.user.x": b"", b"path": b""}), header(b"a"))
    assert tar_entries(flat) == [only(header(b"a"))._replace(xattrs={b"user.x": b""})]


def test_of_a_repeated_record_the_last_counts() -> None:
    assert only(pax([(b"path", b"one"), (b"path", b"two")]), header(b"x")).path == b"two"


def test_the_record_length_rules_so_xattrs_are_binary() -> None:
    value = b"a\0b\n12 path=evil\n\xff"
    entry = only(pax([(b"SCHILY.xattr.user.bin", value), (b"path", b"new\nline")]), header(b"x"))
    assert (entry.xattrs, entry.path) == ({b"user.bin": value}, b"new\nline")


def test_libarchive_xattrs_have_url_encoded_names_and_base64_values() -> None:
    entry = only(pax({b"LIBARCHIVE.xattr.user.a%3Db": b"AP8"}), header(b"x"))
    assert entry.xattrs == {b"user.a=b": b"\x00\xff"}


def test_the_schily_form_of_an_xattr_is_preferred_to_libarchive_s() -> None:
    records = [(b"SCHILY.xattr.user.a", b"raw"), (b"LIBARCHIVE.xattr.user.a", b"AP8=")]
    assert only(pax(records), header(b"x")).xattrs == {b"user.a": b"raw"}


def test_a_name_that_bsdtar_encodes_in_both_forms_is_one_attribute() -> None:
    records = [(b"LIBARCHIVE.xattr.user.%C3%A9", b"dg"), (b"SCHILY.xattr.user.%C3%A9", b"v")]
    assert only(pax(records), header(b"x")).xattrs == {b"user.%C3%A9": b"v"}


def test_posix_acls_and_unknown_records_are_ignored() -> None:
    records = {b"SCHILY.acl.access": b"user::rw-", b"hdrcharset": b"BINARY", b"VENDOR.x": b"1"}
    assert only(pax({**records, b"path": b"\xff\xfe"}), header(b"x"))[:1] == (b"\xff\xfe",)


def test_solaris_wrote_its_pax_headers_as_a_capital_x() -> None:
    assert only(pax({b"path": b"p"}, b"X"), header(b"x")).path == b"p"


@pytest.mark.parametrize(
    "payload",
    [
        b"8 path=x\n",
        b"11 path=x\n",
        b"10 path=xy",
        b"10path=xyz\n",
        b"x path=y\n",
        b"-10 path=x\n",
        b"00000000000000000010 path=x\n",
        b"8 =path\n",
        b"8 pathx\n",
        b"10 path=x\n\0\0",
        b"\n",
        b"5 a=\n\n",
        tarmake.record(b"path", b"a\0b"),
        tarmake.record(b"linkpath", b"a\0b"),
        tarmake.record(b"SCHILY.xattr.", b"no name"),
        tarmake.record(b"SCHILY.xattr.user.\0", b"x"),
        tarmake.record(b"LIBARCHIVE.xattr.user.x", b"*"),
        tarmake.record(b"uid", b"1_0"),
        tarmake.record(b"size", b"1" * 400),
        tarmake.record(b"mtime", b"1e9"),
        tarmake.record(b"mtime", b".5"),
    ],
)
def test_bad_pax_records_are_refused(payload: bytes) -> None:
    flat = archive(tarmake.file("ok"), member(b"pax", b"x", payload), header(b"x", b"2"))
    assert refusal(flat).where in ("tar offset 512", "tar offset 1536")


@pytest.mark.parametrize("typeflag", [b"x", b"X", b"g", b"L", b"K"])
def test_an_extension_header_may_have_one_mebibyte_and_no_more(typeflag: bytes) -> None:
    record = tarmake.record(b"comment", b"c" * (MIB - 17))
    assert len(record) == MIB
    assert only(member(b"", typeflag, record), header(b"x", b"5")).kind is Kind.DIRECTORY
    assert "more than" in str(refusal(header(b"", typeflag, size=MIB + 1)))


def test_an_extension_header_before_the_end_says_nothing() -> None:
    assert tar_entries(archive(tarmake.file("a"), pax({b"path": b"p"})))[0].path == b"a"


# Sparse members

PIECES = [(0, b"begin"), (4096, b"m" * 700), (100_000, b"end"), (200_000, b"")]


def sparse(form: str, size: int, pieces: list[tuple[int, bytes]], name: bytes = b"sparse") -> bytes:
    return (
        tarmake.sparse_old(name, size, pieces)
        if form == "old"
        else tarmake.sparse_pax(form, name, size, pieces)
    )


FORMS = pytest.mark.parametrize("form", ["old", "0.0", "0.1", "1.0"])


@FORMS
@pytest.mark.parametrize(
    "pieces",
    [PIECES, [], [(200_000, b"")], [(0, b"x" * 200_000)], [(n * 1000, b"%03d" % n) for n in range(150)]],
)
def test_a_sparse_member_has_its_real_name_its_real_size_and_extents(
    form: str, pieces: list[tuple[int, bytes]]
) -> None:
    flat = archive(sparse(form, 200_000, pieces), tarmake.file("next", b"n"))
    entry, after = tar_entries(flat)
    expected = bytearray(200_000)
    for offset, body in pieces:
        expected[offset : offset + len(body)] = body
    assert (entry.path, entry.kind, entry.size) == (b"sparse", Kind.FILE, 200_000)
    assert content(entry, flat) == expected
    assert [extent.offset for extent in entry.extents] == [offset for offset, body in pieces if body]
    assert (after.path, content(after, flat)) == (b"next", b"n")


@FORMS
@pytest.mark.parametrize(
    "pieces",
    [
        [(0, b"abc"), (2, b"x")],
        [(10, b"abc"), (0, b"x")],
        [(98, b"abc")],
        [(101, b"")],
        [(1 << 63, b"x")],
        [(50, b""), (40, b"")],
    ],
    ids=["overlap", "order", "past the end", "empty past the end", "overflow", "empty out of order"],
)
def test_sparse_maps_that_overlap_or_leave_the_file_are_refused(
    form: str, pieces: list[tuple[int, bytes]]
) -> None:
    assert refusal(archive(sparse(form, 100, pieces))).where


@pytest.mark.parametrize("stored", [b"", b"ab", b"abcd"])
def test_a_sparse_map_must_describe_just_what_is_stored(stored: bytes) -> None:
    records = {b"GNU.sparse.map": b"0,3", b"GNU.sparse.size": b"10"}
    assert "stored" in str(refusal(archive(pax(records), member(b"x", body=stored))))


@pytest.mark.parametrize(
    "records",
    [
        {b"GNU.sparse.map": b"0,3"},
        {b"GNU.sparse.map": b"0", b"GNU.sparse.size": b"9"},
        {b"GNU.sparse.map": b"0,x", b"GNU.sparse.size": b"9"},
        {b"GNU.sparse.map": b"-1,3", b"GNU.sparse.size": b"9"},
        {b"GNU.sparse.map": b"0,3", b"GNU.sparse.size": b"9", b"GNU.sparse.numblocks": b"2"},
        {b"GNU.sparse.map": b"0,3", b"GNU.sparse.size": b"-9"},
        {b"GNU.sparse.numbytes": b"3", b"GNU.sparse.offset": b"0", b"GNU.sparse.size": b"9"},
        {b"GNU.sparse.offset": b"0,3", b"GNU.sparse.size": b"9"},
        {b"GNU.sparse.major": b"2", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9"},
    ],
)
def test_bad_sparse_records_are_refused(records: dict[bytes, bytes]) -> None:
    assert refusal(archive(pax(records), member(b"x", body=b"abc"))).where


@pytest.mark.parametrize(
    "head", [b"x\n", b"1\n0\n", b"-1\n", b"\n", b"9" * 30 + b"\n", b"1\n0\nx\n", b"99999\n"]
)
def test_bad_sparse_maps_in_the_payload_are_refused(head: bytes) -> None:
    records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9"}
    assert refusal(archive(pax(records), member(b"x", body=tarmake.padded(head)))).where


def test_an_unknown_typeflag_is_a_file_also_when_it_is_sparse() -> None:
    records = {b"GNU.sparse.map": b"5,3", b"GNU.sparse.size": b"10"}
    flat = archive(pax(records), member(b"x", b"Z", b"abc"))
    assert content(tar_entries(flat)[0], flat) == b"\0\0\0\0\0abc\0\0"


def test_a_sparse_member_needs_gnu_s_magic() -> None:
    assert "magic" in str(refusal(archive(header(b"x", b"S"))))


def endless_map(form: str) -> bytes:
    """More than 1 MiB of sparse map."""
    if form == "old":
        slots = b"".join(tarmake.number(n, 12) + tarmake.number(0, 12) for n in (0,) * 21)
        block = slots + b"\1" + bytes(7)
        return header(b"x", b"S", magic=GNU, patch={482: b"\1"}) + block * 3000
    records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9"}
    return pax(records) + member(b"x", body=b"999999999\n" + b"0\n" * MIB)


@pytest.mark.parametrize("form", ["old", "1.0"])
def test_a_sparse_map_of_more_than_one_mebibyte_is_refused(form: str) -> None:
    assert "larger than 1 MiB" in str(refusal(endless_map(form)))


# The end


def test_the_end_is_two_zero_blocks_and_what_follows_is_not_read() -> None:
    flat = archive(tarmake.file("a", b"x")) + b"garbage" * 1000
    assert serve(flat) == (tar_entries(flat), 1024)


def test_the_end_may_be_one_zero_block_or_none() -> None:
    one = tarmake.file("a", b"x")
    for flat in (one, one + bytes(512), one + bytes(700)):
        assert [entry.path for entry in tar_entries(flat)] == [b"a"]
    assert serve(one)[1] == 512 + 1


def test_nothing_at_all_is_an_empty_archive() -> None:
    assert serve(b"") == ([], 0)


def test_a_lone_zero_block_in_mid_archive_is_refused() -> None:
    error = refusal(tarmake.file("a") + bytes(512) + tarmake.file("b"))
    assert error.where == "tar offset 512"


def test_the_padding_of_the_last_payload_may_be_missing_but_no_byte_of_it() -> None:
    whole = tarmake.file("first") + header(b"last", size=700) + b"x" * 700
    for padding in (0, 1, 323, 324):
        assert [entry.path for entry in tar_entries(whole + bytes(padding))] == [b"first", b"last"]
    error = refusal(whole[:-1])
    assert (error.where, "truncated" in str(error)) == ("tar offset 512", True)


def test_padding_need_not_be_zero() -> None:
    flat = archive(header(b"a", size=3) + b"abc".ljust(512, b"?"), tarmake.file("b"))
    assert [entry.path for entry in tar_entries(flat)] == [b"a", b"b"]


@pytest.mark.parametrize("kept", [1, 511])
def test_a_truncated_header_is_refused(kept: int) -> None:
    error = refusal(tarmake.file("a", b"x") + header(b"b")[:kept])
    assert (error.where, "truncated" in str(error)) == ("tar offset 1024", True)


@pytest.mark.parametrize("extension", [pax({b"path": b"p" * 600}), tarmake.gnu_long(b"p" * 600)])
def test_a_truncated_extension_is_refused(extension: bytes) -> None:
    assert "truncated" in str(refusal(extension[:900]))


@FORMS
def test_a_truncated_sparse_member_is_refused_wherever_it_is_cut(form: str) -> None:
    whole = sparse(form, 200_000, [(n * 1000, b"%03d" % n) for n in range(150)])
    start = whole.rindex(b"ustar") - 257  # of the member's own header, behind its PAX header
    padding = -450 % 512
    for cut in range(start + 1, len(whole) - padding, 23):
        assert "truncated" in str(refusal(whole[:cut]))


# Against other writers


def kind_of(info: tarfile.TarInfo) -> Kind:
    kinds = {tarfile.DIRTYPE: Kind.DIRECTORY, tarfile.SYMTYPE: Kind.SYMLINK, tarfile.LNKTYPE: Kind.HARDLINK}
    kinds |= {tarfile.CHRTYPE: Kind.CHARACTER, tarfile.BLKTYPE: Kind.BLOCK, tarfile.FIFOTYPE: Kind.FIFO}
    return kinds.get(info.type, Kind.FILE)


needs_gnu_tar = pytest.mark.skipif(
    not shutil.which("tar") or b"GNU tar" not in subprocess.check_output(["tar", "--version"]),
    reason="GNU tar is not installed",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with every kind of file that needs no privileges, an awkward name and a sparse file."""
    root = tmp_path / "root"
    (root / ("deep" * 20) / ("er" * 60)).mkdir(parents=True)
    (root / ("deep" * 20) / ("er" * 60) / "file").write_bytes(b"x" * 1000)
    (root / "empty").touch(mode=0o4750)
    (root / "link").symlink_to("far/" * 60)
    (root / "hard").hardlink_to(root / "empty")
    os.mkfifo(root / "fifo")
    Path(os.fsdecode(os.fsencode(root) + b"/n\xff\nname")).write_text("odd")
    with (root / "sparse").open("wb") as file:
        for n in range(40):
            file.seek(n * 65536)
            file.write(b"%d" % n)
        file.truncate(5_000_001)
    os.utime(root / "empty", ns=(0, 1_700_000_000_123_456_789))
    return root


def gnu_tar(root: Path, *options: str) -> bytes:
    command = ["tar", "--sort=name", "-C", str(root), *options, "-cf", "-", "."]
    return subprocess.run(command, check=True, capture_output=True).stdout


def assert_is_the_tree(flat: bytes, root: Path, *, exact_times: bool) -> None:
    """Every entry agrees with the file it was made from, and no file is missing."""
    entries = tar_entries(flat)
    names = {b"."} | {os.fsencode(path.relative_to(root)) for path in root.rglob("*")}
    assert {os.path.normpath(entry.path) for entry in entries} == names
    for entry in entries:
        path = os.path.join(os.fsencode(root), entry.path)
        status = os.lstat(path)
        assert (entry.mode, entry.uid, entry.gid) == (
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
        )
        assert entry.mtime_ns == (status.st_mtime_ns if exact_times else status.st_mtime_ns // NANO * NANO)
        if entry.kind is Kind.FILE:
            assert content(entry, flat) == Path(os.fsdecode(path)).read_bytes()
        elif entry.kind is Kind.SYMLINK:
            assert entry.target == os.readlink(path)
    kinds = {os.path.normpath(entry.path): entry.kind for entry in entries}
    assert (kinds[b"fifo"], kinds[b"link"], kinds[b"."]) == (Kind.FIFO, Kind.SYMLINK, Kind.DIRECTORY)
    assert {kinds[b"hard"], kinds[b"empty"]} == {Kind.FILE, Kind.HARDLINK}


@needs_gnu_tar
@pytest.mark.parametrize(
    "options",
    [
        ("--format=gnu",),
        ("--format=gnu", "--sparse", "--hole-detection=raw"),
        ("--format=oldgnu", "--sparse", "--hole-detection=raw"),
        ("--format=pax",),
        ("--format=pax", "--sparse", "--hole-detection=raw", "--sparse-version=0.0"),
        ("--format=pax", "--sparse", "--hole-detection=raw", "--sparse-version=0.1"),
        ("--format=pax", "--sparse", "--hole-detection=raw", "--sparse-version=1.0"),
        ("--format=gnu", "--label=a volume"),
    ],
    ids=" ".join,
)
def test_what_gnu_tar_writes_is_the_tree_it_was_made_from(tree: Path, options: tuple[str, ...]) -> None:
    flat = gnu_tar(tree, *options)
    assert_is_the_tree(flat, tree, exact_times="--format=pax" in options)
    (found,) = (entry for entry in tar_entries(flat) if entry.path == b"./sparse")
    assert (sum(extent.length for extent in found.extents) < 1_000_000) == ("--sparse" in options)


@needs_gnu_tar
def test_no_volume_of_a_multi_volume_archive_is_a_layer(tmp_path: Path) -> None:
    """The first ends in mid-file, the others begin there: none of them has the file."""
    (tmp_path / "file").write_bytes(b"x" * 30_000)
    volumes = [tmp_path / name for name in ("1.tar", "2.tar", "3.tar")]
    words = [
        "tar",
        "-C",
        str(tmp_path),
        "--format=gnu",
        "-M",
        "-L",
        "20",
        *(f"--file={it}" for it in volumes),
    ]
    subprocess.run([*words, "-c", "file"], check=True, capture_output=True)
    first, second = (volume.read_bytes() for volume in volumes[:2])
    assert "truncated" in str(refusal(first))
    assert "multi-volume" in str(refusal(second))


@needs_gnu_tar
def test_gnu_tar_s_global_headers_apply_to_no_member(tree: Path) -> None:
    flat = gnu_tar(tree, "--format=pax", "--pax-option=globexthdr.name=g,mtime=77,delete=mtime")
    assert 77 * NANO not in {entry.mtime_ns for entry in tar_entries(flat)}


@needs_gnu_tar
def test_gnu_tar_s_xattrs_come_back_byte_for_byte(tree: Path) -> None:
    value = b"\0binary\n=\xff" * 9
    try:
        os.setxattr(tree / "empty", "user.bin", value)
        os.setxattr(tree / "empty", "user.none", b"")
    except OSError as error:
        pytest.skip(f"no user xattrs here: {error}")
    entries = tar_entries(gnu_tar(tree, "--format=pax", "--xattrs"))
    (found,) = (entry for entry in entries if entry.path == b"./empty")
    assert found.xattrs == {b"user.bin": value, b"user.none": b""}


names = st.binary(min_size=1, max_size=5000).filter(lambda name: b"\0" not in name and name[-1:] != b"/")
short_names = st.binary(min_size=1, max_size=100).filter(lambda name: b"\0" not in name and name[-1:] != b"/")
owners = st.integers(0, (1 << 32) - 1)
times = st.integers(-(1 << 62), 1 << 62)
xattrs = st.dictionaries(
    st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & set(b"\0=")),
    st.binary(max_size=300),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, st.binary(max_size=1500), owners, owners, times, xattrs), max_size=4))
def test_any_file_written_is_read_back(
    files: list[tuple[bytes, bytes, int, int, int, dict[bytes, bytes]]],
) -> None:
    flat = archive(
        *(
            tarmake.file(path, body, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=attributes)
            for path, body, uid, gid, mtime_ns, attributes in files
        )
    )
    read = [
        (entry.path, content(entry, flat), entry.uid, entry.gid, entry.mtime_ns, dict(entry.xattrs))
        for entry in tar_entries(flat)
    ]
    assert read == files


@settings(max_examples=60, deadline=None)
@given(names, names)
def test_any_link_written_is_read_back_in_pax_and_in_gnu_form(path: bytes, target: bytes) -> None:
    in_gnu = tarmake.gnu_long(path, target) + header(path, b"2", target=target, magic=GNU)
    for flat in (tarmake.symlink(path, target), in_gnu):
        entry = only(flat)
        assert (entry.path, entry.target) == (path, target)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["old", "0.0", "0.1", "1.0"]),
    st.lists(st.tuples(st.integers(0, 1 << 55), st.binary(max_size=40)), max_size=30),
)
def test_any_sparse_file_however_huge_is_read_back(form: str, gaps: list[tuple[int, bytes]]) -> None:
    pieces, at = [], 0
    for gap, body in gaps:
        pieces.append((at + gap, body))
        at += gap + len(body)
    flat = archive(sparse(form, at, pieces))
    (entry,) = tar_entries(flat)
    read = [(piece.offset, flat[piece.flat : piece.flat + piece.length]) for piece in entry.extents]
    assert (entry.size, read) == (at, [piece for piece in pieces if piece[1]])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.lists(
        st.tuples(
            st.sampled_from(
                [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
            ),
            short_names | names,
            st.binary(max_size=1200),
            st.integers(0, 8**7 - 1),
        ),
        max_size=4,
    ),
)
def test_what_python_s_tarfile_writes_is_read_back(
    form: int, members: list[tuple[bytes, bytes, bytes, int]]
) -> None:
    infos, stream = [], io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as writer:
        for kind, name, body, number in members:
            info = tarfile.TarInfo(
                os.fsdecode(name[:100] if form == tarfile.USTAR_FORMAT else name).rstrip("/")
            )
            info.type, info.uid, info.mtime, info.mode = kind, number, number, number & 0o7777
            info.size = len(body) if kind == tarfile.REGTYPE else 0
            info.linkname = "target" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            writer.addfile(info, io.BytesIO(body))
            infos.append(info)
    flat = stream.getvalue()
    entries = tar_entries(flat)
    assert [
        (entry.path, entry.kind, entry.mode, entry.uid, entry.mtime_ns, entry.target, entry.size)
        for entry in entries
    ] == [
        (
            os.fsencode(info.name),
            kind_of(info),
            info.mode,
            info.uid,
            info.mtime * NANO,
            os.fsencode(info.linkname),
            info.size,
        )
        for info in infos
    ]
    bodies = [body for kind, _, body, _ in members if kind == tarfile.REGTYPE]
    assert [content(entry, flat) for entry in entries if entry.kind is Kind.FILE] == bodies


def test_tarfile_s_ustar_prefix_is_read_back() -> None:
    stream = io.BytesIO()
    path = "d" * 60 + "/" + "e" * 80 + "/" + "f" * 90
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as writer:
        writer.addfile(tarfile.TarInfo(path))
    assert [entry.path for entry in tar_entries(stream.getvalue())] == [path.encode()]


# Streams and hostile bytes

EVERYTHING = archive(
    pax({b"comment": b"git", b"gid": b"9"}, b"g"),
    tarmake.directory("etc/", xattrs={b"user.a": b"1"}),
    tarmake.file("etc/passwd", b"root" * 300, mtime_ns=1_700_000_000_000_000_001),
    tarmake.file("p" * 300, b"x"),
    tarmake.symlink("l", "t" * 200),
    tarmake.hardlink("h", "etc/passwd"),
    tarmake.device("null", "c", 1, 3),
    tarmake.fifo("pipe"),
    tarmake.whiteout("usr/gone"),
    tarmake.opaque("var"),
    tarmake.gnu_long(b"q" * 600, b"r" * 600),
    header(b"q", b"1", magic=GNU, owner=(-5, 3)),
    *(
        sparse(form, 50_000, [(n * 1000, b"%d" % n) for n in range(30)])
        for form in ("old", "0.0", "0.1", "1.0")
    ),
)


def test_whiteouts_are_entries_like_any_other() -> None:
    paths = [entry.path for entry in tar_entries(EVERYTHING)]
    assert {b"usr/.wh.gone", b"var/.wh..wh..opq"} <= set(paths)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=20))
def test_a_stream_cut_anywhere_reads_like_the_whole(sizes: list[int]) -> None:
    chunks = (sizes[n % len(sizes)] for n in range(len(EVERYTHING)))
    assert serve(EVERYTHING, chunks) == (tar_entries(EVERYTHING), len(EVERYTHING) - 1024)


def with_right_checksums(flat: bytearray) -> bytes:
    """Mend the checksum of whatever block has a magic, so that damage gets past it."""
    for at in range(0, len(flat) - 511, 512):
        if flat[at + 257 : at + 262] == b"ustar":
            flat[at + 148 : at + 156] = b" " * 8
            flat[at + 148 : at + 156] = b"%06o\0 " % sum(flat[at : at + 512])
    return bytes(flat)


def read_or_refused(flat: bytes) -> tuple[list[Entry], int] | InvalidImage:
    try:
        return serve(flat)
    except InvalidImage as error:
        return error


damage = st.tuples(st.integers(0, len(EVERYTHING) - 1), st.binary(min_size=1, max_size=12))


@settings(max_examples=300, deadline=None)
@given(st.lists(damage, min_size=1, max_size=6), st.integers(0, len(EVERYTHING)), st.booleans())
def test_damaged_archives_are_read_or_refused_and_nothing_else(
    damages: list[tuple[int, bytes]], cut: int, mend: bool
) -> None:
    flat = bytearray(EVERYTHING)
    for at, junk in damages:
        flat[at : at + len(junk)] = junk
    hostile = with_right_checksums(flat) if mend else bytes(flat[: cut or None])
    outcome = read_or_refused(hostile)
    if isinstance(outcome, InvalidImage):
        assert (outcome.where or "").startswith("tar offset ")
    else:
        entries, end = outcome
        assert end <= len(hostile)
        assert all(extent.flat + extent.length <= end for entry in entries for extent in entry.extents)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000))
def test_bytes_that_are_no_tar_are_refused(junk: bytes) -> None:
    if junk.strip(b"\0"):
        assert refusal(junk).where
