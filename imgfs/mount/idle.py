"""A daemon that nothing is asked of ends, and takes no memory; its holder has the next request answered."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgfs.fuse.session import Session
    from imgfs.mount.resume import Succession
    from imgfs.mount.serving import ServedMount

log = logging.getLogger("imgfs.mount")


class IdleExit:
    """Ends a session once nothing was asked of a mount, and nothing fetched for it, for a while."""

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
        if request is None or is_filling or now != self._last or not self._succession.has_turn:
            self._last, self._since = now, time.monotonic()
        elif time.monotonic() - self._since >= options.exit_idle:
            log.info("idle: %s", options.mountpoint)
            if options.driver == "auto":
                from imgfs.mount.erofs_ahead import write_while_idle

                write_while_idle(self._mount)
            self._succession.rest()
            self._session.end()
