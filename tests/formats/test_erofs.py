"""Trees as EROFS images: what is written, what the kernel shows of it, and what erofs-utils thinks of it."""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs import syscalls
from imgfs.errors import InvalidImage, StoreError
from imgfs.kernel import erofs_format
from imgfs.kernel.chunk_index import AssembledDevice, AssembledRange, Chunks, chunks_of
from imgfs.kernel.erofs_format import FORMAT
from imgfs.kernel.erofs_image import image_uuid, make_image, spawn_writer
from imgfs.kernel.mkfs import write_image
from imgfs.kernel.passthrough import drop_cached_pages_now
from imgfs.layer.entry import Entry, Extent, Kind
from imgfs.oci.descriptor import Digest
from imgfs.store.store import Store
from imgfs.tree.reader import Tree
from tests.mount.test_mount import highest, lowest, middle
from tests.support import tarmake as tar
from tests.support.layers import merged
from tests.support.umoci_oracle import differences, reader, walk_directory, walk_tree
from tests.support.union_sights import TarBytes

UUID = bytes(range(16))
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount EROFS")
ODD_NAMES = [b"!before-the-dots", b"-", b".", b"..", b"...", b".hidden", b"\x01", b"\xff\xfe", b"n" * 255]


def test_the_process_that_writes_loads_nothing_from_where_the_mount_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of root's `imgfs mount --foreground` in another user's directory."""
    (tmp_path / "contextlib.py").write_text(f"open({str(tmp_path / 'loaded')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    before = set(threading.enumerate())
    spawn_writer(Digest.of(b"none"), [], Store(tmp_path / "store"))
    for thread in set(threading.enumerate()) - before:  # which waits for the process
        thread.join()
    assert sorted(os.listdir(tmp_path)) == ["contextlib.py", "store"]


def image_of(tree: Tree, *layers: bytes, block_bits: int = 9) -> bytes:
    file = io.BytesIO()
    write_image(tree, [len(layer) for layer in layers], file, uuid=UUID, block_bits=block_bits)
    return file.getvalue()


def assembled_bytes(image: bytes, tree: Tree, layers: Sequence[bytes], block_bits: int) -> bytes:
    """What the last device holds: as `fuse.erofs_devices` puts it together."""
    body = b""
    content = TarBytes(*layers)
    table = AssembledDevice.read(io.BytesIO(image), block_bits)
    for part in table.parts(0, table.size):
        node = tree.node(part.ino)
        assert node is not None
        layer, extents = tree.extents(part.ino)
        body += content.read(layer, extents, 0, node.size).ljust(part.length, b"\0")
    return body


def write_devices(
    directory: Path, image: bytes, tree: Tree, layers: Sequence[bytes], bits: int
) -> list[Path]:
    """The image's file and those of its devices."""
    bodies = [image, *layers, assembled_bytes(image, tree, layers, bits)]
    paths = [directory / f"device-{bits}-{number}" for number in range(len(bodies))]
    for path, body in zip(paths, bodies, strict=True):
        path.write_bytes(body + bytes(-len(body) % 512))
    return paths


@contextmanager
def mounted(directory: Path, tree: Tree, layers: Sequence[bytes], block_bits: int = 9) -> Iterator[Path]:
    """The image of a tree, in the kernel."""
    image = image_of(tree, *layers, block_bits=block_bits)
    paths = write_devices(directory, image, tree, layers, block_bits)
    options = [("source", str(paths[0])), *(("device", str(path)) for path in paths[1:])]
    at = directory / "mounted"
    at.mkdir()
    mount = syscalls.new_mount("erofs", options, syscalls.MOUNT_ATTR_RDONLY)
    place = os.open(at, os.O_PATH)
    syscalls.attach_mount(mount, place)
    os.close(place)
    os.close(mount)
    try:
        yield at
    finally:
        syscalls.detach_mount(str(at))


@pytest.fixture
def odd_layer() -> bytes:
    """Names that sort around the dots, targets and attributes of every length, files that lie anyhow."""
    targets = [b"t" * length for length in (1, 400, 440, 448, 449, 512, 1000, 4095)]
    lengths = [0, 1, 2, 511, 512, 513, 4096, 70_000]
    return tar.archive(
        *(tar.file(b"names/" + name, name) for name in ODD_NAMES if name not in (b".", b"..")),
        *(tar.symlink(b"links/%d" % number, target) for number, target in enumerate(targets)),
        *(tar.file(f"data/{length}", b"d" * length) for length in lengths),
        *(
            tar.file(f"xattrs/{length}", b"x", xattrs={b"user.long": b"l" * length, b"trusted.x": b"\0"})
            for length in (1, 300, 500, 20_000)
        ),
        tar.directory("empty"),
        tar.sparse_old("torn", 5000, [(0, b"a" * 100), (1000, b"b" * 7)]),
        tar.device("devices/large", "b", 4095, 1048575),
        tar.device("devices/small", "c", 1, 3),
    )


# -- the format ----------------------------------------------------------------------------------------------


def test_the_checksum_is_crc32c() -> None:
    assert (
        erofs_format.crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283
    )  # the check value of every catalogue of CRCs


def test_a_superblock_is_where_and_what_the_kernel_looks_for(tmp_path: Path) -> None:
    with merged(tmp_path, tar.archive(tar.file("a", b"1"))) as tree:
        image = image_of(tree, bytes(2048))
    magic, _, compat, block_bits = struct.unpack_from("<3IB", image, 1024)
    assert (magic, compat, block_bits) == (0xE0F5E1E2, 3, 9)
    assert struct.unpack_from("<HH", image, 1024 + 86) == (2, 9)  # two devices, described at 9 * 128
    assert erofs_format.read_uuid(image[:2048]) == UUID
    assert erofs_format.read_uuid(image[:1100]) is None
    assert erofs_format.read_uuid(bytes(2048)) is None


@given(
    st.lists(st.binary(min_size=1, max_size=255).filter(lambda n: b"\0" not in n), unique=True),
    st.sampled_from([512, 4096]),
)
def test_a_directory_is_as_long_as_foretold_and_its_blocks_say_what_is_in_them(
    names: list[bytes], block: int
) -> None:
    entries = [(name, number, 1) for number, name in enumerate(sorted(names))]
    blocks = list(erofs_format.pack_directory(entries, block))
    assert sum(map(len, blocks)) == erofs_format.directory_size(map(len, sorted(names)), block)
    assert {len(full) for full in blocks[:-1]} <= {block}
    assert [entry for body in blocks for entry in read_dirents(body)] == entries


def read_dirents(body: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The entries of a block of a directory, as the kernel finds them."""
    if not body:
        return
    heads = list(struct.iter_unpack("<QHBB", body[: struct.unpack_from("<H", body, 8)[0]]))
    ends = [head[1] for head in heads[1:]] + [len(body)]
    for (nid, start, kind, _), end in zip(heads, ends, strict=True):
        yield body[start:end].rstrip(b"\0") if end == len(body) else body[start:end], nid, kind


@pytest.mark.parametrize(
    ("size", "extents", "expected"),
    [
        (1, [(0, 1, 512)], Chunks(0, [1])),
        (512, [(0, 512, 1024)], Chunks(0, [2])),
        (513, [(0, 513, 512)], Chunks(1, [1])),
        (100_000, [(0, 100_000, 512 * 3)], Chunks(8, [3])),
        (100, [], Chunks(0, [None])),
        (100, [(0, 100, 100)], None),  # not at a whole block of its layer
        (5000, [(0, 1024, 512), (4096, 904, 1536)], Chunks(1, [1, None, None, None, 3])),
        (5000, [(4608, 10, 512)], None),  # ends within a block, of which the layer has something else
        (5000, [(100, 10, 512)], None),
        (1 << 41, [(0, 1 << 41, 0)], Chunks(31, [0, 1 << 31])),
        (1 << 41, [(512, 512, 512)], None),  # so many chunks would be more than the file's bytes
    ],
)
def test_a_file_is_chunks_of_its_layer_if_it_lies_at_whole_blocks(
    size: int, extents: list[tuple[int, int, int]], expected: Chunks | None
) -> None:
    found = chunks_of(size, [Extent(*extent) for extent in extents], 9)
    assert found if expected else found is None
    if found and expected:
        assert (found.bits, list(found.starts)) == (expected.bits, list(expected.starts))


# -- what lies otherwise -------------------------------------------------------------------------------------


def test_assembled_files_stand_one_behind_the_other(tmp_path: Path) -> None:
    table = AssembledDevice(9)
    assert [table.add(7, 100), table.add(8, 513), table.add(9, 1)] == [0, 1, 3]
    body = io.BytesIO()
    table.write(body)
    found = AssembledDevice.read(body, 9)
    assert found.size == table.size == 2048
    assert list(found.parts(0, 2048)) == [
        AssembledRange(7, 0, 512),
        AssembledRange(8, 0, 1024),
        AssembledRange(9, 0, 512),
    ]
    assert list(found.parts(600, 1000)) == [AssembledRange(8, 88, 936), AssembledRange(9, 0, 64)]
    assert list(found.parts(2000, 1000)) == [AssembledRange(9, 464, 48)]


@pytest.mark.parametrize("cut", [1, 24, 30])
def test_a_table_that_is_cut_off_is_damaged(cut: int) -> None:
    table, body = AssembledDevice(9), io.BytesIO()
    table.add(7, 100)
    table.write(body)
    with pytest.raises(StoreError, match="EROFS image is damaged"):
        AssembledDevice.read(io.BytesIO(body.getvalue()[:-cut]), 9)


# -- what is kept --------------------------------------------------------------------------------------------


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    images = []
    for _ in range(2):
        with merged(tmp_path, lowest(), middle()) as tree:
            images.append(image_of(tree, lowest(), middle()))
    assert images[0] == images[1]


def test_an_image_is_written_once_and_again_for_another_tree(tmp_path: Path) -> None:
    store, digest = Store(tmp_path / "store"), Digest.of(b"manifest")
    layer = tar.archive(tar.file("a", b"1"))
    with merged(tmp_path, layer) as tree:
        found = make_image(tree, digest, [len(layer)], store)
        before = found.path.stat()
        assert f"{digest.hex}-{FORMAT}" in found.path.name
        assert make_image(tree, digest, [len(layer)], store).path.stat().st_ino == before.st_ino
        assert image_uuid(tree, [len(layer)]) != image_uuid(tree, [len(layer) + 512])
    with merged(tmp_path, layer, tar.archive(tar.file("b"))) as tree:
        assert make_image(tree, digest, [len(layer), 2048], store).path.stat().st_ino != before.st_ino
    assert [path.name for path in found.path.parent.iterdir()] == [found.path.name]


def test_a_file_that_lies_beyond_its_layer_is_refused(tmp_path: Path) -> None:
    entry = Entry(b"a", Kind.FILE, 0o644, 0, 0, 100, 0, extents=(Extent(0, 100, 1 << 20),))
    with merged(tmp_path, [entry]) as tree, pytest.raises(InvalidImage, match="outside of its layer"):
        image_of(tree, b"")


def test_attributes_that_erofs_has_no_room_for_are_unsuitable(tmp_path: Path) -> None:
    xattrs = {b"user.large": bytes(65536)}
    entry = Entry(b"a", Kind.FILE, 0o644, 0, 0, 0, 0, xattrs=xattrs)
    with merged(tmp_path, [entry]) as tree, pytest.raises(erofs_format.Unsuitable, match="65536 bytes"):
        image_of(tree, b"")


@pytest.mark.parametrize("size", [(1 << 62) - 4096, (1 << 63) - 1, 1 << 42])
@pytest.mark.parametrize("extents", [(), (Extent(0, 512, 512),), (Extent(1, 100, 512),)])
def test_a_file_larger_than_erofs_can_place_is_unsuitable_and_costs_nothing(
    tmp_path: Path, size: int, extents: tuple[Extent, ...]
) -> None:
    entries = [Entry(b"%d" % n, Kind.FILE, 0o644, 0, 0, size, 0, extents=extents) for n in range(3)]
    with merged(tmp_path, entries) as tree:
        assert tree.resolve(b"0").size == size
        if size == 1 << 42 and not extents:
            assert len(image_of(tree, b"")) < 100_000
            return
        with pytest.raises(erofs_format.Unsuitable, match=f"a file of {size} bytes"):
            image_of(tree, bytes(1024))


def test_a_sparse_file_has_few_chunks_unless_much_of_it_is_stored() -> None:
    assert chunks_of(512 * 5000, (Extent(0, 512, 0), Extent(512 * 4999, 512, 512)), 9) is None
    many = tuple(Extent(1024 * number, 512, 512 * number) for number in range(2500))
    assert chunks_of(512 * 5000, many, 9)


# -- the kernel, and erofs-utils -----------------------------------------------------------------------------


@pytest.mark.kernel
@NEEDS_ROOT
@pytest.mark.parametrize("block_bits", [9, 12])
def test_the_kernel_shows_the_tree_as_it_is(tmp_path: Path, odd_layer: bytes, block_bits: int) -> None:
    layers = [lowest(), middle(), highest(), odd_layer]
    with merged(tmp_path, *layers) as tree:
        expected = walk_tree(tree, reader(layers))
        with mounted(tmp_path, tree, layers, block_bits) as root:
            assert differences(expected, walk_directory(root)) == []


@pytest.mark.kernel
@NEEDS_ROOT
def test_every_name_of_a_large_directory_is_found_and_no_other(tmp_path: Path) -> None:
    names = [b"%x" % (number * 7919) for number in range(5000)] + ODD_NAMES
    layer = tar.archive(*(tar.file(b"d/" + name) for name in names if name not in (b".", b"..")))
    with merged(tmp_path, layer) as tree, mounted(tmp_path, tree, [layer]) as root:
        directory = os.path.join(os.fsencode(root), b"d")
        assert sorted(os.listdir(directory)) == sorted({*names} - {b".", b".."})
        assert all(os.path.lexists(os.path.join(directory, name)) for name in names)
        assert not any(os.path.lexists(os.path.join(directory, name + b"?")) for name in names[:5000:50])


@pytest.mark.kernel
@NEEDS_ROOT
def test_an_acl_counts_and_attributes_that_linux_does_not_know_are_left_out(tmp_path: Path) -> None:
    nobody, everybody = 65534, 0xFFFFFFFF
    entries = [(1, 6, everybody), (2, 4, nobody), (4, 0, everybody), (16, 4, everybody), (32, 0, everybody)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    xattrs = {b"system.posix_acl_access": acl, b"com.apple.quarantine": b"q", b"user.u": b"1"}
    broken = {b"system.posix_acl_access": b"broken"}
    layer = tar.archive(tar.file("a", b"1", mode=0o640, xattrs=xattrs), tar.file("b", b"1", xattrs=broken))
    with merged(tmp_path, layer) as tree, mounted(tmp_path, tree, [layer]) as root:
        assert sorted(os.listxattr(root / "a")) == ["system.posix_acl_access", "user.u"]
        assert os.getxattr(root / "a", "system.posix_acl_access") == acl
        assert os.listxattr(root / "b") == []


@pytest.mark.kernel
@NEEDS_ROOT
def test_what_the_kernel_has_in_memory_can_be_taken_from_it(tmp_path: Path) -> None:
    layer = tar.archive(tar.file("d/d/a", b"before"), tar.symlink("d/link", "a"), tar.fifo("d/pipe"))
    with merged(tmp_path, layer) as tree, mounted(tmp_path, tree, [layer]) as root:
        assert (root / "d/d/a").read_bytes() == b"before"
        device = tmp_path / "device-9-1"
        device.write_bytes(device.read_bytes().replace(b"before", b"behind"))
        assert (root / "d/d/a").read_bytes() == b"before"
        drop_cached_pages_now(root)
        assert (root / "d/d/a").read_bytes() == b"behind"
    drop_cached_pages_now(tmp_path / "nowhere")


@pytest.mark.parts
@pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="erofs-utils is not installed")
def test_fsck_finds_no_fault(tmp_path: Path, odd_layer: bytes) -> None:
    layers = [lowest(), middle(), odd_layer]
    with merged(tmp_path, *layers) as tree:
        image = image_of(tree, *layers, block_bits=12)  # older ones know no other blocks than pages
        paths = write_devices(tmp_path, image, tree, layers, 12)
        devices = [f"--device={path}" for path in paths[1:]]
        found = subprocess.run(
            ["fsck.erofs", *devices, paths[0]], capture_output=True, text=True, check=False
        )
        assert (found.returncode, found.stderr) == (0, "")
        dump = subprocess.run(
            ["dump.erofs", *devices, "-s", paths[0]], capture_output=True, text=True, check=True
        )
        assert f"Filesystem inode count:                       {tree.node_count}\n" in dump.stdout
        assert stat.S_ISDIR(tree.resolve(b"empty").mode)
