"""The names that engines give to images: as people write them for docker, or in full."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from imgfs.oci.reference import docker_name


def usual_name(name: str) -> str:
    """Return a name in full, `docker.io/library/alpine:latest`; an id, and what cannot be one, as it is."""
    found = docker_name(name)
    return str(found) if found else name


def of_repository(names: Iterable[str], name: str) -> list[str]:
    """Return those of the names that are in the repository of `name`."""
    wanted = _repository(name)
    return [each for each in names if _repository(each) == wanted]


def _repository(name: str) -> str:
    found = docker_name(name)
    return str(replace(found, tag=None, digest=None)) if found else name
