"""The names people write for images, and what they mean (distribution/reference; OCI image-layout.md).

alpine                         docker.io/library/alpine:latest
quay.io/ns/app@sha256:…        one manifest for ever
localhost:5000/app:v1          a registry of one's own
oci:DIR, oci:DIR:TAG           an OCI image layout in the directory DIR
oci-archive:FILE[:TAG]         the same in a tar file
docker-archive:FILE[:NAME:TAG] what `docker save` and `podman save` write
dir:PATH                       one image in a directory, as skopeo writes it
tar:FILE                       a root file system as a tar file: an image of that one layer
containers-storage:NAME        an image in podman's own store
docker-daemon:NAME             an image of a running docker or podman, by its socket
containerd:[NAMESPACE/]NAME    an image of a running containerd, by its socket
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from imgfs.errors import InvalidImage, UsageError
from imgfs.oci.descriptor import Digest

DOCKER_HUB = "docker.io"
DEFAULT_TAG = "latest"
LAST_PORT = 65535
_MAX_REPOSITORY = 255  # reference.go, RepositoryNameTotalLengthMax

# regexp.go, with its own names
_NAME_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_DOMAIN_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(
    rf"(?:{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?", re.ASCII
)
_REPOSITORY = re.compile(rf"{_NAME_COMPONENT}(?:/{_NAME_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_IMAGE_ID = re.compile(r"sha256:[a-f0-9]{64}|[a-f0-9]{12,64}")  # of docker, which takes twelve digits for one
_DIGEST_START = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*:[0-9A-Fa-f]")
_USER_INFO = re.compile(r"(?:\w+://)?[^/@]+@(?=[^@]*/)")  # USER:PASSWORD@ before a host: not to be repeated

# containers-transports(5) and its kin: words before a colon that other tools read as a kind of place
_OTHER_TRANSPORTS = (
    "docker-image",
    "file",
    "oci-layout",
    "ostree",
    "sif",
    "tarball",
)
_ARCHIVE = re.compile(r"\.(?:tar|tgz|tbz2?|txz|tzst)(?:\.(?:gz|xz|bz2|zst|lz4))?$", re.IGNORECASE)
OCI_ARCHIVE, DOCKER_ARCHIVE, DIRECTORY, TAR = "oci-archive", "docker-archive", "dir", "tar"
STORAGE = "containers-storage"
# The transports whose images are in files of this machine, and how they are written.
FILE_TRANSPORTS = {
    OCI_ARCHIVE: "oci-archive:FILE[:TAG]",
    DOCKER_ARCHIVE: "docker-archive:FILE[:NAME:TAG]",
    DIRECTORY: "dir:PATH",
    TAR: "tar:FILE",
    STORAGE: "containers-storage:NAME",
}
DOCKER_DAEMON, CONTAINERD = "docker-daemon", "containerd"
# The transports whose images a running engine hands out, and how they are written.
ENGINES = {DOCKER_DAEMON: "docker-daemon:NAME", CONTAINERD: "containerd:[NAMESPACE/]NAME"}
_TAGGED = (OCI_ARCHIVE, DOCKER_ARCHIVE)
_ON_MACHINE = {**FILE_TRANSPORTS, **ENGINES}
KNOWN = f"imgfs knows docker://NAME, oci:DIR[:TAG], {', '.join(_ON_MACHINE.values())}"
# What an engine's names are made of: those of images, namespaces and digests. No part is `.` or `..`.
_ENGINE_NAME = re.compile(r"(?!.*(?:^|/)\.{0,2}(?:/|$))[\w.:/@+-]{1,1024}", re.ASCII)


class _Tagged:
    """What all references end with: a tag, a digest, both or neither."""

    __slots__ = ()
    tag: str | None
    digest: Digest | None

    @property
    def pinned(self) -> bool:
        """Whether it names one manifest for ever."""
        return self.digest is not None

    @property
    def _end(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{tag}@{self.digest}" if self.digest else tag


@dataclass(frozen=True, slots=True)
class RegistryReference(_Tagged):
    """An image in a registry. With a digest the tag is only decoration."""

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}{self._end}"


@dataclass(frozen=True, slots=True)
class LayoutReference(_Tagged):
    """An image in an OCI image layout directory; without tag and digest, the only one or `latest`."""

    path: Path
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        return f"oci:{self.path}{self._end}"


@dataclass(frozen=True, slots=True)
class FileReference(_Tagged):
    """An image in files of this machine; `transport` is one of FILE_TRANSPORTS.

    In podman's store, whose directory `path` is (`.` for the usual one), `tag` is the image's name or id.
    """

    transport: str
    path: Path
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        if self.transport == STORAGE:
            place = "" if self.path == Path() else f"[{self.path}]"
            return f"{self.transport}:{place}{self._end.removeprefix(':')}"
        return f"{self.transport}:{self.path}{self._end}"


@dataclass(frozen=True, slots=True)
class EngineReference(_Tagged):
    """An image of a running engine, one of ENGINES, by a name or id that the engine knows."""

    engine: str
    name: str
    tag: str | None = None  # always: what of a name is a tag, its engine knows
    digest: Digest | None = None

    def __str__(self) -> str:
        return f"{self.engine}:{self.name}{self._end}"


Reference = RegistryReference | LayoutReference | FileReference | EngineReference


def keeps_manifest(reference: Reference) -> bool:
    """Return True if what is written there keeps its manifest and so its digest: no docker-archive does."""
    return not (isinstance(reference, FileReference) and reference.transport == DOCKER_ARCHIVE)


def parse_reference(text: str) -> Reference:
    """Read what a person wrote; raises UsageError with a line that helps."""
    if text.startswith("oci:"):
        return _parse_layout(text)
    transport, colon, _ = text.partition(":")
    if colon and transport in FILE_TRANSPORTS:
        return _parse_file(transport, text)
    if colon and transport in ENGINES:
        return _parse_engine(transport, text)
    if found := _USER_INFO.match(text):
        rest = text[found.end() :]
        raise UsageError(f"'…@{rest}': what is before @ does not belong to an image's name; see: imgfs login")
    scheme, separator, _ = text.partition("://")
    if separator and scheme != "docker":
        raise UsageError(f"{text!r} is a URL; an image is named without {scheme}://, like quay.io/ns/app:tag")
    if not names_registry(text):
        _refuse_files(text)
    return _parse_registry(text.removeprefix("docker://"), text)


def docker_name(name: str) -> RegistryReference | None:
    """Return what an engine's name for an image is in full; None for an id, or what is no name for docker."""
    if _IMAGE_ID.fullmatch(name):
        return None
    try:
        return _parse_registry(name, name)
    except UsageError:
        return None


def names_registry(text: str) -> bool:
    """Return True if a name says where its image is: by a transport, or with a registry's host first."""
    if names_transport(text):
        return True
    first, separator, _ = text.partition("/")
    return bool(separator) and first not in ("", ".", "..") and _is_domain(first)


def names_transport(text: str) -> bool:
    """Return True if a name begins with a transport that is known: `docker://`, `oci:`, `dir:`, …"""
    word, colon, _ = text.partition(":")
    return text.startswith(("oci:", "docker://")) or bool(colon and word in _ON_MACHINE)


def is_prefix(text: str) -> bool:
    """Return True for what a full name can begin with: a host[:port], a namespace or a repository."""
    domain, _, rest = text.partition("/")
    if not rest:
        return "/" not in text and bool(_DOMAIN.fullmatch(text) or _REPOSITORY.fullmatch(text))
    return bool(_DOMAIN.fullmatch(domain) and _REPOSITORY.fullmatch(rest))


def _refuse_files(text: str) -> None:
    """Raise UsageError for a name without a registry that is that of a file for other tools.

    It would go to Docker Hub otherwise: to be asked for there, or pushed with the user's credentials.
    """
    word, colon, _ = text.partition(":")
    if colon and word in _OTHER_TRANSPORTS:
        raise UsageError(f"{text!r} is a place of other tools ({word}:); {KNOWN}")
    if text.startswith(("/", "./", "../", "~")):
        raise UsageError(f"{text!r} is a path, and says no transport; {KNOWN}")
    if _ARCHIVE.search(text) or _ARCHIVE.search(word):
        raise UsageError(
            f"{text!r} is the name of an archive; {KNOWN}; an image of that name on Docker Hub is docker://{text}"
        )


def _parse_layout(text: str) -> LayoutReference:
    rest, digest = _split_digest(text.removeprefix("oci:"), text)
    # the first colon ends the directory, as for skopeo and umoci: a tag may hold colons and slashes
    directory, _, tag = rest.partition(":")
    if not directory or "\0" in directory:
        raise UsageError(f"{text!r} names no directory; write oci:DIR or oci:DIR:TAG")
    return LayoutReference(Path(directory), tag or None, digest)


def _parse_file(transport: str, text: str) -> FileReference:
    rest, digest = _split_digest(text.partition(":")[2], text)
    tag = ""
    if transport == STORAGE:
        return _parse_storage(rest, digest, text)
    if transport in _TAGGED:  # as for a layout, the first colon ends the path
        rest, _, tag = rest.partition(":")
    if not rest or "\0" in rest:
        raise UsageError(f"{text!r} names no file; write {FILE_TRANSPORTS[transport]}")
    return FileReference(transport, Path(rest), tag or None, digest)


def _parse_storage(rest: str, digest: Digest | None, text: str) -> FileReference:
    """Read `[DRIVER@ROOT+RUNROOT:OPTIONS]NAME` (containers-transports(5)); of the brackets ROOT counts."""
    inside, root = "", "."
    if rest.startswith("["):
        inside, bracket, rest = rest[1:].partition("]")
        root = inside.rpartition("@")[2].partition("+")[0].partition(":")[0]
        if not bracket or not root.startswith("/") or "\0" in root:
            raise UsageError(f"{text!r}: write containers-storage:[/ROOT]NAME, or without brackets")
    if not rest:
        raise UsageError(f"{text!r} names no image; write {FILE_TRANSPORTS[STORAGE]}")
    return FileReference(STORAGE, Path(root), rest, digest)


def _parse_engine(engine: str, text: str) -> EngineReference:
    """Read the name of an image of an engine; docker itself reads the digest in one."""
    rest, digest = text.partition(":")[2], None
    if engine == CONTAINERD:
        rest, digest = _split_digest(rest, text)
    if not _ENGINE_NAME.fullmatch(rest):
        raise UsageError(f"{text!r} names no image; write {ENGINES[engine]}")
    return EngineReference(engine, rest, digest=digest)


def _parse_registry(rest: str, text: str) -> RegistryReference:
    if _IDENTIFIER.fullmatch(rest):
        raise UsageError(f"{text!r} is an image id; name the image by repository, like alpine:3.20")
    named, digest = _split_digest(rest, text)
    registry, remote = _split_domain(named)
    repository, separator, tag = remote.partition(":")
    _check_registry(registry, text)
    _check_repository(repository, text)
    if separator and not _TAG.fullmatch(tag):
        raise UsageError(f"{text!r}: {tag!r} is not a tag (letters, digits, '_', '.', '-'; at most 128)")
    if not separator and digest is None:
        tag = DEFAULT_TAG
    return RegistryReference(registry, repository, tag or None, digest)


def _split_digest(rest: str, text: str) -> tuple[str, Digest | None]:
    named, separator, tail = rest.rpartition("@")
    if not separator or not _DIGEST_START.match(tail):
        return rest, None
    try:
        return named, Digest.parse(tail)
    except InvalidImage as error:
        raise UsageError(f"{text!r}: {error}") from error


def _split_domain(named: str) -> tuple[str, str]:
    """Return (registry, repository[:tag]), with Docker Hub and its `library/` filled in (normalize.go)."""
    first, separator, rest = named.partition("/")
    if not separator or not _is_domain(first):
        first, rest = DOCKER_HUB, named
    if first == "index.docker.io":  # the Hub's older name
        first = DOCKER_HUB
    if first == DOCKER_HUB and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def _is_domain(first: str) -> bool:
    """Return True if the first part of a name is a registry's host (normalize.go, `splitDockerDomain`)."""
    return first == "localhost" or any(sign in first for sign in ".:") or first != first.lower()


def _check_registry(registry: str, text: str) -> None:
    if registry in _OTHER_TRANSPORTS or registry.rstrip(":") in _OTHER_TRANSPORTS:
        raise UsageError(f"{text!r}: {KNOWN}")
    if not _DOMAIN.fullmatch(registry):
        raise UsageError(f"{text!r}: {registry!r} is not a registry's host[:port]")
    _, colon, port = registry.rpartition(":")
    if colon and port.isdecimal() and not 0 < int(port) <= LAST_PORT:
        raise UsageError(f"{text!r}: there is no port {port}: they are 1 to {LAST_PORT}")


def _check_repository(repository: str, text: str) -> None:
    if not repository.removeprefix("library/"):
        raise UsageError(f"{text!r} names no repository; write registry/repository:tag")
    if repository != repository.lower():
        raise UsageError(f"{text!r}: a repository is lower case: {repository.lower()}")
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(
            f"{text!r}: {repository!r} is not a repository (a-z, 0-9, single '.', '_', '-', '/')"
        )
    if len(repository) > _MAX_REPOSITORY:
        raise UsageError(f"{text!r}: the repository is longer than {_MAX_REPOSITORY} characters")
