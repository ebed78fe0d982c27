"""Images that containers can be made of, for tests: a static busybox and a few files."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import tarmake as tar
from tests.mounted import Stored, gzipped, write_image

COMMANDS = "sh cat chmod chown echo env false grep hostname id ls pwd rm sleep sort stat touch true tty"
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n"
GROUP = b"root:x:0:\nadm:x:4:root\nweb:x:34:\nextra:x:44:web\n"
PODMAN = (  # what podman must be told where it may not raise its own limits
    "--rm",
    "--runtime=runc",
    "--network=none",
    "--ulimit=nofile=1000:1000",
    "--ulimit=nproc=1000:1000",
)


def has_static_busybox() -> bool:
    """Whether the machine's busybox runs where there are no libraries."""
    found = shutil.which("busybox")
    if found is None:
        return False
    return subprocess.run(["ldd", found], capture_output=True, check=False).returncode != 0


@functools.cache
def busybox_layer() -> Stored:
    """A layer with a shell, two users and little else."""
    program = Path(shutil.which("busybox") or "/nowhere").read_bytes()
    members = [
        tar.directory("", mode=0o755),
        tar.directory("bin"),
        tar.file("bin/busybox", program, mode=0o755),
        *(tar.symlink(f"bin/{name}", "busybox") for name in COMMANDS.split()),
        tar.file("bin/plain", b"no program"),
        tar.file("bin/script", b"#!/nowhere\n", mode=0o755),
        tar.directory("etc"),
        tar.file("etc/passwd", PASSWD),
        tar.file("etc/group", GROUP),
        tar.directory("root", mode=0o700),
        tar.directory("tmp", mode=0o1777),
        tar.directory("srv", uid=33, gid=34, mode=0o750),
        tar.file("srv/file", b"of the image", uid=33, gid=34, mode=0o600),
    ]
    return gzipped(tar.archive(*members))


def busybox(layout: Path, tag: str = "test", **config: Any) -> str:
    """An image of that layer; its reference. `config` is the runtime part of its config."""
    fields: Mapping[str, Any] = {"Env": ["PATH=/bin"], **config}
    return write_image(layout, [busybox_layer()], {"config": fields}, tag)
