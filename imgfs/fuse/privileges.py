"""Set-id bits and capabilities, which a file loses when its bytes change (capabilities(7), inode(7)).

With FUSE_HANDLE_KILLPRIV_V2 the daemon takes them away. Most requests say whether the caller keeps the set-id
bits (CAP_FSETID); FALLOCATE and COPY_FILE_RANGE do not, so the daemon looks at the caller in /proc.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from imgfs.fuse.protocol import Head
from imgfs.fuse.session import Session
from imgfs.fuse.union_view import UnionView
from imgfs.overlay.overlay import Overlay
from imgfs.overlay.xattrs import CAPABILITY

_EFFECTIVE = re.compile(rb"^CapEff:\s*([0-9a-f]+)$", re.MULTILINE)
_CAP_FSETID = 4  # linux/capability.h
_FIRST_USER_NAMESPACE = 0xEFFFFFFD  # its inode in nsfs (linux/proc_ns.h, PROC_USER_INIT_INO)


class Privileges:
    """Takes privileges from files of `overlay`, which `view` shows; `session` tells the kernel."""

    def __init__(self, view: UnionView, overlay: Overlay) -> None:
        self._view = view
        self._overlay = overlay
        self.session: Session | None = None

    def drop(self, ino: int, *, kill: int) -> None:
        """Take capabilities and, if `kill`, set-id bits from a file whose bytes are about to change."""
        file = self._view.attributes(ino)
        if (
            kill
            and file.mode & (stat.S_ISUID | stat.S_ISGID)
            and self._overlay.drop_privileges(self._overlay.copyup.up(ino))
            and self.session
        ):
            self.session.invalidate_attributes(ino)
        if self._view.xattr(ino, CAPABILITY) is not None:
            self._overlay.drop_capability(self._overlay.copyup.up(ino))

    def drop_for(self, caller: Head, ino: int) -> None:
        """Do as `drop` for a request that does not say whether its caller has CAP_FSETID: /proc says it."""
        has_bits = self._view.attributes(ino).mode & (stat.S_ISUID | stat.S_ISGID)
        self.drop(ino, kill=bool(has_bits) and not keeps_set_id(caller.pid))


def keeps_set_id(thread: int) -> bool:
    """Return True if files that a thread changes keep set-id bits: by CAP_FSETID in the initial namespace.

    False for a thread that /proc does not show, such as one in another PID namespace.
    """
    try:
        found = _EFFECTIVE.search(Path(f"/proc/{thread}/status").read_bytes())
        is_first = os.stat(f"/proc/{thread}/ns/user").st_ino == _FIRST_USER_NAMESPACE
    except OSError:
        return False
    return bool(found and int(found[1], 16) >> _CAP_FSETID & 1) and is_first
