"""A package, and its package URL (purl-spec: PURL-SPECIFICATION.rst, and PURL-TYPES.rst for each type)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import quote

DEB, RPM, APK, PYPI, NPM = "deb", "rpm", "apk", "pypi", "npm"  # the types of purl-spec
TYPES = (DEB, RPM, APK, PYPI, NPM)
_OF_DISTRIBUTIONS = (DEB, RPM, APK)
LONGEST = 500  # characters of a field
_ASSIGNMENT = re.compile(r"""([A-Z_]+)=(["']?)([^"'\\$`]{0,200})\2\s*""")


class Distribution(NamedTuple):
    """What /etc/os-release says: `id` like "debian", `version` like "12"; "" for what it does not say."""

    id: str = ""
    version: str = ""
    name: str = ""

    @property
    def qualifier(self) -> str:
        """Return both as one word, `debian-12`."""
        return "-".join(filter(None, (self.id, self.version)))


class Package(NamedTuple):
    """An installed package. `path` is the file that says so, `layer` the number of the layer that brought it.

    `version` is as the package manager writes it, without an rpm's epoch.
    """

    type: str
    name: str
    version: str
    path: bytes = b""
    layer: int = 0
    architecture: str = ""
    license: str = ""
    source: str = ""  # the source package, where that has another name
    epoch: str = ""

    @property
    def full_version(self) -> str:
        """Return the version with its epoch."""
        return f"{self.epoch}:{self.version}" if self.epoch else self.version


def text_of(value: bytes) -> str:
    """Return a field as text: what is no UTF-8 is replaced, what is longer than LONGEST is cut."""
    return value[: 4 * LONGEST].decode(errors="replace").strip()[:LONGEST]


def parse_os_release(body: bytes) -> Distribution:
    """Read an os-release(5): lines NAME=VALUE, perhaps quoted; lines of other forms are passed over."""
    fields = {}
    for line in body.decode(errors="replace").splitlines():
        if match := _ASSIGNMENT.fullmatch(line):
            fields[match[1]] = match[3]
    return Distribution(
        fields.get("ID", "").lower(), fields.get("VERSION_ID", ""), fields.get("PRETTY_NAME", "")
    )


def purl_of(package: Package, distribution: Distribution) -> str:
    """Return a package's purl."""
    namespace, name = "", package.name
    qualifiers = {"arch": package.architecture}
    if package.type in _OF_DISTRIBUTIONS:
        namespace = distribution.id
        qualifiers |= {"distro": distribution.qualifier, "epoch": package.epoch}
    if package.type in (DEB, APK):
        name = name.lower()
    elif package.type == PYPI:  # "case insensitive", "underscore replaced with dash"
        name = name.lower().replace("_", "-")
    elif package.type == NPM:  # the scope, with its @, is the namespace
        namespace, _, name = name.lower().rpartition("/")
    return purl(package.type, filter(None, (namespace, name)), package.version, qualifiers)


def purl(kind: str, names: Iterable[str], version: str, qualifiers: Mapping[str, str]) -> str:
    """Put a purl together; empty qualifiers are left out (PURL-SPECIFICATION.rst, "How to build")."""
    said = "&".join(f"{key}={_quoted(value)}" for key, value in sorted(qualifiers.items()) if value)
    path = "/".join(map(_quoted, names))
    return f"pkg:{kind}/{path}" + (f"@{_quoted(version)}" if version else "") + (f"?{said}" if said else "")


def _quoted(text: str) -> str:
    """Encode all but unreserved characters and colons ("Character encoding")."""
    return quote(text, safe=":", errors="replace")
