"""A scratch on disk: `upper` and `work` as overlayfs knows them, what image they belong to, and a lock.

A scratch is kept under a name in the store, or in any directory, or made for one mount and removed with it.
One that overlayfs or fuse-overlayfs has made is taken up as it is; they leave imgfs's `scratch.json` alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.errors import MountError, StoreError
from imgfs.overlay import fdtree
from imgfs.overlay.copyup_data import ImageData
from imgfs.overlay.fdtree import REMOVED, make_directory, remove_tree, set_aside
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
from imgfs.overlay.scratch_dir import (
    ASIDE,
    CTIMES,
    DESCRIPTION,
    ENDING,
    LOCK,
    Lock,
    holder_of,
    is_at_work,
    opened_scratch_directory,
    overlayfs_over,
    read_base,
    read_ctimes,
    write_base,
    write_ctimes,
)
from imgfs.overlay.scratch_dir import ScratchBase as ScratchBase
from imgfs.overlay.union import Union
from imgfs.overlay.upper import Upper, forget_acls
from imgfs.overlay.xattrs import BY_OVERLAYFS, TRUSTED, Owner, XattrFormat
from imgfs.owned.inheritance import LockInheritance
from imgfs.owned.writing import leads_to, os_errors
from imgfs.tree.database import ROOT
from imgfs.tree.reader import Tree

if TYPE_CHECKING:
    from imgfs.overlay.diff import Diff

log = logging.getLogger(__name__)

SetUse = Callable[[str], None]  # is given what a scratch is used for

_NEW = ".upper"  # what `upper` is called until it is complete
UPPER_ASIDE = ".upper-"  # begins the name of one that a container's user has made aside


@dataclass(frozen=True, slots=True)
class Scratch:
    """A scratch in `directory`; `name` is what people call it, `volatile` one that goes with its mount."""

    directory: Path
    name: str
    volatile: bool = False

    @property
    def upper(self) -> Path:
        """The upper directory."""
        return self.directory / "upper"

    @property
    def work(self) -> Path:
        """The work directory, on the same file system."""
        return self.directory / "work"

    @property
    def is_shared(self) -> bool:
        """Whether other programs may mount it, who expect whole files."""
        return "/" in self.name and not self.volatile

    def exists(self) -> bool:
        """Return whether there is such a scratch."""
        return self.upper.is_dir() or (self.directory / DESCRIPTION).exists()

    def base(self) -> ScratchBase | None:
        """Return what it lies on, if imgfs has ever mounted it; raises StoreError."""
        return read_base(self.directory)

    def check(self, base: ScratchBase) -> None:
        """Raise MountError if the scratch lies on another image."""
        found = self.base() if self.upper.is_dir() else None  # without changes it may lie on any
        if found and (found.digest, found.layers) != (base.digest, base.layers):
            layers = f" up to layer {found.layers}" if found.digest == base.digest else ""
            raise MountError(
                f"scratch {self.name} was made on {found.reference}, {found.digest}{layers}: mount that, "
                f"or begin anew with: imgfs scratch reset {self.name}"
            )

    @contextlib.contextmanager
    def locked(self, use: str, inheritance: LockInheritance | None = None) -> Iterator[SetUse]:
        """Be the only one to change it; raises MountError saying what the other one uses it for.

        Gives what tells others that it is used for something else. A lock by `inheritance` is held already.
        """
        is_inherited = inheritance is not None and inheritance.fd >= 0
        with opened_scratch_directory(self.directory) as fd:
            lock = Lock(self.directory, fd, inheritance)
            try:
                if other := lock.take(is_at_work):
                    raise MountError(f"scratch {self.name} is in use: {other}")
                if (at := overlayfs_over(self.upper)) and not is_inherited:
                    raise MountError(f"scratch {self.name} is in use: mounted at {at} by overlayfs")
                lock.set_use(use)
                yield lock.set_use
            finally:
                lock.close()

    def holder(self) -> str | None:
        """Return what it is used for right now, if it is."""
        return holder_of(self.directory)

    @contextlib.contextmanager
    def overlay(
        self,
        tree: Tree,
        content: ImageData,
        base: ScratchBase,
        use: str,
        ino_of: HandleLookup = no_handles,
        inheritance: LockInheritance | None = None,
    ) -> Iterator[Overlay]:
        """The scratch over an image, made if there is none, for this process alone. Raises ImgfsError.

        `ino_of` tells which file of the image the kernel's own handle means, for what overlayfs has left.
        By `inheritance` its lock goes to other processes, which go on with all that is open.
        """
        is_mounted = inheritance is not None and inheritance.fd >= 0
        with self._held(tree, base, use, inheritance) as (upper, set_use):
            if not is_mounted:
                self._merge_index(tree, content, ino_of)
            with self._opened(tree, content, upper, is_mounted=is_mounted) as overlay:
                overlay.union.outlives = inheritance is not None
                with self._showing_ctimes(overlay.union):
                    yield overlay
                    set_use(ENDING)
                    if self.is_shared:
                        complete(overlay)
                    upper.discard_open()

    @contextlib.contextmanager
    def _showing_ctimes(self, union: Union) -> Iterator[None]:
        """Have the times of change be those that the last mount has shown, and keep them for the next."""
        if self.volatile:
            yield
            return
        with opened_scratch_directory(self.directory) as fd:
            union.ctimes = read_ctimes(self.directory, fd)
            yield
            write_ctimes(fd, union.ctimes)

    @contextlib.contextmanager
    def for_kernel(
        self,
        tree: Tree,
        content: ImageData,
        base: ScratchBase,
        use: str,
        ino_of: HandleLookup = no_handles,
        inheritance: LockInheritance | None = None,
    ) -> Iterator[None]:
        """Hold the scratch over an image for overlayfs, which alone changes it meanwhile. Raises ImgfsError.

        Overlayfs may have an index: what is in it is linked to its names when the mount has ended. With a
        lock by `inheritance` it is mounted already.
        """
        is_mounted = inheritance is not None and inheritance.fd >= 0
        if tree.has_xattr(TRUSTED):  # overlayfs would obey them: metacopy is EIO, redirect shows other files
            raise MountError(
                f"the image has attributes {TRUSTED.decode()}*, which overlayfs takes for its own"
            )
        with self._held(tree, base, use, inheritance) as (upper, set_use):
            if not is_mounted:
                self._prepare_for_kernel(tree, content, upper)
                self._merge_index(tree, content, ino_of, wholly=True)
            yield
            set_use(ENDING)
            if self.volatile:
                return
            self._merge_index(tree, content, ino_of, wholly=True)
            if self.is_shared:
                with self._opened(tree, content, Upper(self.upper, self.work)) as overlay:
                    complete(overlay)

    def _prepare_for_kernel(self, tree: Tree, content: ImageData, upper: Upper) -> None:
        """Have it be as overlayfs wants it, and finish what a killed process has left. Raises MountError."""
        if upper.xattr_format != XattrFormat(TRUSTED, override=False):
            raise MountError(f"scratch {self.name} has an ordinary user's xattrs, which overlayfs ignores")
        with contextlib.suppress(OSError):  # a full disk: overlayfs leaves xattrs of its own
            upper.set_overlay_xattr(At.anchor(upper.root), BY_OVERLAYFS)
        with self._opened(tree, content, upper):
            pass

    def _merge_index(
        self, tree: Tree, content: ImageData, ino_of: HandleLookup, *, wholly: bool = False
    ) -> None:
        """Do without overlayfs's index; what in it is not the image's goes too if that is to be `wholly`."""
        place = self.work / INDEX
        if not place.is_dir():
            return
        with os_errors(place), self._opened(tree, content, Upper(self.upper, self.work)) as overlay:
            merge_index(overlay, read_index(self.work, ino_of), self.work)
            if wholly or not has_entries(self.work):
                overlay.union.upper.remove_overlay_xattrs(At.anchor(overlay.union.upper.root), KERNELS_ORIGIN)
                remove_tree(place)

    def _opened(self, tree: Tree, content: ImageData, upper: Upper, *, is_mounted: bool = False) -> Overlay:
        return Overlay(tree, content, upper, durable=not self.volatile, is_mounted=is_mounted)

    @contextlib.contextmanager
    def _held(
        self, tree: Tree, base: ScratchBase, use: str, inheritance: LockInheritance | None
    ) -> Iterator[tuple[Upper, SetUse]]:
        """Its upper directory, made if there is none, for this process alone."""
        try:
            self.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_directory(self.directory, 0o700)
        except OSError as error:
            raise StoreError(f"{self.directory}: {error.strerror}") from error
        with self.locked(use, inheritance) as set_use:
            self.check(base)
            with os_errors(self.directory):
                self._make(tree)
                upper = Upper(self.upper, self.work)
                convert_fuse_overlayfs(upper, self.work)
                self._describe(base)
            try:
                yield upper, set_use
            finally:
                if self.volatile:
                    self.remove()

    def _describe(self, base: ScratchBase) -> None:
        """Write down what it lies on."""
        with opened_scratch_directory(self.directory) as fd:
            write_base(self.directory, fd, base)

    def _make(self, tree: Tree) -> None:
        """Have the two directories be there; a new upper one has the attributes of the image's root."""
        make_directory(self.work, 0o755)
        if os.path.lexists(self.upper):
            make_directory(self.upper, 0o755)
            return
        aside = self.directory / _NEW
        remove_tree(aside)  # by a process that was killed
        aside.mkdir(mode=0o755)
        forget_acls(aside)
        with contextlib.closing(Upper(aside, None)) as upper:
            _describe_root(upper, tree)
        aside.rename(self.upper)

    @contextlib.contextmanager
    def diff(self, tree: Tree, content: ImageData, ino_of: HandleLookup = no_handles) -> Iterator[Diff]:
        """What it changes in an image; a mount may be using it. Raises ImgfsError."""
        from imgfs.overlay.diff import Diff  # here: a mount needs none of it

        index: list[IndexEntry] = []
        check: Callable[[], object] = bool
        with contextlib.ExitStack() as stack:
            if self.upper.is_dir():
                with os_errors(self.work):
                    index = read_index(self.work, ino_of)
                    self._copy_up_index(tree, index)
                upper = stack.enter_context(contextlib.closing(Upper(self.upper, None)))
                check = partial(self._check_there, upper)
            else:  # no changes yet
                empty = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                upper = stack.enter_context(contextlib.closing(Upper(empty, None)))
                _describe_root(upper, tree)
            union = Union(tree, upper, copies(index))
            try:
                yield Diff(union, content, check)
            finally:
                union.close()

    def _check_there(self, upper: Upper) -> None:
        """Raise MountError if the changes that have been read may have been half thrown away by then."""
        if not leads_to(self.upper, upper.root):
            raise MountError(f"scratch {self.name} has been reset or removed meanwhile")

    def _copy_up_index(self, tree: Tree, index: list[IndexEntry]) -> None:
        """Have overlayfs, if it is mounted, copy up all names of the files in its index."""
        if index and (at := overlayfs_over(self.upper)):
            with contextlib.closing(Upper(self.upper, None)) as upper:
                copy_up_index(tree, upper, index, Path(at))

    def reset(self) -> None:
        """Throw all changes away; raises MountError if it is in use."""
        with self.locked("being reset"):
            self._throw_away()

    def _throw_away(self) -> None:
        """Remove the changes: first their names, all at once, so that a killed process leaves no half.

        What processes killed before have left goes, too.
        """
        for part in (self.work, self.upper):
            set_aside(part)
        for begin in (REMOVED, ASIDE, UPPER_ASIDE):
            for left in self.directory.glob(f"{begin}*"):
                remove_tree(left)
        for part in (self.work, self.upper):  # which a full disk has not let be renamed
            remove_tree(part)

    def disk_usage(self) -> int:
        """Return how many bytes of disk the changes take."""
        return fdtree.disk_usage(self.upper)[0]

    def remove(self) -> None:
        """Remove all of it that imgfs has made."""
        self._throw_away()
        remove_tree(self.directory / _NEW)
        for name in (DESCRIPTION, LOCK, CTIMES):
            (self.directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other files are kept there
            self.directory.rmdir()


def _describe_root(upper: Upper, tree: Tree) -> None:
    """Give a new upper directory what the image says of its root: overlayfs shows the upper one's."""
    root, at = tree.node(ROOT), At.anchor(upper.root)
    if root is not None:
        owner = Owner(root.uid, root.gid, stat.S_IMODE(root.mode))
        xattrs = tree.xattrs(ROOT) if root.has_xattrs else {}
        upper.describe(at, root.mode, owner, xattrs, (root.mtime_ns, root.mtime_ns))
