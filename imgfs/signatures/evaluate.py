"""A policy's verdict on an image (containers-policy.json(5), "Policy Requirements").

All requirements have to accept the image. Of several signatures a good one is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

from imgfs.errors import ImgfsError, InvalidImage, UsageError
from imgfs.oci.descriptor import Digest
from imgfs.oci.reference import Reference, RegistryReference
from imgfs.signatures.cosign import Signature, signatures_of
from imgfs.signatures.identity import ImageName
from imgfs.signatures.openpgp import Keyring, open_keyring
from imgfs.signatures.policy import ANYTHING, GPG, REJECT, Requirement, TrustPolicy
from imgfs.signatures.sigstore import SigstoreTrust
from imgfs.signatures.simple_signing import ATOMIC, Claim, parse_claim
from imgfs.signatures.stored import StoredSignatures
from imgfs.transport.source import Source

_SHOWN = 5  # different reasons against signatures

T = TypeVar("T")
VerifiedClaim = Callable[[], tuple[str, Claim]]  # verify a signature: who signed what; raises InvalidImage


class PolicyVerdict(NamedTuple):
    """Whether an image is accepted by the requirements of a `scope`; and why not, else how."""

    accepted: bool
    scope: str
    reason: str


@dataclass(frozen=True, slots=True)
class SignedImage:
    """An image that a policy is asked about: the manifest `digest` that `reference` has led to.

    `stored` finds the signatures that are stored beside it; `uses_attachments` returns False if cosign's,
    which are attached to it in its registry, are not to be looked for.
    """

    reference: Reference
    digest: Digest
    source: Source
    stored: Callable[[], StoredSignatures] = StoredSignatures
    uses_attachments: Callable[[], bool | None] = lambda: None


def evaluate(policy: TrustPolicy, image: SignedImage) -> PolicyVerdict:
    """Return a policy's verdict on an image. Raises RegistryError, UsageError for a user's file."""
    scope, requirements = policy.requirements_for(image.reference)
    evaluation = _Evaluation(image)
    accepted = []
    for requirement in requirements:
        try:
            accepted.append(evaluation.check(requirement))
        except _NotAccepted as refusal:
            return PolicyVerdict(False, scope, str(refusal))
    return PolicyVerdict(True, scope, "; ".join(accepted))


class _NotAccepted(Exception):
    """Why a requirement refuses an image."""


class _Evaluation:
    """One image; its signatures are fetched when a requirement asks for them, once."""

    def __init__(self, image: SignedImage) -> None:
        self._image = image
        reference = image.reference
        self._wanted = ImageName.of(reference) if isinstance(reference, RegistryReference) else None

    def check(self, requirement: Requirement) -> str:
        """Return how a requirement accepts the image; raises _NotAccepted."""
        if requirement.kind == ANYTHING:
            return "anything is accepted, without a look at signatures"
        if requirement.kind == REJECT:
            raise _NotAccepted("every image is rejected")
        if requirement.kind == GPG:
            return self._check_openpgp(requirement)
        return self._check_cosign(requirement)

    def _check_openpgp(self, requirement: Requirement) -> str:
        messages = self._some(lambda: self._stored.openpgp)
        with _refusing(UsageError):
            bodies = [body for _, body in requirement.sources.keys.load("keyData")]
            with open_keyring(bodies) as keyring:
                claims = [partial(_claim_by_keyring, message, keyring) for message in messages]
                return self._first_accepted(claims, requirement)

    def _check_cosign(self, requirement: Requirement) -> str:
        signatures = self._some(lambda: self._cosign)
        with _refusing(UsageError):
            trust = SigstoreTrust.load(requirement.sources)
        claims = [partial(_claim_by_trust, signature, trust) for signature in signatures]
        return self._first_accepted(claims, requirement)

    def _some(self, find: Callable[[], Sequence[T]]) -> Sequence[T]:
        """Return signatures; raises _NotAccepted if there are none, or cannot be read."""
        with _refusing(InvalidImage):
            found = find()
        if not found:
            raise _NotAccepted("a signature is required, and there is none")
        return found

    @cached_property
    def _stored(self) -> StoredSignatures:
        return self._image.stored()

    @cached_property
    def _cosign(self) -> list[Signature]:
        """Return cosign's signatures: a registry has them attached to the image, and nowhere else."""
        image = self._image
        if isinstance(image.reference, RegistryReference):
            uses = image.uses_attachments() is not False
            return list(signatures_of(image.source, image.digest)) if uses else []
        return [*self._stored.cosign, *signatures_of(image.source, image.digest)]

    def _first_accepted(self, claims: Iterable[VerifiedClaim], requirement: Requirement) -> str:
        refusals: dict[str, None] = {}
        for verified in claims:
            try:
                signer, claim = verified()
                self._check_claim(claim, requirement)
            except InvalidImage as error:
                refusals[str(error)] = None
            else:
                return f"signed by {signer} for {claim.reference}"
        more = f"; and {len(refusals) - _SHOWN} other reasons" if len(refusals) > _SHOWN else ""
        raise _NotAccepted("; ".join(list(refusals)[:_SHOWN]) + more)

    def _check_claim(self, claim: Claim, requirement: Requirement) -> None:
        """Raise InvalidImage unless it is this manifest that was signed, for a name that counts."""
        if claim.digest != self._image.digest:
            raise InvalidImage(f"a signature of another manifest, {claim.digest.short}")
        if not requirement.identity.accepts(claim.reference, self._wanted):
            raise InvalidImage(f"a signature for {claim.reference!r:.200}, not for this name")


@contextmanager
def _refusing(kind: type[ImgfsError]) -> Iterator[None]:
    """Turn an error into a refusal."""
    try:
        yield
    except kind as error:
        raise _NotAccepted(str(error)) from error


def _claim_by_keyring(message: bytes, keyring: Keyring) -> tuple[str, Claim]:
    signed = keyring.verify(message)
    return f"the key {signed.fingerprint}", parse_claim(signed.payload, ATOMIC)


def _claim_by_trust(signature: Signature, trust: SigstoreTrust) -> tuple[str, Claim]:
    found = signature.claim_by(trust.keys_for(signature))
    if found is None:
        raise InvalidImage("a signature by another key")
    return found[0].name, found[1]
