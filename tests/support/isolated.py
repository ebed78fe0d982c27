"""Functions of tests in a process with a network of its own, whose names a server on 127.0.0.1:53 knows.

def in_isolation(directory: str) -> None:
    with NameServer({...}):
        ...

@needs_isolation
def test_x(tmp_path: Path) -> None:
    isolated(in_isolation, str(tmp_path))
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imgfs.runtime.namespace import detach_other_mounts

PUBLIC = "93.184.215.14"  # an address of its own that is nobody's neighbour
_TOOLS = all(shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin") for tool in ("ip", "unshare", "mount"))
needs_isolation = pytest.mark.skipif(os.geteuid() != 0 or not _TOOLS, reason="only root can be by itself")
_SCRIPT = """
PATH=$PATH:/usr/sbin:/sbin
ip link set lo up && ip addr add "$1/32" dev lo && mount --bind "$2" /etc/resolv.conf || exit 2
shift 2; exec "$@"
"""


def isolated(function: Callable[..., None], directory: Path, *arguments: str, timeout: float = 120) -> None:
    """Call a function of a module as `function(directory, *arguments)`; fails with what it raises.

    glibc gives up a name server that says nothing after two seconds twice, unless somebody else does before.
    """
    resolv = directory / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\noptions timeout:2 attempts:2\n")
    alone = ["unshare", "--mount", "--net", "sh", "-c", _SCRIPT, "sh", PUBLIC, str(resolv)]
    words = [sys.executable, "-m", "tests.support.isolated", function.__module__, function.__name__]
    done = subprocess.run(
        [*alone, *words, str(directory), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    module, name, directory, *arguments = sys.argv[1:]
    detach_other_mounts([])  # of tests beside this one, who wait for their daemons to end
    getattr(importlib.import_module(module), name)(Path(directory), *arguments)
