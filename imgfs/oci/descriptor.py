"""Digests, platforms and descriptors (OCI image-spec, `descriptor.md`; Docker image manifest v2 schema 2)."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from imgfs.errors import IntegrityError, InvalidImage, UsageError
from imgfs.oci.fields import annotations_in, decode_base64, object_at, text_in, texts_in

if TYPE_CHECKING:
    from hashlib import _Hash

HEX_LENGTHS = {"sha256": 64, "sha512": 128}  # descriptor.md, "Registered algorithms"
_HEX = re.compile(r"[0-9a-f]+")

# names for machines (uname, Debian) -> GOARCH and variant (OCI image-index.md, "platform"; containerd)
_ARCHITECTURES = {
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "i686": ("386", None),
    "i386": ("386", None),
    "loongarch64": ("loong64", None),
}
_OF_LINUX = {
    "386",
    "amd64",
    "arm",
    "arm64",
    "loong64",
    "mips64le",
    "ppc64le",
    "riscv64",
    "s390x",
    *_ARCHITECTURES,
}
_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A content digest, `algorithm:hex`: the name of some bytes forever."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: object, *, where: str = "digest") -> Digest:
        """Read `sha256:…` or `sha512:…`; raises InvalidImage naming `where`."""
        if not isinstance(text, str):
            raise InvalidImage("a digest must be a string", where=where)
        algorithm, _, hexadecimal = text.partition(":")
        length = HEX_LENGTHS.get(algorithm)
        if length is None:
            raise InvalidImage(f"digest algorithm {algorithm[:40]!r} is not supported", where=where)
        if len(hexadecimal) != length or not _HEX.fullmatch(hexadecimal):
            raise InvalidImage(f"{text[:160]!r} is not a {algorithm} digest", where=where)
        return cls(algorithm, hexadecimal)

    @classmethod
    def of(cls, body: bytes, algorithm: str = "sha256") -> Digest:
        """Return the digest of `body`."""
        return cls(algorithm, hashlib.new(algorithm, body).hexdigest())

    def hasher(self) -> _Hash:
        """Return a fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def check(self, hasher: _Hash, what: str) -> None:
        """Raise IntegrityError, saying `what`, unless what `hasher` has been fed has this digest."""
        actual = Digest(self.algorithm, hasher.hexdigest())
        if actual != self:
            raise IntegrityError(what, expected=self, actual=actual)

    def verify(self, body: bytes, what: str) -> None:
        """Raise IntegrityError, saying `what`, unless `body` has this digest."""
        actual = Digest.of(body, self.algorithm)
        if actual != self:
            raise IntegrityError(what, expected=self, actual=actual)

    @property
    def short(self) -> str:
        """The first twelve hex digits, for people."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class Platform:
    """What a manifest runs on (OCI image-index.md, "platform")."""

    os: str
    architecture: str
    variant: str | None = None
    os_version: str | None = None
    os_features: tuple[str, ...] = ()

    @classmethod
    def from_text(cls, text: str) -> Platform:
        """Read what people write, `os/arch[/variant]`, or of Linux `arch`; raises UsageError."""
        parts = ["linux", text] if text.lower() in _OF_LINUX else text.split("/")
        if len(parts) not in (2, 3) or not all(parts):
            raise UsageError(f"platform {text!r} is not os/arch[/variant], like linux/amd64 or linux/arm/v7")
        return cls(parts[0], parts[1], parts[2] if len(parts) == 3 else None).normalized()

    @classmethod
    def parse(cls, fields: Mapping[str, object], where: str) -> Platform:
        """Read the platform's fields out of a JSON object at `where`; raises InvalidImage."""
        return cls(
            os=text_in(fields, "os", where, default="") or "unknown",  # "" is what Go writes for none
            architecture=text_in(fields, "architecture", where, default="") or "unknown",
            variant=text_in(fields, "variant", where, default="") or None,
            os_version=text_in(fields, "os.version", where, default="") or None,
            os_features=tuple(texts_in(fields, "os.features", where)),
        )

    @classmethod
    def host(cls) -> Platform:
        """This machine's platform."""
        return cls("linux", os.uname().machine).normalized()

    def normalized(self) -> Platform:
        """The same platform in GOOS and GOARCH words: `linux/aarch64` is `linux/arm64/v8`, `linux/arm` is
        `linux/arm/v7`, `linux/amd64/v1` is `linux/amd64` (containerd's platforms, `Normalize`)."""
        name = self.architecture.lower()
        architecture, implied = _ARCHITECTURES.get(name, (name, None))
        variant = (self.variant or implied or _DEFAULT_VARIANTS.get(architecture, "")).lower()
        if variant.isdecimal():
            variant = f"v{variant}"
        if (architecture, variant) == ("amd64", "v1"):
            variant = ""
        return replace(self, os=self.os.lower(), architecture=architecture, variant=variant or None)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to content: media type, digest and size in bytes (descriptor.md).

    A `size_is_hint` is no promise: it came with an answer that has no content, and is not held against that.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    data: bytes | None = None
    artifact_type: str | None = None
    size_is_hint: bool = field(default=False, compare=False, repr=False)

    @classmethod
    def parse(cls, value: object, *, where: str) -> Descriptor:
        """Read a descriptor out of parsed JSON; raises InvalidImage with the JSON path `where`."""
        fields = object_at(value, where)
        return cls(
            media_type=text_in(fields, "mediaType", where, default="application/octet-stream"),
            digest=Digest.parse(fields.get("digest"), where=f"{where}.digest"),
            size=_size(fields, where),
            annotations=annotations_in(fields, where),
            platform=_platform(fields.get("platform"), f"{where}.platform"),
            urls=tuple(texts_in(fields, "urls", where)),
            data=_inline(fields.get("data"), f"{where}.data"),
            artifact_type=text_in(fields, "artifactType", where, default="") or None,
        )


def descriptor_fields(descriptor: Descriptor) -> dict[str, object]:
    """Return a descriptor as JSON has it (descriptor.md), in the order in which Go writes it.

    Without its URLs.
    """
    fields: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.data is not None:
        fields["data"] = base64.b64encode(descriptor.data).decode()
    if descriptor.annotations:
        fields["annotations"] = dict(sorted(descriptor.annotations.items()))
    if descriptor.platform:
        fields["platform"] = _platform_fields(descriptor.platform)
    return fields | ({"artifactType": descriptor.artifact_type} if descriptor.artifact_type else {})


def _platform_fields(platform: Platform) -> dict[str, object]:
    fields = {
        "architecture": platform.architecture,
        "os": platform.os,
        "os.version": platform.os_version,
        "os.features": list(platform.os_features),
        "variant": platform.variant,
    }
    return {name: value for name, value in fields.items() if value}


def _size(fields: Mapping[str, object], where: str) -> int:
    size = fields.get("size")
    if type(size) is not int or not 0 <= size < 1 << 63:
        raise InvalidImage("expected a length in bytes", where=f"{where}.size")
    return size


def _platform(value: object, where: str) -> Platform | None:
    """Read a platform; one without an os or an architecture, both of which are REQUIRED, says nothing."""
    if value is None:
        return None
    fields = object_at(value, where)
    platform = Platform.parse(fields, where)
    says_nothing = not (fields.get("os") and fields.get("architecture")) and not platform.os_features
    return None if says_nothing else platform


def _inline(value: object, where: str) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidImage("expected base64 text", where=where)
    return decode_base64(value, where)
