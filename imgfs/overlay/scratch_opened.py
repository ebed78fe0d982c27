"""A scratch over an image: for this process, which answers for the files, or held for the kernel's overlayfs.

Here is all of a scratch that only its daemon loads; what `scratch` has, commands know as well.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imgfs.errors import MountError, StoreError
from imgfs.overlay.copyup_data import ImageData
from imgfs.overlay.fdtree import make_directory, remove_tree
from imgfs.overlay.interchange import (
    INDEX,
    KERNELS_ORIGIN,
    HandleLookup,
    IndexEntry,
    complete,
    convert_fuse_overlayfs,
    copies,
    copy_up_index,
    has_entries,
    merge_index,
    no_handles,
    read_index,
)
from imgfs.overlay.node import At
from imgfs.overlay.overlay import Overlay
from imgfs.overlay.scratch import UNFINISHED, Scratch, SetUse
from imgfs.overlay.scratch_dir import (
    ENDING,
    ScratchBase,
    opened_scratch_directory,
    overlayfs_over,
    read_ctimes,
    write_base,
    write_ctimes,
)
from imgfs.overlay.union import Union
from imgfs.overlay.upper import Upper, forget_acls
from imgfs.overlay.xattrs import BY_OVERLAYFS, TRUSTED, Owner, XattrFormat
from imgfs.owned.inheritance import LockInheritance
from imgfs.owned.writing import leads_to, os_errors
from imgfs.tree.database import ROOT
from imgfs.tree.reader import Tree

if TYPE_CHECKING:
    from imgfs.overlay.diff import Diff


class ScratchTerms(NamedTuple):
    """The image that a scratch is opened over, which is its `base`, and what it is held for (`use`).

    `ino_of` tells which file of the image the kernel's own handle means, for what overlayfs has left.
    By `inheritance` its lock goes to other processes, which go on with all that is open.
    """

    tree: Tree
    content: ImageData
    base: ScratchBase
    use: str
    ino_of: HandleLookup = no_handles
    inheritance: LockInheritance | None = None

    @property
    def is_mounted(self) -> bool:
        """Return True if another process has mounted it, and this one takes over."""
        return self.inheritance is not None and self.inheritance.fd >= 0


@contextlib.contextmanager
def scratch_overlay(scratch: Scratch, terms: ScratchTerms) -> Iterator[Overlay]:
    """Yield the scratch over an image, made if there is none, for this process alone. Raises ImgfsError."""
    with _held(scratch, terms) as (upper, set_use):
        if not terms.is_mounted:
            _merge_index(scratch, terms)
        with _opened(scratch, terms, upper, is_mounted=terms.is_mounted) as overlay:
            overlay.union.outlives = terms.inheritance is not None
            with _showing_ctimes(scratch, overlay.union):
                yield overlay
                set_use(ENDING)
                if scratch.is_shared:
                    complete(overlay)
                upper.discard_open()


@contextlib.contextmanager
def _showing_ctimes(scratch: Scratch, union: Union) -> Iterator[None]:
    """Have the times of change be those that the last mount has shown, and keep them for the next."""
    if scratch.volatile:
        yield
        return
    with opened_scratch_directory(scratch.directory) as fd:
        union.ctimes = read_ctimes(scratch.directory, fd)
        yield
        write_ctimes(fd, union.ctimes)


@contextlib.contextmanager
def held_for_kernel(scratch: Scratch, terms: ScratchTerms) -> Iterator[None]:
    """Hold the scratch over an image for overlayfs, which alone changes it meanwhile. Raises ImgfsError.

    Overlayfs may have an index: what is in it is linked to its names when the mount has ended.
    """
    if terms.tree.has_xattr(
        TRUSTED
    ):  # overlayfs would obey them: metacopy is EIO, redirect shows other files
        raise MountError(f"the image has attributes {TRUSTED.decode()}*, which overlayfs takes for its own")
    with _held(scratch, terms) as (upper, set_use):
        if not terms.is_mounted:
            _prepare_for_kernel(scratch, terms, upper)
            _merge_index(scratch, terms, wholly=True)
        yield
        set_use(ENDING)
        if scratch.volatile:
            return
        _merge_index(scratch, terms, wholly=True)
        if scratch.is_shared:
            with _opened(scratch, terms, Upper(scratch.upper, scratch.work)) as overlay:
                complete(overlay)


def _prepare_for_kernel(scratch: Scratch, terms: ScratchTerms, upper: Upper) -> None:
    """Have it be as overlayfs wants it, and finish what a killed process has left. Raises MountError."""
    if upper.xattr_format != XattrFormat(TRUSTED, override=False):
        raise MountError(f"scratch {scratch.name} has an ordinary user's xattrs, which overlayfs ignores")
    with contextlib.suppress(OSError):  # a full disk: overlayfs leaves xattrs of its own
        upper.set_overlay_xattr(At.anchor(upper.root), BY_OVERLAYFS)
    with _opened(scratch, terms, upper):
        pass


def _merge_index(scratch: Scratch, terms: ScratchTerms, *, wholly: bool = False) -> None:
    """Do without overlayfs's index; what in it is not the image's goes too if that is to be `wholly`."""
    place = scratch.work / INDEX
    if not place.is_dir():
        return
    with os_errors(place), _opened(scratch, terms, Upper(scratch.upper, scratch.work)) as overlay:
        merge_index(overlay, read_index(scratch.work, terms.ino_of), scratch.work)
        if wholly or not has_entries(scratch.work):
            overlay.union.upper.remove_overlay_xattrs(At.anchor(overlay.union.upper.root), KERNELS_ORIGIN)
            remove_tree(place)


def _opened(scratch: Scratch, terms: ScratchTerms, upper: Upper, *, is_mounted: bool = False) -> Overlay:
    return Overlay(terms.tree, terms.content, upper, durable=not scratch.volatile, is_mounted=is_mounted)


@contextlib.contextmanager
def _held(scratch: Scratch, terms: ScratchTerms) -> Iterator[tuple[Upper, SetUse]]:
    """Yield its upper directory, made if there is none, for this process alone."""
    try:
        scratch.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_directory(scratch.directory, 0o700)
    except OSError as error:
        raise StoreError(f"{scratch.directory}: {error.strerror}") from error
    with scratch.locked(terms.use, terms.inheritance) as set_use:
        scratch.check(terms.base)
        with os_errors(scratch.directory):
            _make(scratch, terms.tree)
            upper = Upper(scratch.upper, scratch.work)
            convert_fuse_overlayfs(upper, scratch.work)
            _describe(scratch, terms.base)
        try:
            yield upper, set_use
        finally:
            if scratch.volatile:
                scratch.remove()


def _describe(scratch: Scratch, base: ScratchBase) -> None:
    """Write down what it lies on."""
    with opened_scratch_directory(scratch.directory) as fd:
        write_base(scratch.directory, fd, base)


def _make(scratch: Scratch, tree: Tree) -> None:
    """Have the two directories be there; a new upper one has the attributes of the image's root."""
    make_directory(scratch.work, 0o755)
    if os.path.lexists(scratch.upper):
        make_directory(scratch.upper, 0o755)
        return
    aside = scratch.directory / UNFINISHED
    remove_tree(aside)  # by a process that was killed
    aside.mkdir(mode=0o755)
    forget_acls(aside)
    with contextlib.closing(Upper(aside, None)) as upper:
        _describe_root(upper, tree)
    aside.rename(scratch.upper)


@contextlib.contextmanager
def scratch_diff(
    scratch: Scratch, tree: Tree, content: ImageData, ino_of: HandleLookup = no_handles
) -> Iterator[Diff]:
    """Yield what it changes in an image; a mount may be using it. Raises ImgfsError."""
    from imgfs.overlay.diff import Diff  # here: a mount needs none of it

    index: list[IndexEntry] = []
    check: Callable[[], object] = bool
    with contextlib.ExitStack() as stack:
        if scratch.upper.is_dir():
            with os_errors(scratch.work):
                index = read_index(scratch.work, ino_of)
                _copy_up_index(scratch, tree, index)
            upper = stack.enter_context(contextlib.closing(Upper(scratch.upper, None)))
            check = partial(_check_there, scratch, upper)
        else:  # no changes yet
            empty = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            upper = stack.enter_context(contextlib.closing(Upper(empty, None)))
            _describe_root(upper, tree)
        union = Union(tree, upper, copies(index))
        try:
            yield Diff(union, content, check)
        finally:
            union.close()


def _check_there(scratch: Scratch, upper: Upper) -> None:
    """Raise MountError if the changes that have been read may have been half thrown away by then."""
    if not leads_to(scratch.upper, upper.root):
        raise MountError(f"scratch {scratch.name} has been reset or removed meanwhile")


def _copy_up_index(scratch: Scratch, tree: Tree, index: list[IndexEntry]) -> None:
    """Have overlayfs, if it is mounted, copy up all names of the files in its index."""
    if index and (at := overlayfs_over(scratch.upper)):
        with contextlib.closing(Upper(scratch.upper, None)) as upper:
            copy_up_index(tree, upper, index, Path(at))


def _describe_root(upper: Upper, tree: Tree) -> None:
    """Give a new upper directory what the image says of its root: overlayfs shows the upper one's."""
    root, at = tree.node(ROOT), At.anchor(upper.root)
    if root is not None:
        owner = Owner(root.uid, root.gid, stat.S_IMODE(root.mode))
        xattrs = tree.xattrs(ROOT) if root.has_xattrs else {}
        upper.describe(at, root.mode, owner, xattrs, (root.mtime_ns, root.mtime_ns))
