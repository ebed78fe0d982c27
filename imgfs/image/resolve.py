"""Resolution of a reference for a platform to manifest and config, which are kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from imgfs.errors import ImgfsError, InvalidImage, NotFound, UsageError
from imgfs.layer.limits import LAYERS_LIMIT
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.image import (
    ImageConfig,
    Index,
    Manifest,
    chain_id,
    check_layers,
    parse_config,
    parse_document,
)
from imgfs.oci.kind import refuse_artifact, refuse_foreign
from imgfs.oci.reference import DEFAULT_TAG, RegistryReference, parse_reference
from imgfs.oci.select import Selected, select_manifest
from imgfs.store.store import Store
from imgfs.transport.connect import OfflineSource
from imgfs.transport.source import UNKNOWN_SIZE, Source

_SHORTEST_DIGEST = 12  # digits of an abbreviated digest, at least


@dataclass(frozen=True, slots=True)
class Resolved:
    """A resolved reference: documents only."""

    reference: str
    named: Digest  # what the reference names: an index or a manifest
    digest: Digest  # of the manifest
    media_type: str
    manifest: Manifest
    config: ImageConfig
    is_part: bool = False  # its upper layers are left out

    @property
    def layers(self) -> Mapping[Digest, tuple[Descriptor, Digest]]:
        """Return every distinct layer with its DiffID: an image may name the same one several times."""
        pairs = zip(self.manifest.layers, self.config.diff_ids, strict=True)
        return {layer.digest: (layer, diff_id) for layer, diff_id in pairs}

    @property
    def tree(self) -> Digest:
        """Return the name of its tree in the store: the manifest's digest, or a ChainID if it `is_part`."""
        return chain_id(self.config.diff_ids) if self.is_part else self.digest

    @property
    def tag(self) -> str | None:
        """Return the reference's tag, None if it has a digest, or nothing."""
        reference = parse_reference(self.reference)
        implied = DEFAULT_TAG if isinstance(reference, RegistryReference) else None
        return reference.tag or (None if reference.digest else implied)

    def up_to(self, layer: str) -> Resolved:
        """Return the image as it was after an earlier layer: its number from 1, or its digest or DiffID.

        Twelve digits of a digest are enough. Raises UsageError if there is no such layer.
        """
        layers, diff_ids = self.manifest.layers, self.config.diff_ids
        count = _layer_number(
            layer, [(lower.digest, diff_id) for lower, diff_id in zip(layers, diff_ids, strict=True)]
        )
        if count == len(layers):
            return self
        return replace(
            self,
            manifest=replace(self.manifest, layers=layers[:count]),
            config=replace(self.config, diff_ids=diff_ids[:count]),
            is_part=True,
        )


class Earlier(NamedTuple):
    """What a reference was resolved to at a `moment`, in seconds since the epoch."""

    resolved: Resolved
    moment: float


def resolve(
    reference: str,
    source: Source,
    store: Store,
    wanted: Platform,
    *,
    named: Descriptor | None = None,
    remember: bool = True,
    meanwhile: Callable[[Digest, Manifest], None] = lambda digest, manifest: None,  # noqa: ARG005
) -> Resolved:
    """Find the manifest and config of `reference` for the platform `wanted`; keep them in the store.

    Documents already in the store are not fetched again. `named` is what `reference` names, if that is known.
    With `remember` the store lists the reference from now on. `meanwhile` is called with the manifest before
    the config is fetched. Raises ImgfsError.
    """
    named = named or source.resolve(whole=not store.resolved(reference))
    with naming(reference):
        named, (descriptor, document, _) = _select(named, wanted, source, store)
        refuse_others(document)
    meanwhile(descriptor.digest, document)
    with naming(reference):
        config = parse_config(_body(document.config, source, store), document.config.media_type)
        check_layers(document, config)
    resolved = Resolved(reference, named.digest, descriptor.digest, document.media_type, document, config)
    if remember:
        store.put_resolution(reference, named.digest, descriptor.digest)
    return resolved


@contextmanager
def naming(reference: str) -> Iterator[None]:
    """Say of what is wrong with an image's documents which image it is."""
    try:
        yield
    except InvalidImage as error:
        raise InvalidImage(str(error), where=reference) from error


def refuse_others(manifest: Manifest) -> None:
    """Raise InvalidImage for an artifact, an image in a format of others, or one of too many layers."""
    refuse_artifact(manifest)
    refuse_foreign(manifest)
    if len(manifest.layers) > LAYERS_LIMIT:
        raise InvalidImage(f"{len(manifest.layers)} layers are more than {LAYERS_LIMIT}")


def _select(named: Descriptor, wanted: Platform, source: Source, store: Store) -> tuple[Descriptor, Selected]:
    """Select a manifest; what HEAD named and is not there GET is asked for. Return what was named, too."""
    read = partial(_document, source=source, store=store)
    read_config = partial(_body, source=source, store=store)
    try:
        return named, select_manifest(named, wanted, read, read_config)
    except NotFound:
        if not named.size_is_hint:
            raise
        told = source.resolve(whole=True)
        if told.digest == named.digest:
            raise
    return told, select_manifest(told, wanted, read, read_config)


def resolve_earlier(reference: RegistryReference, store: Store, wanted: Platform) -> Earlier | None:
    """Return what `reference` was last resolved to for the platform `wanted`, from the store alone.

    A tag may have been resolved later for another platform, to another index: one whose documents are not
    stored does not count.
    """
    nowhere = OfflineSource(reference)
    for earlier in store.resolved(str(reference)):
        named = Descriptor("", earlier.digest, UNKNOWN_SIZE)
        with suppress(ImgfsError):
            resolved = resolve(str(reference), nowhere, store, wanted, named=named, remember=False)
            return Earlier(resolved, earlier.resolved)
    return None


def _layer_number(layer: str, digests: Sequence[tuple[Digest, Digest]]) -> int:
    if layer.isdecimal() and len(layer) < _SHORTEST_DIGEST:
        if 1 <= int(layer) <= len(digests):
            return int(layer)
        raise UsageError(f"there is no layer {layer}: the image has {len(digests)} (see: imgfs inspect)")
    wanted = layer.removeprefix("sha256:")
    numbers = [
        number
        for number, names in enumerate(digests, 1)
        if any(len(wanted) >= _SHORTEST_DIGEST and name.hex.startswith(wanted) for name in names)
    ]
    if not numbers:
        raise UsageError(
            f"{layer!r} is not a layer of the image: say its number or digest (see: imgfs inspect)"
        )
    return numbers[-1]


def _document(descriptor: Descriptor, source: Source, store: Store) -> Manifest | Index:
    return parse_document(_body(descriptor, source, store), descriptor.media_type)


def _body(descriptor: Descriptor, source: Source, store: Store) -> bytes:
    body = store.document(descriptor.digest)
    if body is None:
        body = source.document(descriptor)
        store.put_document(descriptor.digest, body)
    return body
