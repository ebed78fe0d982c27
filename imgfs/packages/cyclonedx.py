"""A bill of materials in CycloneDX 1.5, JSON (cyclonedx.org, bom-1.5.schema.json).

The same image gives the same document: its serial number is made of the image's digest, and it has no time.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Sequence

from imgfs import __version__
from imgfs.oci.reference import Reference, RegistryReference
from imgfs.packages.package import Distribution, Package, purl, purl_of

_SPACE = uuid.UUID("2f1b1f6e-50c5-5d0c-9f8e-6f4f1d1b7a55")  # of serial numbers made here


def bill_of_materials(
    reference: Reference, digest: str, distribution: Distribution, packages: Sequence[Package]
) -> dict[str, object]:
    """Return the document that lists the packages of the image with this manifest's digest."""
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_SPACE, digest)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "imgfs", "version": __version__}]},
            "component": _image(reference, digest),
        },
        "components": [*_system(distribution), *_components(packages, distribution)],
    }


def _image(reference: Reference, digest: str) -> dict[str, str]:
    """Return the image; one of a registry has a purl (PURL-TYPES.rst, "oci")."""
    component = {"type": "container", "bom-ref": digest, "name": str(reference), "version": digest}
    if isinstance(reference, RegistryReference):
        where = f"{reference.registry}/{reference.repository}"
        qualifiers = {"repository_url": where, "tag": reference.tag or ""}
        component["purl"] = purl("oci", [reference.repository.rpartition("/")[2]], digest, qualifiers)
    return component


def _system(distribution: Distribution) -> list[dict[str, str]]:
    if not distribution.id:
        return []
    component = {"type": "operating-system", "bom-ref": "operating-system", "name": distribution.id}
    if distribution.version:
        component["version"] = distribution.version
    if distribution.name:
        component["description"] = distribution.name
    return [component]


def _components(packages: Iterable[Package], distribution: Distribution) -> Iterable[dict[str, object]]:
    """Yield the packages; `bom-ref` has to be unique in the document."""
    seen: dict[str, int] = {}
    for package in packages:
        name = purl_of(package, distribution)
        number = seen[name] = seen.get(name, 0) + 1
        scope, _, plain = (
            package.name.rpartition("/") if package.name.startswith("@") else ("", "", package.name)
        )
        component: dict[str, object] = {
            "type": "library",
            "bom-ref": name if number == 1 else f"{name}#{number}",
            "name": plain,
            "version": package.full_version,
            "purl": name,
        }
        if scope:
            component["group"] = scope
        if package.license:
            component["licenses"] = [{"license": {"name": package.license}}]
        properties = {
            "path": os.fsdecode(package.path),
            "layer": str(package.layer),
            "source": package.source,
        }
        component["properties"] = [
            {"name": f"imgfs:{key}", "value": value.encode(errors="replace").decode()}
            for key, value in properties.items()
            if value
        ]
        yield component
