"""What imgfs mounts, beside what umoci, podman and containerd unpack: stacks of layers by chance.

Each stack is unpacked by all three, and mounted by FUSE and by the kernel driver. A judge may refuse a stack;
one that accepts it must see the same names, kinds, modes, owners, times, attributes, devices, sizes, links
and bytes, but for what `_known` excuses. A stack is repeated with --seed S --stack NUMBER --count 1.
"""

from __future__ import annotations

import argparse
import random
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from imgfs.mounts.table import mounts
from scripts.proving.stacks import packers, stack
from tests.support.engines import Containerd, containerd
from tests.support.mounted import Imgfs, Stored, gzipped, gzipped_in_members, plain, write_image, zstd
from tests.support.umoci_oracle import (
    Seen,
    UmociError,
    differences,
    undated,
    unpack_layout,
    walk_directory,
    write_layout,
)

Seens = Mapping[bytes, Seen]
_TYPE = 0o170000


class Judge(NamedTuple):
    """An engine: what it makes of the image tagged `test` in a layout, None if it refuses it."""

    name: str
    unpack: Callable[[Path, Path], Seens | None]
    overlays: bool  # whether it stacks layers by overlayfs
    drops: Callable[[bytes, bytes], bool]  # extended attributes, by name and value, that it leaves out


@contextmanager
def judges(place: Path) -> Iterator[list[Judge]]:
    """Run the engines with all they keep in `place`, whose path must be short."""
    (place / "ctd").mkdir()
    with ExitStack() as stack:
        stack.callback(_unbind, place / "p/overlay")
        daemon = stack.enter_context(containerd(place / "ctd"))
        yield [
            Judge("umoci", _by_umoci, False, _is_empty),
            Judge("podman", lambda layout, _: _by_podman(place, layout), True, _is_empty),
            Judge(
                "containerd",
                lambda layout, scratch: _by_containerd(daemon, layout, scratch),
                True,
                _is_risky,
            ),
        ]


def _is_empty(_name: bytes, value: bytes) -> bool:
    """Return True for what Go's archive/tar took for no attribute, before 1.20."""
    return not value


def _is_risky(name: bytes, _value: bytes) -> bool:
    """Return True for what containerd leaves out, or loses as it gives a further link an owner (chown(2))."""
    return name.startswith(b"trusted.") or name == b"security.capability"


def _by_umoci(layout: Path, scratch: Path) -> Seens | None:
    try:
        return walk_directory(unpack_layout(layout, "test", scratch / "bundle"))
    except UmociError as error:
        print(f"    umoci: {str(error).splitlines()[-1][-150:]}")
        return None


def _by_podman(place: Path, layout: Path) -> Seens | None:
    podman = ["podman", f"--root={place}/p", f"--runroot={place}/r", f"--tmpdir={place}/t"]
    podman += ["--storage-driver=overlay", "--cgroup-manager=cgroupfs"]
    pulled = _run(
        *podman, "pull", "-q", f"oci:{layout.name}:test", within=layout.parent
    )  # it makes names of paths
    if pulled is None:
        return None
    name = pulled.split()[-1]
    try:
        at = _run(*podman, "image", "mount", name)
        assert at, "podman mounts what it has pulled"
        return walk_directory(Path(at.split()[-1]), lists_whiteouts=True)
    finally:
        _run(*podman, "image", "umount", name)
        _run(*podman, "rmi", "-f", name)


def _unbind(place: Path) -> None:
    """Unmount what podman binds to itself, and leaves so."""
    for _ in range(sum(mount.mountpoint == place for mount in mounts())):
        _run("umount", str(place))


def _by_containerd(daemon: Containerd, layout: Path, scratch: Path) -> Seens | None:
    daemon.add(layout, "judged")
    at = scratch / "ctd"
    at.mkdir()
    ctr = ["ctr", "-a", str(daemon.socket), "images"]
    try:
        if _run(*ctr, "mount", "judged:test", str(at)) is None:
            return None
        seen = walk_directory(at, lists_whiteouts=True)
        _run(*ctr, "unmount", "--rm", str(at))
        return seen
    finally:
        _run(*ctr, "rm", "--sync", "judged:test")


def _run(*words: str, within: Path | None = None) -> str | None:
    """Run a program in a directory; return what it writes, None, with its last words, if it fails."""
    done = subprocess.run(
        words, cwd=within, check=False, capture_output=True, text=True, errors="replace", timeout=120
    )
    if done.returncode:
        print(f"    {words[0]}: {(done.stderr.strip().splitlines() or ['?'])[-1][-200:]}")
        return None
    return done.stdout


# -- what is compared ----------------------------------------------------------------------------------------


def compare(judge: Judge, expected: Seens, actual: Seens) -> list[str]:
    """Return a line for each difference that no known rule explains."""
    ignored = undated(actual)
    expected = {path: seen for path, seen in expected.items() if not _is_whiteout(seen)}
    expected, actual = (
        {path: _without(seen, judge.drops) for path, seen in seens.items() if path}
        for seens in (expected, actual)
    )
    if judge.overlays:
        ignored |= {path for path, seen in actual.items() if _is_dated_anew(seen)}
        expected, actual = (_as_overlaid(seens) for seens in (expected, actual))
    return differences(expected, actual, ignoring_mtime=ignored)


def _is_dated_anew(seen: Seen) -> bool:
    """Return True for what engines give another time: directories that later layers add to, files that have
    several links, and all from before 1970."""
    return stat.S_ISDIR(seen.mode) or seen.nlink > 1 or seen.mtime_ns < 0


def _as_overlaid(seens: Seens) -> dict[bytes, Seen]:
    """Return what is the same on overlayfs and here.

    There links are counted by layer, and for containerd a directory keeps attributes of the layers below.
    """
    return {
        path: replace(seen, nlink=0, group=b"", xattrs=() if stat.S_ISDIR(seen.mode) else seen.xattrs)
        for path, seen in seens.items()
    }


def _without(seen: Seen, drops: Callable[[bytes, bytes], bool]) -> Seen:
    return replace(seen, xattrs=tuple(pair for pair in seen.xattrs if not drops(*pair)))


def _is_whiteout(seen: Seen) -> bool:
    return seen.mode & _TYPE == stat.S_IFCHR and seen.device == 0


def mounted(imgfs: Imgfs, image: str, driver: str) -> Seens:
    """Mount an image by a driver, and look at everything."""
    at = imgfs.mountpoint(f"by-{driver}")
    imgfs.driver = driver
    imgfs.mount(image, at=at)
    try:
        return walk_directory(at)
    finally:
        imgfs.umount(at)


class Verdict(NamedTuple):
    """What came of a stack: the judges that take it, and what differs, a line each."""

    takers: list[str]
    lines: list[str]


def judged(panel: Sequence[Judge], layers: Sequence[bytes], scratch: Path, chance: random.Random) -> Verdict:
    """Unpack and mount one stack, its layers packed anew for the mounts."""
    write_layout(scratch / "layout", layers)
    packs: list[Callable[[bytes], Stored]] = [
        plain,
        gzipped,
        gzipped_in_members,
        zstd,
        lambda tar: zstd(tar, 3000),
    ]
    image = write_image(scratch / "ours", [chance.choice(packs)(layer) for layer in layers])
    shown, lines = _by_imgfs(Imgfs(scratch / "imgfs"), image)
    takers = []
    for judge in panel:
        (scratch / judge.name).mkdir()
        expected = judge.unpack(scratch / "layout", scratch / judge.name)
        if expected is not None:
            takers.append(judge.name)
            lines += [f"{judge.name}: {line}" for line in compare(judge, expected, shown)] if shown else []
    if not (takers or shown):
        lines = []  # nothing takes it
    return Verdict(takers, lines)


def _by_imgfs(imgfs: Imgfs, image: str) -> tuple[Seens, list[str]]:
    """Return what both drivers show, and where they differ; nothing, and why, of an image that is refused."""
    try:
        by_fuse, by_kernel = mounted(imgfs, image, "fuse"), mounted(imgfs, image, "kernel")
    except AssertionError as error:
        return {}, [f"imgfs: {str(error)[:300]}"]
    finally:
        imgfs.close()
    return by_fuse, [f"kernel, not FUSE: {line}" for line in differences(by_fuse, by_kernel)]


def main(arguments: Sequence[str]) -> int:
    """Judge stacks; 1 if there is a difference."""
    parser = argparse.ArgumentParser(prog="scripts/unpackers", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which stacks (default: 0)")
    parser.add_argument("--stack", type=int, default=0, metavar="NUMBER", help="the first of them")
    parser.add_argument("--count", type=int, default=20, metavar="N", help="how many (default: 20)")
    asked = parser.parse_args(arguments)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="judge-", dir="/tmp") as place, judges(Path(place)) as panel:
        for number in range(asked.stack, asked.stack + asked.count):
            chance = random.Random(f"{asked.seed}/{number}")
            scratch = Path(place, f"stack{number}")  # of which podman makes a name: in lower case
            scratch.mkdir()
            layers = stack(chance, scratch, packers())
            takers, found = judged(panel, layers, scratch, chance)
            shutil.rmtree(scratch)
            by = ", ".join(takers) or "none"
            print(f"{asked.seed}/{number}: {len(layers)} layers, taken by {by}: {len(found)} differences")
            for line in found:
                print(f"  {line}")
            sys.stdout.flush()
            failed += bool(found)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
