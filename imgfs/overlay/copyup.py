"""Copy-up: giving a file of the image an upper half, so that it can be changed.

First its attributes: a whole file is made in the work directory and renamed into place, below directories
that have been copied up before it. A small file whose bytes are here takes them along. Any other is marked
`metacopy`: its data is still the image's, until a program writes; then the data is filled in, and the mark
taken off (`copyup_data`). Readers see the image's data up to that moment, and so does the next mount after a
SIGKILL.

A file with several names takes all that show to the upper directory, or its link would break. They are
written down first (`links-N` in the work directory), and a copy-up that was killed is finished by `recover`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from imgfs.errors import StoreError
from imgfs.overlay.copyup_data import ImageData
from imgfs.overlay.node import At, OpenFile, Place, UpperNode, no_entry, path_of, times_kept
from imgfs.overlay.union import Union
from imgfs.overlay.xattrs import METACOPY, ORIGIN, REDIRECT, Owner
from imgfs.owned.writing import pwrite_all
from imgfs.tree.database import Node

_SMALL = 256 << 10  # bytes that are copied up at once, if they are here
_JOURNAL = b"links-"


class CopyUp:
    """Copies files of `union` up, whose bytes are in `content`."""

    def __init__(self, union: Union, content: ImageData) -> None:
        self._union = union
        self._upper = union.upper
        self._content = content

    def up(self, ino: int, *, with_data: bool = True) -> UpperNode:
        """Return the node of a file, copied up if it has not been; raises OSError.

        With `with_data` false the data is about to be thrown away: it is not copied even if it is here.
        """
        if (node := self._union.nodes.get(ino)) is not None:
            return node
        chain: list[tuple[Node, list[tuple[int, bytes]]]] = []
        at = ino
        while at not in self._union.nodes:
            lower = self._union.tree.node(at)
            if lower is None:
                raise no_entry()
            names = self._union.visible_names(at)
            chain.append((lower, names))
            if not names:  # unlinked, but still open
                break
            at = names[0][0]
        for lower, names in reversed(chain):
            self._copy(lower, names, with_data)
        return self._union.nodes[ino]

    def up_tree(self, node: UpperNode) -> None:
        """Copy up everything below a directory, which then is opaque: nothing of the image shows in it."""
        ahead, seen = [node], []
        while ahead:
            directory = ahead.pop()
            seen.append(directory)
            if directory.lower is not None:
                below = [self.up(child.ino) for _, child in list(self._union.children(directory.ino))]
                ahead += [child for child in below if child.is_directory]
        for directory in seen:  # they keep their inos, whenever this process is killed
            if directory.lower is not None:
                self._upper.set_overlay_xattr(self._union.at(directory), ORIGIN, b"%d" % directory.ino)
        if node.lower is not None:
            self._upper.set_opaque(self._union.at(node))
        for directory in seen:
            self._leave_image(directory)

    def _leave_image(self, node: UpperNode) -> None:
        """Have a directory that nothing of the image shows in any more keep no whiteouts."""
        at = self._union.at(node)
        self.remove_whiteouts(node)
        self._upper.remove_overlay_xattrs(at, REDIRECT)
        node.lower = node.links = None

    def remove_whiteouts(self, node: UpperNode) -> None:
        """Remove the whiteouts from a directory; it must be opaque."""
        shown, covered = self._union.upper_names(node)
        self._upper.remove_whiteouts(self._union.at(node), covered.difference(shown))

    def recover(self, *, is_mounted: bool) -> None:
        """Finish what a killed process had begun, and clear the work directory of all that is not open."""
        work = b"/proc/self/fd/%d" % self._upper.work
        for journal in os.listdir(work):
            if journal.startswith(_JOURNAL):
                with open(work + b"/" + journal, "rb") as file:
                    self._link_all(At(self._upper.work, journal.removeprefix(_JOURNAL)), file.read())
        self._upper.discard_leftovers(but_open=is_mounted)

    def _link_all(self, made: At, paths: bytes) -> None:
        if self._upper.stat(made) is None:
            return
        for path in paths.split(b"\0"):
            *directories, name = path.split(b"/")
            fd = os.dup(self._upper.root)
            for directory in directories:
                above, fd = fd, self._upper.open(At(fd, directory), os.O_PATH | os.O_DIRECTORY)
                os.close(above)
            try:
                if self._upper.stat(At(fd, name)) is None:
                    with times_kept(At.anchor(fd)):
                        self._upper.link(made, At(fd, name))
            finally:
                os.close(fd)

    def _copy(self, lower: Node, names: list[tuple[int, bytes]], with_data: bool) -> None:
        """Make the upper half of a file and give it its names."""
        made = self._upper.new()
        try:
            found, own_data = self._make(made, lower, with_data)
            node = UpperNode(lower.ino, found.st_ino, stat.S_IFMT(lower.mode), counted=False)
            node.lower = node.listed = lower.ino if node.is_directory else None
            node.data = None if own_data else lower.ino
            if names:
                self._put(made, node, names)
            else:
                node.anchor = self._upper.hold(made)
        except BaseException:
            self._upper.discard(made)
            raise
        if len(names) != 1:  # else it has been renamed
            self._upper.discard(made)
        self._union.add(node)
        self._union.keep_ctime(node, lower.mtime_ns)

    def _put(self, made: At, node: UpperNode, names: list[tuple[int, bytes]]) -> None:
        """Give what was made its name, or all of its names, or none of them."""
        targets = [(self.up(parent), name) for parent, name in names]
        node.parent, node.name = targets[0]
        if len(targets) == 1:
            self._change_name(targets[0], lambda at: self._upper.rename(made, at))
            return
        journal = self._write_journal(made, targets)
        done: list[tuple[UpperNode, bytes]] = []
        try:
            for target in targets:
                self._change_name(target, lambda at: self._upper.link(made, at))
                done.append(target)
        except BaseException:
            for target in done:
                self._change_name(target, self._upper.unlink)
            raise
        finally:
            self._upper.unlink(journal)

    def _change_name(self, target: tuple[UpperNode, bytes], change: Callable[[At], None]) -> None:
        """Change what the upper half of a directory has under a name; the mount shows no difference."""
        parent, name = target
        with times_kept(self._union.at(parent)):
            change(At(self._union.directory_fd(parent), name))
        parent.changes += 1

    def _write_journal(self, made: At, targets: list[tuple[UpperNode, bytes]]) -> At:
        """Write down all names that a file is about to get, as paths in the upper directory."""
        journal, aside = At(self._upper.work, _JOURNAL + made.name), self._upper.new()
        fd = self._upper.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            pwrite_all(fd, b"\0".join(path_of(parent, name) for parent, name in targets), 0)
        finally:
            os.close(fd)
        self._upper.rename(aside, journal)
        return journal

    def _make(self, made: At, lower: Node, with_data: bool) -> tuple[os.stat_result, bool]:
        """Make a copy of a file in the work directory; return its status, and if it has data of its own."""
        if stat.S_ISREG(lower.mode):
            fd = self._upper.create(made, lower.mode)
            try:
                own_data = not lower.size or self._take_data(fd, lower, with_data)
                self._describe(OpenFile(fd), lower)
                return os.fstat(fd), own_data
            finally:
                os.close(fd)
        if stat.S_ISLNK(lower.mode):
            os.symlink(self._union.tree.target(lower.ino), made.name, dir_fd=made.directory)
        else:
            self._upper.make(made, lower.mode, lower.device)
        self._describe(made, lower)
        found = self._upper.stat(made)
        if found is None:
            raise StoreError("the work directory is changed by another process")
        return found, True

    def _describe(self, made: Place, lower: Node) -> None:
        """Give a copy all that the file has but its data."""
        if self._upper.xattr_format.can_hold(lower.mode) and not stat.S_ISDIR(lower.mode):
            self._upper.set_overlay_xattr(made, ORIGIN, b"%d" % lower.ino)
        xattrs = self._union.tree.xattrs(lower.ino) if lower.has_xattrs else {}
        owner = Owner(lower.uid, lower.gid, stat.S_IMODE(lower.mode))
        self._upper.describe(made, lower.mode, owner, xattrs, (lower.mtime_ns, lower.mtime_ns))

    def _take_data(self, fd: int, lower: Node, with_data: bool) -> bool:
        """Copy a file's data if there is little and it is here, else mark where it is."""
        if with_data and lower.size <= _SMALL:
            layer, extents = self._union.tree.extents(lower.ino)
            ready = self._content.cached(layer, extents, 0, lower.size)
            if ready is not None:
                pwrite_all(fd, ready, 0)
                return True
        os.ftruncate(fd, lower.size)
        self._upper.set_overlay_xattr(OpenFile(fd), METACOPY, b"")
        self._union.set_redirect(OpenFile(fd), lower.ino)
        return False
