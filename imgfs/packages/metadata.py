"""Metadata in lines: of dpkg and apk (a package a paragraph), of Python (a file each); and npm's JSON.

dpkg: deb-control(5), and dpkg(1) for `Status`. apk: wiki.alpinelinux.org, "Apk spec", letters of an installed
database. Python: packaging.python.org, "Core metadata specifications". npm: docs.npmjs.com, package.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from imgfs.errors import InvalidImage
from imgfs.packages.package import APK, DEB, LONGEST, NPM, PYPI, Package, text_of

_LINE = 64 << 10  # bytes of a line that are looked at
_GONE = ("not-installed", "config-files")  # states of which no program is left
_DEB = frozenset({b"Package", b"Status", b"Version", b"Architecture", b"Source"})
_APK = frozenset({b"P", b"V", b"A", b"L", b"o"})
_PYTHON = frozenset({b"Name", b"Version", b"License", b"License-Expression"})
_Fields = Mapping[bytes, str]


def lines_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines without their ends, of a longer one only its first 64 KiB."""
    held, cut = b"", False
    for piece in pieces:
        *whole, rest = (held + piece).split(b"\n")
        for number, line in enumerate(whole):
            if number or not cut:
                yield line[:_LINE].rstrip(b"\r")
        cut = cut and not whole
        if len(rest) > _LINE and not cut:
            yield rest[:_LINE]
            cut = True
        held = b"" if cut else rest
    if held and not cut:
        yield held.rstrip(b"\r")


def paragraphs(lines: Iterable[bytes], wanted: frozenset[bytes]) -> Iterator[dict[bytes, str]]:
    """Yield the wanted fields of each paragraph; an empty line ends one. The first of a name counts."""
    fields: dict[bytes, str] = {}
    for line in lines:
        if not line:
            if fields:
                yield fields
            fields = {}
        elif line[:1] not in b" \t":
            name, colon, value = line.partition(b":")
            if colon and name in wanted:
                fields.setdefault(name, text_of(value))
    if fields:
        yield fields


def deb_packages(pieces: Iterable[bytes]) -> Iterator[Package]:
    """Yield the packages of dpkg's status; one without a `Status`, as distroless images have it, counts."""
    for fields in paragraphs(lines_of(pieces), _DEB):
        state = fields.get(b"Status", "").rpartition(" ")[2]
        if fields.get(b"Package") and state not in _GONE:
            source = fields.get(b"Source", "").partition(" ")[0]
            version, architecture = fields.get(b"Version", ""), fields.get(b"Architecture", "")
            yield Package(DEB, fields[b"Package"], version, architecture=architecture, source=source)


def apk_packages(pieces: Iterable[bytes]) -> Iterator[Package]:
    """Yield the packages of apk's database."""
    for fields in paragraphs(lines_of(pieces), _APK):
        if fields.get(b"P"):
            origin = fields.get(b"o", "")
            yield Package(
                APK,
                fields[b"P"],
                fields.get(b"V", ""),
                architecture=fields.get(b"A", ""),
                license=fields.get(b"L", ""),
                source="" if origin == fields[b"P"] else origin,
            )


def python_package(body: bytes) -> Package:
    """Read the head of a METADATA or PKG-INFO; raises InvalidImage for one without a name."""
    head = body.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    fields: _Fields = next(paragraphs(lines_of([head]), _PYTHON), {})
    if not fields.get(b"Name"):
        raise InvalidImage("Python metadata without a Name")
    licence = fields.get(b"License-Expression") or fields.get(b"License", "")
    return Package(PYPI, fields[b"Name"], fields.get(b"Version", ""), license=licence)


def npm_package(body: bytes) -> Package | None:
    """Read a package.json; None for one without a name or a version. Raises InvalidImage if it is no JSON."""
    try:
        fields = json.loads(body.decode(errors="replace").removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise InvalidImage("not JSON") from error
    if not isinstance(fields, dict):
        raise InvalidImage("not a JSON object")
    name, version = fields.get("name"), fields.get("version")
    if not (isinstance(name, str) and isinstance(version, str) and name.strip()):
        return None
    licence = fields.get("license")
    if isinstance(licence, dict):
        licence = licence.get("type")
    return Package(NPM, _clean(name), _clean(version), license=_clean(licence))


def _clean(value: object) -> str:
    """Return a text that can be encoded: JSON's escapes can be half a surrogate pair."""
    return value[:LONGEST].strip().encode(errors="replace").decode() if isinstance(value, str) else ""
