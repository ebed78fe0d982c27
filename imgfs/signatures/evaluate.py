"""A policy's verdict on an image (containers-policy.json(5), "Policy Requirements").

All requirements have to accept the image; what cannot be checked refuses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import InvalidImage, UsageError
from imgfs.oci.descriptor import Digest
from imgfs.oci.reference import Reference, RegistryReference
from imgfs.signatures.cosign import Signature, signatures_of
from imgfs.signatures.identity import ImageName
from imgfs.signatures.keys import PublicKey
from imgfs.signatures.policy import ANYTHING, GPG, REJECT, Requirement, TrustPolicy
from imgfs.transport.source import Source


class PolicyVerdict(NamedTuple):
    """Whether an image is accepted by the requirements of a `scope`; and why not, else how."""

    accepted: bool
    scope: str
    reason: str


def evaluate(policy: TrustPolicy, reference: Reference, digest: Digest, source: Source) -> PolicyVerdict:
    """Return a policy's verdict on the manifest `digest`, asked for by `reference`. Raises RegistryError."""
    scope, requirements = policy.requirements_for(reference)
    evaluation = _Evaluation(reference, digest, source)
    accepted = []
    for requirement in requirements:
        refusal, how = evaluation.check(requirement)
        if refusal:
            return PolicyVerdict(False, scope, refusal)
        accepted.append(how)
    return PolicyVerdict(True, scope, "; ".join(accepted))


class _Evaluation:
    """One image; its signatures are fetched when a requirement asks for them, once."""

    def __init__(self, reference: Reference, digest: Digest, source: Source) -> None:
        self._wanted = ImageName.of(reference) if isinstance(reference, RegistryReference) else None
        self._digest = digest
        self._source = source
        self._signatures: Sequence[Signature] | None = None

    def check(self, requirement: Requirement) -> tuple[str, str]:
        """Return why a requirement refuses the image, "" if it does not; and how it accepts it."""
        if requirement.kind == ANYTHING:
            return "", "anything is accepted, without a look at signatures"
        if requirement.kind == REJECT:
            return "every image is rejected", ""
        if requirement.kind == GPG:
            return "signatures by GPG keys (signedBy) are not checked by imgfs: not accepted", ""
        if requirement.unchecked:
            return f"{requirement.unchecked}: not checked by imgfs: not accepted", ""
        return self._check_sigstore(requirement)

    def _check_sigstore(self, requirement: Requirement) -> tuple[str, str]:
        if self._signatures is None:
            self._signatures = list(signatures_of(self._source, self._digest))
        if not self._signatures:
            return "a signature is required, and there is none", ""
        try:
            keys = [PublicKey.load(Path(path)) for path in requirement.key_paths]
            keys += [PublicKey.parse(body, "keyData") for body in requirement.key_bodies]
        except UsageError as error:
            return str(error), ""
        refusals = []
        for signature in self._signatures:
            refusal, how = self._check_signature(signature, requirement, keys)
            if how:
                return "", how
            refusals.append(refusal)
        return "; ".join(dict.fromkeys(refusals)), ""

    def _check_signature(
        self, signature: Signature, requirement: Requirement, keys: Sequence[PublicKey]
    ) -> tuple[str, str]:
        try:
            found = signature.claim_by(keys)
        except InvalidImage as error:
            return str(error), ""
        if found is None:
            return "a signature by another key", ""
        key, claim = found
        if claim.digest != self._digest:
            return f"a signature of another manifest, {claim.digest.short}", ""
        if not requirement.identity.accepts(claim.reference, self._wanted):
            return f"a signature for {claim.reference!r:.200}, not for this name", ""
        return "", f"signed by {key.name} for {claim.reference}"
