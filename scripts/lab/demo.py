"""The quickstart's image: `python -m scripts.lab.demo CACHE` builds it there, once, and prints its layout.

Debian minbase where mmdebstrap works; elsewhere files of the running system. Above it a small layer that
changes one file and hides another, so that there is a union to see.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scripts.lab.layout import (
    Image,
    Layer,
    Member,
    cached_image,
    directory,
    pack_members,
    regular,
    tree_members,
    whiteout,
    write_image,
)
from scripts.lab.recipes import RecipeError, pack_debian

MOTD = b"This file comes from the upper layer; /etc/issue of the lower layer is hidden by a whiteout.\n"
OWN = ("usr/share/common-licenses", "usr/share/doc", "usr/share/zoneinfo", "usr/share/perl5")


def build_demo(cache: Path) -> Image:
    """Build the demonstration image in `cache`, or find it there."""

    def build(layout: Path) -> Image:
        return write_image(layout, "latest", [_base(layout), _upper(layout)])

    return cached_image(cache, "demo", build)


def _base(layout: Path) -> Layer:
    try:
        return pack_debian(layout)
    except RecipeError as no_debian:
        print(f"no Debian root ({no_debian}): taking files of this system", file=sys.stderr)
        return pack_members(layout, _own_files())


def _own_files() -> Iterator[Member]:
    yield directory("etc"), None
    for name in ("etc/issue", "etc/os-release"):
        source = Path("/", name).resolve()
        yield regular(name, source.stat().st_size), source
    yield directory("usr"), None
    yield directory("usr/share"), None
    for name in OWN:
        if Path("/", name).is_dir():
            yield directory(name), None
            yield from tree_members(Path("/", name), name, parents=False)


def _upper(layout: Path) -> Layer:
    with tempfile.TemporaryDirectory(prefix="imgfs-demo-") as scratch:
        motd = Path(scratch, "motd")
        motd.write_bytes(MOTD)
        members: list[Member] = [
            (directory("etc"), None),
            (whiteout("etc/issue"), None),
            (regular("etc/motd", len(MOTD)), motd),
        ]
        return pack_members(layout, members)


if __name__ == "__main__":
    try:
        print(build_demo(Path(sys.argv[1]).absolute()).layout)
    except (RecipeError, OSError) as failed:
        sys.exit(f"quickstart: {failed}")
