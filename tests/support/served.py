"""`imgfs serve` for tests."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imgfs.cli.serve import pool_size
from tests.support.mounted import Imgfs, Ran, until


class Server(contextlib.AbstractContextManager["Server"]):
    """`imgfs serve`, and commands that know where it is; it is killed after its `with` block."""

    def __init__(self, imgfs: Imgfs, name: str = "serve", pass_fds: Sequence[int] = ()) -> None:
        self.imgfs = imgfs
        self.log = imgfs.directory / f"{name}.log"
        self.socket = imgfs.directory / f"{name}.sock"
        self._before = imgfs.environment["IMGFS_SERVE"]
        imgfs.environment["IMGFS_SERVE"] = str(self.socket)
        with self.log.open("wb") as log:
            if imgfs.user:
                self.process = imgfs.start("serve", stderr=log, pass_fds=pass_fds)
            else:  # a process that is forked for it would not begin with its own words
                words = [sys.executable, "-m", "imgfs", "serve"]
                self.process = subprocess.Popen(words, env=imgfs.environment, stderr=log, pass_fds=pass_fds)
        until(self.socket.exists, "the server listens")

    def mount(self, *words: str | Path, before: Sequence[str] = (), **more: Any) -> Ran:
        """`imgfs mount WORDS…`, in a process of its own, which the words `before` lead to."""
        command = sys.executable, "-m", "imgfs", "mount", "--driver", "fuse"
        return self.imgfs.program(*before, *command, *words, **more)

    def said(self, words: str) -> int:
        """Return how often it has logged this."""
        return self.log.read_text().count(words)

    def forked(self) -> list[int]:
        """Return the processes that it has forked for commands and that have not ended."""
        return forked_from(self.process.pid)[pool_size() + 1 :]

    def end(self) -> None:
        self.process.terminate()
        assert self.process.wait(60) == 0, self.log.read_text()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.imgfs.environment["IMGFS_SERVE"] = self._before


def forked_from(pid: int) -> list[int]:
    """The processes that a server has forked and that have not ended: first those that wait beside it."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
