"""A tree's EROFS image as the store keeps it: found, written, or written beside a mount for those to come.

To write it takes some microseconds for each file: of a large image more than all else of its first mount, and
too much for a container that ends at once. So it is done by a process of its own, which the daemon does not
wait for, and which outlives it. It gives way to others, and holds a lock on the tree's file, so that there is
one at most.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import imgfs
from imgfs.errors import ImgfsError, StoreError
from imgfs.image.image import Image
from imgfs.image.resolve import Resolved
from imgfs.image.trust import open_index
from imgfs.kernel.chunk_index import AssembledDevice
from imgfs.kernel.driver import check_host
from imgfs.kernel.erofs_format import FORMAT, SUPERBLOCK, SUPERBLOCK_SIZE, read_uuid
from imgfs.kernel.mkfs import BLOCK_BITS, write_image
from imgfs.oci.descriptor import Digest
from imgfs.owned.writing import try_lock
from imgfs.starting import try_thread
from imgfs.store.atomic import atomic_write
from imgfs.store.store import Store
from imgfs.tree.database import FORMAT as TREE_FORMAT
from imgfs.tree.reader import Tree
from imgfs.variables import variables

_BUFFER = 1 << 20
_NICENESS = 10  # nice(2): on a busy machine it gets a tenth of what others get, but gets done
_PROGRAM = f"""
import os, sys
os.nice({_NICENESS})
sys.path.insert(0, sys.argv[1])
from imgfs.kernel.erofs_image import main
main()
"""
_NO_FILES = (
    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
    (os.POSIX_SPAWN_DUP2, 0, 1),
    (os.POSIX_SPAWN_DUP2, 0, 2),
)


class ErofsImage(NamedTuple):
    """An EROFS image: its file, and what the flat file beyond those of the layers holds."""

    path: Path
    assembled: AssembledDevice


def make_image(tree: Tree, digest: Digest, sizes: Sequence[int], store: Store) -> ErofsImage:
    """Return the EROFS image of the tree that the store keeps under `digest`, written if it is not there.

    `sizes` are those of the layers' flat files. Raises Unsuitable, InvalidImage, StoreError.
    """
    path = store.erofs(digest, FORMAT)
    uuid = image_uuid(tree, sizes)
    if not _is_written(path, uuid):
        try:
            with atomic_write(path) as aside, open(aside, "wb", buffering=_BUFFER) as file:
                write_image(tree, sizes, file, uuid=uuid)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
    with open(path, "rb") as file:
        os.posix_fadvise(
            file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED
        )  # the kernel will read it block by block
        return ErofsImage(path, AssembledDevice.read(file, BLOCK_BITS))


def has_image(tree: Tree, digest: Digest, sizes: Sequence[int], store: Store) -> bool:
    """Return whether that image is written already; raises StoreError."""
    return _is_written(store.erofs(digest, FORMAT), image_uuid(tree, sizes))


def image_uuid(tree: Tree, sizes: Sequence[int]) -> bytes:
    """16 bytes that say which tree an image was written from, and how."""
    parts = [FORMAT, TREE_FORMAT, tree.origin, tree.node_count, tree.total_size, *tree.spaces(), *sizes]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).digest()[:16]


def _is_written(path: Path, uuid: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return read_uuid(file.read(SUPERBLOCK + SUPERBLOCK_SIZE)) == uuid
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error


def sizes_of(image: Image) -> list[int]:
    """Return those of the flat files of an image's layers, in bytes."""
    return [layer.index.summary.flat_size for layer in image.content.layers]


def spawn_writer(digest: Digest, sizes: Sequence[int], store: Store) -> None:
    """Have the tree that the store keeps under `digest` written, whatever becomes of this process."""
    ours = Path(imgfs.__file__).parent.parent
    words = [sys.executable, "-I", "-c", _PROGRAM, ours, store.root.absolute(), digest, *sizes]
    with contextlib.suppress(OSError):  # then the next mount will be as this one
        pid = os.posix_spawn(
            sys.executable,
            list(map(str, words)),
            variables(),
            file_actions=_NO_FILES,
            setsid=True,
        )
        try_thread(partial(os.waitpid, pid, 0), "imgfs-erofs")


def write_now(resolved: Resolved, store: Store) -> None:
    """Write the tree of a prepared image, if a mount could use that here. Raises ImgfsError."""
    tree = store.tree(resolved.tree)
    with contextlib.ExitStack() as stack:
        try:
            check_host(owner=None)
        except ImgfsError:
            return
        if tree:
            places = (store.layer(layer.digest) for layer in resolved.manifest.layers)
            sizes = [stack.enter_context(open_index(place)).summary.flat_size for place in places]
            make_image(stack.enter_context(Tree(tree)), resolved.tree, sizes, store)


def write(digest: Digest, sizes: Sequence[int], store: Store) -> None:
    """Write the tree that the store keeps under `digest`, unless another is at it. Raises ImgfsError."""
    path = store.tree(digest)
    if path is None:
        return
    with open(path, "rb") as file:
        if try_lock(file.fileno()):
            with Tree(path) as tree:
                make_image(tree, digest, sizes, store)
            if store.tree(digest) is None:  # removed meanwhile
                store.remove_tree(digest)


def main() -> None:
    """Write an EROFS image, as the process of `spawn_writer`, whose words are its arguments."""
    with contextlib.suppress(OSError):  # among sessions it counts as one (sched(7), autogroup)
        Path("/proc/self/autogroup").write_text(str(_NICENESS))
    _, root, name, *sizes = sys.argv[1:]
    with contextlib.suppress(ImgfsError, OSError):  # the mount that needs the image reports it
        write(Digest.parse(name), list(map(int, sizes)), Store(Path(root)))
