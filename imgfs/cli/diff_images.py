"""imgfs diff of two images: their files, configs and packages."""

from __future__ import annotations

import argparse
import difflib
import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

from imgfs.cli.output import say, say_line
from imgfs.cli.paths import file_fields, named
from imgfs.quoting import printable, printable_path

if TYPE_CHECKING:
    from imgfs.image.compare import Difference
    from imgfs.image.files import ImageFiles
    from imgfs.packages.compare import PackageChange

_TEXT = 4 << 20  # bytes of a file whose lines are compared


def diff_images(options: argparse.Namespace) -> int:
    """Compare two images: exit code 0 if they are the same, 1 if not."""
    from imgfs.cli.selection import select_image
    from imgfs.image.compare import compare
    from imgfs.image.files import ImageFiles

    with ExitStack() as stack:
        images = []
        for name in (options.scratch, options.other):
            meant = argparse.Namespace(**{**vars(options), "image": name})
            images.append(stack.enter_context(select_image(meant).open()))
        before, after = (ImageFiles(image) for image in images)
        configs = [dict(image.resolved.config.config) for image in images]
        changed = sorted(
            key for key in {*configs[0], *configs[1]} if configs[0].get(key) != configs[1].get(key)
        )
        differences = compare(before, after, times=options.times)
        packages = _changed_packages(before, after) if options.packages else []
        if options.json:
            listed = [_fields(before, after, one) for one in differences]
            config = {key: {"before": configs[0].get(key), "after": configs[1].get(key)} for key in changed}
            found: dict[str, object] = {"config": config, "files": listed}
            if options.packages:
                found["packages"] = [{**one._asdict(), "change": one.change} for one in packages]
            say(json.dumps(found, indent=2))
            return int(bool(listed or changed or packages))
        for key in changed:
            ours, theirs = (json.dumps(config.get(key)) for config in configs)
            say(printable(f"C config {key}: {ours} -> {theirs}"))
        for package in packages:
            say(_package_line(package))
        is_different = bool(changed or packages)
        for one in differences:
            is_different = True
            what = f" ({', '.join(one.what)})" if one.what else ""
            say(f"{one.change[0].upper()} {printable_path(one.path)}{what}")
            if options.unified and "content" in one.what:
                _say_lines(before, after, one)
    return int(is_different)


def _changed_packages(before: ImageFiles, after: ImageFiles) -> list[PackageChange]:
    """Return the packages that differ; what cannot be read of either image is a warning."""
    from imgfs.cli.packages import warn_of_unread
    from imgfs.packages.compare import changed_packages
    from imgfs.packages.installed import InstalledPackages

    sides = [InstalledPackages(files) for files in (before, after)]
    changes = changed_packages(*(side.packages() for side in sides))
    for side in sides:
        warn_of_unread(side)
    return changes


def _package_line(package: PackageChange) -> str:
    versions = " -> ".join(", ".join(side) for side in (package.before, package.after) if side)
    return printable(f"{package.change[0].upper()} package {package.type} {package.name}: {versions}")


def _fields(before: ImageFiles, after: ImageFiles, one: Difference) -> dict[str, object]:
    return {
        **named(one.path),
        "change": one.change,
        "what": list(one.what),
        "before": file_fields(before, one.before) if one.before else None,
        "after": file_fields(after, one.after) if one.after else None,
    }


def _say_lines(before: ImageFiles, after: ImageFiles, one: Difference) -> None:
    """Write a unified diff of two texts, as bytes; nothing of what is large or no text."""
    assert one.before is not None
    assert one.after is not None
    if max(one.before.node.size, one.after.node.size) > _TEXT:
        return
    ours, theirs = b"".join(before.read(one.before)), b"".join(after.read(one.after))
    if b"\0" in ours or b"\0" in theirs:
        return
    lines = difflib.diff_bytes(
        difflib.unified_diff,
        ours.split(b"\n"),
        theirs.split(b"\n"),
        b"a" + one.path,
        b"b" + one.path,
        lineterm=b"",
    )
    for line in lines:
        say_line(line)
