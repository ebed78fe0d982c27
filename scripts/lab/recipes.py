"""The real images: Debian from mmdebstrap, Python from pip, Node from npm; and synthetic trees.

Everything is built as root or as an ordinary user (mmdebstrap then wants user namespaces), once, into a cache
directory. Trees that other tools make are packed with owner 0:0.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.lab.layout import (
    MODIFIED,
    Image,
    Layer,
    Member,
    cached_image,
    copied_layer,
    directory,
    pack_members,
    pack_tar,
    regular,
    symlink,
    tree_members,
    whiteout,
    write_image,
)

SUITE = "bookworm"
PYTHON = "3.11"  # bookworm's: the packages of a Python image are made for it, whatever runs this
SITE = f"usr/local/lib/python{PYTHON}/dist-packages"

# One pip install per layer, dependencies written out so that no layer repeats another's files.
PYTHON_APP: tuple[tuple[str, ...], ...] = (
    ("numpy==1.26.4",),
    ("pandas==2.2.2", "python-dateutil==2.9.0.post0", "pytz==2024.1", "tzdata==2024.1", "six==1.16.0"),
    ("scipy==1.13.1",),
    (
        *("matplotlib==3.9.0", "contourpy==1.2.1", "cycler==0.12.1", "fonttools==4.53.0"),
        *("kiwisolver==1.4.5", "packaging==24.1", "pillow==10.3.0", "pyparsing==3.1.2"),
    ),
    ("scikit-learn==1.5.0", "joblib==1.4.2", "threadpoolctl==3.5.0"),
)
EXPRESS = ("express@4.19.2",)
NODE_APP = (
    *("@mui/icons-material@5.15.20", "@mui/material@5.15.20", "react@18.3.1", "react-dom@18.3.1"),
    *("date-fns@3.6.0", "googleapis@140.0.0", "aws-sdk@2.1640.0", "typescript@5.4.5", "webpack@5.92.0"),
    *("next@14.2.4", "react-scripts@5.0.1", "rxjs@7.8.1", "lodash@4.17.21", "core-js@3.37.1"),
)


class RecipeError(Exception):
    """A tool that a recipe needs is missing or failed; the message is its last words."""


def run(command: Sequence[str | Path], *, timeout: float = 900, cwd: Path | None = None) -> None:
    """Run a build tool quietly; RecipeError with the end of what it said if it fails."""
    try:
        ran = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    except FileNotFoundError as missing:
        raise RecipeError(f"{command[0]} is not installed") from missing
    except PermissionError as closed:
        raise RecipeError(f"{command[0]} may not be executed here") from closed
    except subprocess.TimeoutExpired as late:
        raise RecipeError(f"{command[0]} took longer than {timeout:.0f} s") from late
    if ran.returncode:
        tail = " | ".join(ran.stdout.decode(errors="replace").strip().splitlines()[-3:])
        raise RecipeError(f"{command[0]} failed ({ran.returncode}): {tail}")


@contextmanager
def debian_tar(include: Iterable[str] = ()) -> Iterator[Path]:
    """Make a minbase Debian root with the packages `include` as a tar; it is gone after the block."""
    mode = "root" if os.geteuid() == 0 else "unshare"
    with tempfile.TemporaryDirectory(prefix="imgfs-debian-") as scratch:
        path = Path(scratch) / "root.tar"
        options = ["--quiet", f"--mode={mode}", "--variant=minbase"]
        packages = ",".join(include)
        if packages:
            options.append(f"--include={packages}")
        run(["mmdebstrap", *options, SUITE, path])
        yield path


def pack_debian(layout: Path, include: Iterable[str] = ()) -> Layer:
    """Pack a minbase Debian root with the packages `include` as a layer of `layout`."""
    with debian_tar(include) as path:
        return pack_tar(layout, path)


def pack_pip(layout: Path, requirements: Iterable[str], *more: str) -> Layer:
    """Install exactly these requirements as a layer of `layout`; `more` as for `pip_install`."""
    with tempfile.TemporaryDirectory(prefix="imgfs-pip-") as scratch:
        pip_install(Path(scratch), requirements, *more)
        return pack_members(layout, tree_members(Path(scratch), SITE))


def pip_install(site: Path, requirements: Iterable[str], *more: str) -> None:
    """Install exactly these requirements, for bookworm's Python, in the directory `site`.

    `more` are further options of `pip install`.
    """
    run([*_pip_words(), *more, "--target", site, *requirements])


def _pip_words() -> list[str]:
    tag = PYTHON.replace(".", "")
    wheels = [
        f"--platform={name}_{platform.machine()}"
        for name in ("manylinux1", "manylinux_2_17", "manylinux2014", "manylinux_2_28")
    ]
    abis = [f"--abi={name}" for name in (f"cp{tag}", "abi3", "none")]
    quiet = ["--quiet", "--disable-pip-version-check", "--root-user-action=ignore", "--no-input"]
    made_for = ["--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}", *abis, *wheels]
    return [sys.executable, "-m", "pip", "install", "--no-deps", *quiet, *made_for]


def pack_npm(layout: Path, packages: Iterable[str], at: str = "app") -> Layer:
    """Install npm packages with their dependencies as the layer of `layout` that holds `at`/node_modules."""
    with tempfile.TemporaryDirectory(prefix="imgfs-npm-") as scratch:
        (Path(scratch) / "package.json").write_text(json.dumps({"name": "app", "version": "1.0.0"}))
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--legacy-peer-deps"]
        run(["npm", "install", *quiet, *packages], cwd=Path(scratch))
        return pack_members(layout, tree_members(Path(scratch), at))


def pack_files(layout: Path, files: dict[str, str]) -> Layer:
    """Pack small text files (path to content), parents included, as a layer of `layout`."""
    with tempfile.TemporaryDirectory(prefix="imgfs-files-") as scratch:
        for name, text in files.items():
            path = Path(scratch) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            os.utime(path, (MODIFIED, MODIFIED))
        return pack_members(layout, tree_members(Path(scratch)))


def python_app(cache: Path) -> Image:
    """Build Debian with Python below one layer for each step of PYTHON_APP."""

    def build(layout: Path) -> Image:
        base = pack_debian(layout, ["python3"])
        layers = [base, *(pack_pip(layout, step) for step in PYTHON_APP)]
        return write_image(layout, "latest", layers, ["python3"])

    return cached_image(cache, "python-app", build)


SERVER = """
const app = require('express')()
app.get('/', (request, response) => response.send('hello'))
const server = app.listen(0, '127.0.0.1', () => server.close())
"""


def node_app(cache: Path) -> Image:
    """Build Debian with Node, an express server, and one large layer of about 100,000 entries."""

    def build(layout: Path) -> Image:
        layers = [
            pack_debian(layout, ["nodejs"]),
            pack_npm(layout, EXPRESS, "app"),
            pack_npm(layout, NODE_APP, "srv/site"),
            pack_files(layout, {"app/server.js": SERVER}),
        ]
        return write_image(layout, "latest", layers, ["node", "/app/server.js"])

    return cached_image(cache, "node-app", build)


def node_tree(cache: Path) -> Image:
    """Build one layer with a node_modules tree of over 30,000 files."""

    def build(layout: Path) -> Image:
        packages = [name for name in NODE_APP if name.startswith(("@mui/icons", "date-fns"))]
        return write_image(layout, "latest", [pack_npm(layout, packages)])

    return cached_image(cache, "node-tree", build)


def synthetic(cache: Path, files: int) -> Image:
    """Build one layer of `files` tiny files, a thousand to a directory, in directories of directories."""
    return cached_image(
        cache,
        f"synthetic-{files}",
        lambda layout: write_image(layout, "latest", [_pack_synthetic(layout, files)]),
    )


def one_of_many(cache: Path, number: int) -> Image:
    """Build one of many images: busybox and 10,000 tiny files, which they share, and 2,000 of its own."""
    base = cached_image(cache, "many-base", _build_shared)

    def build(layout: Path) -> Image:
        layers = [copied_layer(base, layout), _pack_own(layout, number, 2_000)]
        return write_image(layout, "latest", layers, ["sleep", "infinity"])

    return cached_image(cache, f"many-{number}", build)


def shelf(cache: Path, count: int) -> Image:
    """Build many images as one: the layer that they share, above it of each one of its own, 100 files.

    It is converted, or indexed, as one, and taken apart in the registry (scripts/lab/shelf.py).
    """
    base = cached_image(cache, "many-base", _build_shared)

    def build(layout: Path) -> Image:
        own = [_pack_own(layout, number, 100) for number in range(count)]
        return write_image(layout, "latest", [copied_layer(base, layout), *own], ["sleep", "infinity"])

    return cached_image(cache, f"shelf-{count}", build)


def pause(cache: Path) -> Image:
    """Build what runs in a pod before its containers do: busybox, which sleeps."""

    def build(layout: Path) -> Image:
        return write_image(layout, "latest", [pack_members(layout, _busybox())], ["sleep", "infinity"])

    return cached_image(cache, "pause", build)


def _pack_own(layout: Path, number: int, files: int) -> Layer:
    with tempfile.TemporaryDirectory(prefix="imgfs-many-") as scratch:
        content = Path(scratch) / "content"
        content.write_text(own_text(number))
        own = ((_moved(info, "own"), body) for info, body in _synthetic_members(files, content))
        return pack_members(layout, [(directory("own"), None), *own])


def own_text(number: int) -> str:
    """Return what each of the files says that image `number` has for itself: the 16 bytes of a tiny file."""
    return f"of image {number:07}"


def shared_text() -> str:
    """Return what each of the files says that all of them share."""
    return "0123456789abcdef"


def _busybox() -> list[Member]:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RecipeError("busybox is not installed")
    program = (regular("bin/busybox", Path(busybox).stat().st_size, 0o755), Path(busybox))
    return [(directory("bin"), None), program, (symlink("bin/sleep", "busybox"), None)]


def _build_shared(layout: Path) -> Image:
    with tempfile.TemporaryDirectory(prefix="imgfs-many-") as scratch:
        content = Path(scratch) / "content"
        content.write_text(shared_text())
        members = [*_busybox(), *_synthetic_members(10_000, content)]
        return write_image(layout, "latest", [pack_members(layout, members)])


def _moved(info: tarfile.TarInfo, at: str) -> tarfile.TarInfo:
    info.name = f"{at}/{info.name}"
    return info


def synthetic_changed(cache: Path, files: int) -> Image:
    """Build the same with a layer above it that changes each tenth file, and deletes each twentieth."""
    below = synthetic(cache, files)

    def build(layout: Path) -> Image:
        layers = [copied_layer(below, layout), _pack_synthetic(layout, files, changes=True)]
        return write_image(layout, "latest", layers)

    return cached_image(cache, f"synthetic-{files}-changed", build)


def _pack_synthetic(layout: Path, files: int, *, changes: bool = False) -> Layer:
    with tempfile.TemporaryDirectory(prefix="imgfs-synthetic-") as scratch:
        content = Path(scratch) / "content"
        content.write_bytes(b"fedcba9876543210" if changes else b"0123456789abcdef")
        members = _synthetic_members(files, content)
        return pack_members(layout, _changes(members) if changes else members)


def _changes(members: Iterable[Member]) -> Iterator[Member]:
    """Yield of each tenth file a new version, of the ones half way between them a whiteout."""
    for info, content in members:
        if content and info.name.endswith("0"):
            yield info, content
        elif content and info.name.endswith(("15", "35", "55", "75", "95")):
            yield whiteout(info.name), None


def _synthetic_members(files: int, content: Path) -> Iterator[Member]:
    for number in range(files):
        outer, inner, base = number // 100_000, number // 1_000 % 100, number % 1_000
        if number % 100_000 == 0:
            yield directory(f"{outer:02}"), None
        if base == 0:
            yield directory(f"{outer:02}/{inner:02}"), None
        yield regular(f"{outer:02}/{inner:02}/file-{base:03}", 16), content
