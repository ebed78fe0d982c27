"""Names of images compared: the one that was asked for, and the one in a signature.

containers-policy.json(5), `signedIdentity`. Names are in their full form there: `docker.io/library/busybox`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imgfs.errors import InvalidImage, UsageError
from imgfs.oci.reference import RegistryReference, parse_reference


@dataclass(frozen=True, slots=True)
class ImageName:
    """A repository by its full `name`, with a tag or a digest, or neither."""

    name: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Read a name, without filling in a tag; raises UsageError."""
        reference = parse_reference(f"docker://{text}")
        if not isinstance(reference, RegistryReference) or not _is_plain(reference.registry):
            raise UsageError(f"{text!r} is not a name of an image")
        named = text.partition("@")[0]
        has_tag = ":" in named.rpartition("/")[2]
        digest = str(reference.digest) if reference.digest else ""
        tag = (reference.tag or "") if has_tag else ""
        return cls(f"{reference.registry}/{reference.repository}", tag, digest)

    @classmethod
    def of(cls, reference: RegistryReference) -> ImageName:
        """Return the name that was asked for; with a digest the tag is only decoration."""
        digest = str(reference.digest) if reference.digest else ""
        name = f"{reference.registry}/{reference.repository}"
        return cls(name, "" if digest else reference.tag or "", digest)

    @property
    def is_name_only(self) -> bool:
        """Return True without tag and digest."""
        return not (self.tag or self.digest)

    def scopes(self) -> Iterator[str]:
        """Yield what files may speak of: the whole name, its repository, namespaces, host, wildcards.

        The most specific is the first. For `*.example.com` the host counts without its port.
        """
        yield f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"
        name = self.name
        while name:
            yield name
            name = name.rpartition("/")[0]
        host = self.name.partition("/")[0].partition(":")[0]
        while "." in host:
            host = host.partition(".")[2]
            yield f"*.{host}"


@dataclass(frozen=True, slots=True)
class SignedIdentity:
    """How the name in a signature has to be; `kind` is the field's `type`.

    `first` is a dockerReference, a dockerRepository or a prefix, `second` a signedPrefix.
    """

    kind: str = "matchRepoDigestOrExact"
    first: str = ""
    second: str = ""

    def accepts(self, signed: str, wanted: ImageName | None) -> bool:
        """Return True if a signature for the name `signed` counts for the image that is `wanted`.

        `wanted` is None for an image that no registry has: only a name in the policy can match then.
        """
        try:
            claimed = ImageName.parse(signed)
        except (UsageError, InvalidImage):
            return False
        if self.kind == "exactReference":
            return not claimed.is_name_only and claimed == ImageName.parse(self.first)
        if self.kind == "exactRepository":
            return claimed.name == ImageName.parse(self.first).name
        if wanted is None:
            return False
        if self.kind == "matchRepository":
            return claimed.name == wanted.name
        if self.kind == "matchExact":
            return not claimed.is_name_only and claimed == wanted
        if self.kind == "remapIdentity":
            wanted = self._remapped(wanted)
        return _matches_digest_or_exact(claimed, wanted)

    def _remapped(self, wanted: ImageName) -> ImageName:
        """Replace a prefix that ends where a part of the name does."""
        if wanted.name != self.first and not wanted.name.startswith(f"{self.first}/"):
            return wanted
        return ImageName(self.second + wanted.name[len(self.first) :], wanted.tag, wanted.digest)


def _is_plain(registry: str) -> bool:
    """Return False for what only newer programs take for a host: a word because of its capital letters."""
    return registry == registry.lower() or any(sign in registry for sign in ".:")


def _matches_digest_or_exact(claimed: ImageName, wanted: ImageName) -> bool:
    if claimed.is_name_only:
        return False
    return claimed == wanted if wanted.tag else bool(wanted.digest) and claimed.name == wanted.name


USUAL = SignedIdentity()  # what counts where a policy says nothing
