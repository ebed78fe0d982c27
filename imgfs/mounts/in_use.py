"""What uses a mount: mounts that stand on it, and processes that are in it. The mount itself is not touched.

An overlay keeps what it was made over: it has a mount of its own of each of its layers (clone_private_mount,
linux: fs/overlayfs/super.c). So the mount that it was made over can be taken down, and the file system goes
on until the overlay is gone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from imgfs.mounts.table import mounts, pids, unescaped
from imgfs.quoting import printable

_LAYERS = (b"lowerdir", b"lowerdir+", b"datadir+", b"upperdir", b"workdir")  # overlayfs.rst
_COLON = re.compile(r"(?<!\\):")  # one in a path has a backslash before it
_LINKS = ("cwd", "root", "exe")  # of a process, in proc(5)


def overlays_over(mountpoint: Path) -> list[Path]:
    """Return where overlays are mounted that name a directory of a mount as a layer, the latest first."""
    found = []
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            before, _, after = line.partition(b" - ")
            if after.startswith(b"overlay ") and any(
                _is_within(layer, mountpoint) for layer in _layers(after.split()[-1])
            ):
                found.append(Path(unescaped(before.split(b" ", 5)[4])))
    return found[::-1]


def user_of(mountpoint: Path) -> str | None:
    """Return what keeps a mount busy, and what to do, in words; None if it is not to be seen from here."""
    below = [mount.mountpoint for mount in mounts() if mountpoint in mount.mountpoint.parents]
    if below:
        return f"{below[-1]} is mounted in it: umount {below[-1]}"
    using = list(_processes_in(mountpoint))
    if not using:
        return None
    pid = next((pid for pid in using if pid != os.getpid()), None)  # who asks ends by itself
    if pid is None:
        return "this command was started in it"
    name = ""
    with suppress(OSError):
        name = f" ({printable(Path(f'/proc/{pid}/comm').read_text(errors='replace').strip())})"
    return f"process {pid}{name} uses it"


def _layers(options: bytes) -> Iterator[str]:
    for option in options.split(b","):
        name, _, value = option.partition(b"=")
        if name in _LAYERS:
            yield from (layer.replace("\\:", ":") for layer in _COLON.split(unescaped(value)))


def _processes_in(mountpoint: Path) -> Iterator[int]:
    """Yield the processes that have a file of a mount open, or run in it, and that this user may look at."""
    for pid in reversed(pids()):
        with suppress(OSError):  # it has ended, or is another user's
            place = f"/proc/{pid}"
            files = (f"fd/{number}" for number in os.listdir(f"{place}/fd"))
            if any(_is_within(_target(f"{place}/{link}"), mountpoint) for link in (*_LINKS, *files)):
                yield pid


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _is_within(path: str, mountpoint: Path) -> bool:
    return path == str(mountpoint) or path.startswith(f"{mountpoint}/")
