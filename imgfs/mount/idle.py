"""A daemon that nothing is asked of ends, and takes no memory; its holder has the next request answered."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from imgfs.fuse.opcodes import Opcode
from imgfs.variables import pool_socket, variables

if TYPE_CHECKING:
    from imgfs.fuse.session import Session
    from imgfs.mount.resume import Succession
    from imgfs.mount.serving import ServedMount

log = logging.getLogger("imgfs.mount")

_LASTING = (Opcode.STATFS, Opcode.GETATTR, Opcode.STATX)  # of an image's root nothing of it ever changes
_SOON = 2.0  # seconds, where another process serves it again within some hundredths of one


class IdleExit:
    """Ends a session once nothing was asked of a mount, and nothing fetched for it, for a while.

    That comes soon for a process of its own if one of the pool will take the mount, where it costs little.
    """

    def __init__(self, mount: ServedMount, session: Session, succession: Succession) -> None:
        self._mount = mount
        self._session = session
        self._succession = succession
        self._last: tuple[int | None, object] | None = None  # the last request, and what was fetched by then
        self._since = 0.0

    def look(self) -> None:
        """End the session if it is time; to be called now and then."""
        options, content = self._mount.options, self._mount.image.content
        request = self._session.last_request()
        now = request, self._mount.image.traffic()
        is_filling = options.fill is not None and not content.is_complete()
        is_quiet = now == self._last or self._succession.is_leaving()
        if request is None or is_filling or not is_quiet or not self._succession.has_turn:
            self._last, self._since = now, time.monotonic()
        elif time.monotonic() - self._since >= self.patience() or self._succession.is_leaving():
            log.info("idle: %s", options.mountpoint)
            if options.driver == "auto":
                from imgfs.mount.erofs_ahead import write_while_idle

                write_while_idle(self._mount)
            self._succession.rest({opcode: self._session.answer_of_root(opcode) for opcode in _LASTING})
            self._session.end()

    def patience(self) -> float:
        """Return for how many seconds nothing is asked before it ends; a pool may have begun meanwhile."""
        seconds = self._mount.options.exit_idle
        if not self._succession.is_pooled and os.path.exists(pool_socket(variables(), os.geteuid()) or ""):
            return min(seconds, _SOON)
        return seconds
