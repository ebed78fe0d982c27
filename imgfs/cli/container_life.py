"""imgfs run, the child's part: what is written down of a container's life, and told to who started it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.owned.opening import open_owned_file
from imgfs.owned.writing import os_errors
from imgfs.runtime.container_record import ContainerRecord, ExitRecord, RunningRecord
from imgfs.runtime.host import capabilities
from imgfs.runtime.namespace import go_on_alone
from imgfs.runtime.process_id import ProcessId

if TYPE_CHECKING:
    from imgfs.cli.container_request import Start
    from imgfs.image.resolve import Resolved
    from imgfs.runtime.bundle import Bundle
    from imgfs.runtime.security import Security
    from imgfs.runtime.spec import RuntimeConfig


class ContainerLife:
    """Writes a container's records; once a detached one runs, lets its caller go on, with the id.

    `started` is called by the main thread, whose caller's death is no matter from then on (prctl(2)).
    """

    def __init__(self, start: Start, bundle: Bundle, daemon: int, network: int | None) -> None:
        self._start = start
        self._directory = bundle.directory
        self._daemon = daemon
        self._network = network
        self._is_told = False

    def begin(
        self,
        resolved: Resolved,
        config: RuntimeConfig,
        runtime: str,
        stop_signal: str,
    ) -> None:
        """Write what it is; raises StoreError, UsageError."""
        start, options = self._start, self._start.options
        record = ContainerRecord(
            id=start.id,
            name=self._directory.name,
            image=resolved.reference,
            digest=str(resolved.digest),
            image_id=str(resolved.manifest.config.digest),
            created=time.time(),
            runtime=runtime,
            detached=options.detach,
            auto_remove=options.rm,
            stop_signal=stop_signal,
            stop_timeout=options.stop_timeout,
            network=str(start.request.network),
            command=tuple(config["process"]["args"]),
            ports=tuple(map(str, start.request.ports)),
            volumes=tuple(one.volume for one in start.request.binds if one.volume),
            labels=dict(start.request.annotations),
            mounts=tuple(one for one in config["mounts"] if one["type"] == "bind"),
            process=config["process"],
            capabilities=_capabilities(start.request.security),
        )
        record.write(self._directory)
        if options.cidfile:
            _write_new(options.cidfile, start.id)

    def started(self, pid: int | None) -> None:
        """Record the container's processes; the caller of a detached container need not wait any more."""
        if self._is_told:
            return
        self._is_told = True
        init = ProcessId.of(pid) if pid else None
        others = ProcessId.of(os.getpid()), ProcessId.of(self._daemon)
        network = ProcessId.of(self._network) if self._network else None
        RunningRecord(time.time(), init, *others, network).write(self._directory)
        if self._start.options.pidfile and pid:
            _write(Path(self._start.options.pidfile), str(pid))
        if self._start.options.detach:
            go_on_alone()
            with contextlib.suppress(OSError):  # it waits no more
                os.write(self._start.tell, self._start.id.encode())

    def ended(self, code: int) -> None:
        """Write how it ended."""
        self.started(None)
        ExitRecord(code, time.time()).write(self._directory)


def _capabilities(security: Security) -> dict[str, dict[str, list[str]]]:
    """Return the sets of capabilities of further processes, by who runs them."""
    held = capabilities()
    return {
        who: security.capabilities(held, is_root=is_root)
        for who, is_root in (("root", True), ("user", False))
    }


def _write(path: Path, text: str) -> None:
    """Write a file that is this user's, or not there; raises StoreError."""
    with os_errors(path), open(open_owned_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
        file.write(text)


def _write_new(path: str, text: str) -> None:
    """Write a file that is not there yet; raises StoreError."""
    with os_errors(Path(path)), open(path, "x") as file:
        file.write(text)
