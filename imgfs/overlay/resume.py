"""Going on with a scratch in the place of a process that was killed: the kernel knows its files by number.

Every file of the upper directory is met anew, as the kernel may ask for any of them without a name. What had
no name, but was open, has one in the work directory (`Upper.keep_open`): it goes with the last that has it
open, or with the mount. Handles need nothing: files are opened again when they are needed.
"""

from __future__ import annotations

import os
import stat

from imgfs.overlay.node import At, UpperNode
from imgfs.overlay.union import Union
from imgfs.overlay.upper import OPEN
from imgfs.overlay.xattrs import is_whiteout

_UNKNOWN = 1 << 30  # handles that may write: how many there are was not handed on


def meet_all(union: Union) -> None:
    """Know every file of the upper directory, and those that are only open. Raises OSError."""
    ahead = [union.root]
    while ahead:
        directory = ahead.pop()
        for entry in union.upper.scan(union.at(directory)):
            name = os.fsencode(entry.name)
            found = union.upper.stat(At(union.directory_fd(directory), name))
            if found is None or is_whiteout(found):
                continue
            node = union.node_at(directory, name, found)
            if node.counted:  # not met before, by another name
                _note(node)
                if node.is_directory:
                    ahead.append(node)
    for name in os.listdir(b"/proc/self/fd/%d" % union.upper.work):
        if name.startswith(OPEN):
            _meet_nameless(union, name)


def _note(node: UpperNode) -> None:
    """Note that the kernel may refer to a file, and have it open."""
    node.counted, node.writers = False, _UNKNOWN


def _meet_nameless(union: Union, name: bytes) -> None:
    at = At(union.upper.work, name)
    found = union.upper.stat(at)
    if found is None:
        return
    ino = int(name.removeprefix(OPEN))
    if ino in union.nodes:  # its name was not taken yet
        union.upper.discard(at)
        return
    node = union.node_nameless(found, union.upper.hold(at), ino)
    if stat.S_ISREG(found.st_mode):
        node.data = union.image_data(at)
    node.kept = True
    _note(node)
