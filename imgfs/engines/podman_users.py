"""Who stands upon an image of the additional store: in the stores of podman and CRI-O, and among what runs.

Each engine writes down its containers and images in its own store (containers/storage), which may be
anywhere. The usual ones are looked into: storage.conf's, root's default, and that of CRI-O's configuration
(crio.conf(5)); and those that the caller names. A container that runs is found wherever its engine's store
is: overlayfs says its lower directories in mountinfo (proc(5)), fuse-overlayfs in its command line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from imgfs.errors import ImgfsError
from imgfs.mounts.table import pids
from imgfs.registry.config.reload import Table
from imgfs.transport.containers_storage import usual_place
from imgfs.transport.files import open_regular

_USUAL = Path("/var/lib/containers/storage")
_CRIO = Path("/etc/crio/crio.conf")
_LARGEST = 64 << 20  # bytes of a file that is read


def users_of(layer: str, link: str, further: Iterable[Path] = (), crio: Path = _CRIO) -> str | None:
    """Return what uses a layer, which containers mount by `link`, in words; None if nothing is found.

    `further` are stores beside the usual ones.
    """
    for root in (*graph_roots(crio), *further):
        if _stand_upon(layer, root):
            return f"containers or images in {root} stand upon it"
    for process in _mounting(f"/l/{link}".encode()):
        return f"a container has it mounted (process {process} sees that)"
    return None


def graph_roots(crio: Path = _CRIO) -> list[Path]:
    """Return the stores to look into. `crio` is CRI-O's configuration, beside which its drop-ins are."""
    found = [usual_place().root, _USUAL]
    for path in (crio, *sorted(crio.with_name(f"{crio.name}.d").glob("*.conf"))):
        with suppress(ImgfsError):
            section = Table.parse(path, _read(path)).fields.get("crio")
            root = section.get("root") if isinstance(section, dict) else None
            if isinstance(root, str) and root.startswith("/"):
                found.append(Path(root))
    return list(dict.fromkeys(found))


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(_LARGEST)


def _stand_upon(layer: str, root: Path) -> bool:
    for name in ("layers.json", "volatile-layers.json"):
        with suppress(ImgfsError, ValueError):
            listed = json.loads(_read(root / "overlay-layers" / name))
            records = (one for one in listed or () if isinstance(one, dict))
            if any(one.get("parent") == layer for one in records):
                return True
    return False


def _mounting(link: bytes) -> Iterator[int]:
    """Yield a process of each mount namespace that has `link` among an overlay's lower directories."""
    seen = set()
    for process in pids():
        place = Path("/proc") / str(process)
        with suppress(OSError):  # it has ended
            namespace = os.readlink(place / "ns/mnt")
            is_new = namespace not in seen
            seen.add(namespace)
            mounts = (place / "mountinfo").read_bytes() if is_new else b""
            if link in mounts or link in (place / "cmdline").read_bytes():
                yield process
