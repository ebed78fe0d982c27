"""Names of files and layouts on this machine: never asked of Docker Hub, and never pushed there.

A name without a registry is Docker Hub's; `app.tar` or `layout:v1` typed beside a file or a layout of that
name means the file. Words of other tools' transports and archives are refused by their form in
`oci.reference`; here the file system is looked at.
"""

from __future__ import annotations

import os

from imgfs.errors import UsageError
from imgfs.oci.reference import Reference, parse_reference


def parse_destination(text: str) -> Reference:
    """Read the name of an image to be written; raises UsageError, also for the name of a file or layout."""
    check_not_local(text)
    return parse_reference(text)


def check_not_local(text: str) -> None:
    """Raise UsageError if a name without `oci:` or `docker://` is that of a file or an OCI layout here."""
    if text.startswith(("oci:", "docker://")):
        return
    for path in dict.fromkeys((text, text.partition("@")[0].partition(":")[0])):
        if _is_layout(path):
            tag = text.removeprefix(path) or ":TAG"
            raise UsageError(
                f"{text!r} is an OCI layout in this directory: write oci:{path}{tag}{_otherwise(text)}"
            )
        if os.path.isfile(path):
            raise UsageError(
                f"{text!r} is a file; imgfs reads and writes registries and OCI layouts (oci:DIR:TAG) only"
                f"{_otherwise(text)}"
            )


def _is_layout(path: str) -> bool:
    """Return True for a directory with the files of a layout; the marker may be missing (image-layout.md)."""
    if not path or not os.path.isfile(os.path.join(path, "index.json")):
        return False
    return os.path.isfile(os.path.join(path, "oci-layout")) or os.path.isdir(os.path.join(path, "blobs"))


def _otherwise(text: str) -> str:
    try:
        return f"; for the image in a registry write docker://{parse_reference(text)}"
    except UsageError:
        return ""
