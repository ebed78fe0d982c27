"""Names without a registry, such as `app` or `team/app`, and what they stand for.

An alias decides, first one that podman's user has chosen, else the registries that are to be searched
(containers-registries.conf(5), "Short-name aliasing"), and without any it is Docker Hub, as everywhere. With
several imgfs is stricter than podman: it cannot ask which is meant, and tries one after the other only if
`short-name-mode` says so.

`app.tar` or `layout:v1` typed beside a file or a layout of that name means the file: it is never asked of
Docker Hub, and never pushed there. Words of other tools' transports and archives are refused by their form in
`oci.reference`; here the file system is looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from imgfs.config import RegistriesConf
from imgfs.errors import NotFound, Unauthorized, UsageError
from imgfs.oci.reference import (
    DOCKER_HUB,
    KNOWN,
    Reference,
    RegistryReference,
    names_transport,
    parse_reference,
)

if TYPE_CHECKING:
    from imgfs.registry.config.registries_conf import Alias, Registries

_HUB_NAMES = (DOCKER_HUB, "index.docker.io")
_ONE_BY_ONE = ("permissive", "disabled")


def candidates(text: str, files: Iterable[RegistriesConf]) -> tuple[Reference, ...]:
    """Return what a person may mean by `text`, in order.

    One reference unless several registries are to be searched.

    Raises UsageError if it cannot be understood, or names the candidates if nothing says which is meant.
    """
    reference = parse_reference(text)
    name = _short_name(text, reference)
    if not name or not isinstance(reference, RegistryReference):
        check_not_local(text)
        return (reference,)
    from imgfs.registry.config.registries_conf import load_chosen, load_registries
    from imgfs.registry.config.reload import Reader

    reader, files = Reader(), tuple(files)
    conf = load_registries(reader, files)
    alias = {**conf.aliases, **load_chosen(reader, files)}.get(name)
    if alias and alias.name:
        return (_aliased(alias, reference),)
    check_not_local(text)
    found = tuple(_at(host, name, reference) for host in dict.fromkeys(conf.search or ()))
    _check_clear(text, found, conf)
    return found or (reference,)


def first_found(found: Sequence[Reference], ask: Callable[[Reference], object]) -> Reference:
    """Return the first reference that `ask` does not raise NotFound or Unauthorized for.

    One alone is not asked for.

    A registry that does not answer is an error: behind it may be what was meant.
    """
    if len(found) == 1:
        return found[0]
    for reference in found:
        try:
            ask(reference)
        except (NotFound, Unauthorized):
            continue
        return reference
    raise NotFound(f"none of these is there, or may be read: {', '.join(map(str, found))}")


def _short_name(text: str, reference: Reference) -> str:
    """Return the name without tag and digest if no registry is named, else ""."""
    if isinstance(reference, RegistryReference) and reference.registry == DOCKER_HUB:
        first, slash, _ = text.partition("/")
        if not text.startswith("docker://") and not (slash and first in _HUB_NAMES):
            return text.partition("@")[0].partition(":")[0]
    return ""


def _aliased(alias: Alias, reference: RegistryReference) -> Reference:
    """Return what an alias stands for, with the tag and the digest of `reference`."""
    try:
        target = parse_reference(alias.name)
    except UsageError as error:
        raise UsageError(f"{alias.where}: {error}") from error
    tagged = ":" in alias.name.rpartition("/")[2] or "@" in alias.name
    if not isinstance(target, RegistryReference) or tagged or _short_name(alias.name, target):
        raise UsageError(f"{alias.where}: expected registry/repository, without a tag")
    return replace(target, tag=reference.tag, digest=reference.digest)


def _at(host: str, name: str, reference: RegistryReference) -> Reference:
    """Return a short name's reference at a registry that is searched."""
    return reference if host in _HUB_NAMES else replace(reference, registry=host, repository=name)


def _check_clear(text: str, found: Sequence[Reference], conf: Registries) -> None:
    if len(found) > 1 and conf.mode not in _ONE_BY_ONE:
        raise UsageError(f"{text!r} names no registry; write which is meant: {', '.join(map(str, found))}")


def parse_destination(text: str) -> Reference:
    """Read the name of an image to be written; raises UsageError, also for the name of a file or layout."""
    check_not_local(text)
    return parse_reference(text)


def check_not_local(text: str) -> None:
    """Raise UsageError if a name without a transport is that of a file or an OCI layout here."""
    if names_transport(text):
        return
    for path in dict.fromkeys((text, text.partition("@")[0].partition(":")[0])):
        if _is_layout(path):
            tag = text.removeprefix(path) or ":TAG"
            raise UsageError(
                f"{text!r} is an OCI layout in this directory: write oci:{path}{tag}{_otherwise(text)}"
            )
        if os.path.isfile(path):
            raise UsageError(f"{text!r} is a file; {KNOWN}{_otherwise(text)}")


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
