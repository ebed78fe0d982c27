"""imgfs verify: check an image against its digests, a policy, and its signatures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.cli.format import counted, size
from imgfs.cli.options import Commands, add_command, image_options, json_option
from imgfs.cli.output import draws_on, say
from imgfs.errors import UsageError
from imgfs.oci.reference import RegistryReference
from imgfs.quoting import printable

if TYPE_CHECKING:
    from imgfs.cli.selection import ImageSelection
    from imgfs.image.layer_check import LayerCheck
    from imgfs.image.resolve import Resolved
    from imgfs.signatures.cosign import Verified
    from imgfs.signatures.evaluate import PolicyVerdict
    from imgfs.signatures.keys import PublicKey
    from imgfs.signatures.policy import TrustPolicy
    from imgfs.signatures.stored import SignatureFinder
    from imgfs.transport.source import Source

_WRONG, _REFUSED = 1, 3  # exit codes: the image is not what its digests say; it is, and is not accepted
_USUAL = ""  # --policy without a file


def add_verify(commands: Commands) -> None:
    """`imgfs verify`."""
    command = add_command(
        commands,
        "verify",
        verify,
        "check an image against its digests, a policy and its signatures",
        """\
Fetches index, manifest and config, and streams every layer: digest, length, DiffID and each header of its tar
are checked; nothing of it is kept, and nothing is taken from the store. --policy asks a policy.json
(containers-policy.json(5)) whether it accepts the image, by signatures of GPG keys (the program gpg checks
them; registries.d says where they are) and of cosign's. --cosign wants a signature by a key, --attestation
one of a statement. Exit code: 0, or 1 if something does not match or cannot be had, or 3 if all matches, but
the policy or the signatures do not accept it.

Examples:
  imgfs verify debian:12
  imgfs verify app:v2 --policy
  imgfs verify app:v2 --no-layers --cosign cosign.pub --attestation spdx
""",
    )
    image_options(command, offline=False)
    command.add_argument(
        "--no-layers", action="store_true", help="fetch no layers: only documents and signatures"
    )
    command.add_argument(
        "--policy",
        metavar="FILE",
        nargs="?",
        const=_USUAL,
        help="ask this policy (default: ~/.config/containers/policy.json, /etc/containers/policy.json)",
    )
    command.add_argument(
        "--cosign",
        metavar="KEY",
        action="append",
        default=[],
        help="a public key in PEM; any of several will do",
    )
    command.add_argument(
        "--attestation",
        metavar="TYPE",
        action="append",
        default=[],
        help="with --cosign: an attestation of this type, too: spdx, cyclonedx, slsaprovenance1 or a URI",
    )
    json_option(command)


@dataclass
class _Report:
    """What is found; lines are said as soon as they are known, unless for JSON."""

    as_json: bool
    fields: dict[str, object] = field(default_factory=dict)
    is_wrong: bool = False
    is_refused: bool = False

    def say(self, text: str) -> None:
        if not self.as_json:
            say(printable(text), flush=True)

    @property
    def code(self) -> int:
        return _WRONG if self.is_wrong else _REFUSED if self.is_refused else 0


def verify(options: argparse.Namespace) -> int:
    """Check an image."""
    from imgfs.cli.selection import select_image

    if options.attestation and not options.cosign:
        raise UsageError("--attestation needs --cosign KEY: by which key?")
    policy = _policy(options.policy) if options.policy is not None else None
    keys = _keys(options.cosign)
    selection = select_image(options)
    report = _Report(options.json)
    with closing(selection.connect()) as source:
        resolved = _check_documents(selection, source, report)
        if policy:
            _ask_policy(policy, selection, resolved, source, report)
        if keys:
            _check_signatures(keys, options.attestation, resolved, source, report)
        if not options.no_layers:
            _check_layers(resolved, source, report)
    if options.json:
        say(json.dumps({**report.fields, "ok": not report.code}, indent=2))
    return report.code


def _policy(path: str) -> TrustPolicy:
    """Read the policy; raises UsageError."""
    from imgfs.config import policy_files
    from imgfs.signatures.policy import parse_policy
    from imgfs.signatures.policy_keys import read_small
    from imgfs.variables import variables

    if path != _USUAL:
        found = Path(path)
    else:
        usual = policy_files(variables())
        there = [file for file in usual if file.is_file()]
        if not there:
            raise UsageError(f"no policy: neither {' nor '.join(map(str, usual))} is there; name one")
        found = there[0]
    return parse_policy(read_small(found), str(found))


def _keys(paths: list[str]) -> list[PublicKey]:
    if not paths:
        return []
    from imgfs.signatures.keys import PublicKey

    return [PublicKey.load(Path(path)) for path in paths]


def _check_documents(selection: ImageSelection, source: Source, report: _Report) -> Resolved:
    from imgfs.image.layer_check import fetch_documents

    resolved = fetch_documents(str(selection.reference), source, selection.platform)
    report.fields |= {
        "image": resolved.reference,
        "digest": str(resolved.digest),
        "named": str(resolved.named),
        "platform": str(resolved.config.platform),
        "config": str(resolved.manifest.config.digest),
    }
    if resolved.named != resolved.digest:
        report.say(f"index     {resolved.named}  ok")
    report.say(f"manifest  {resolved.digest}  ok, {resolved.config.platform}")
    report.say(f"config    {resolved.manifest.config.digest}  ok")
    return resolved


def _layer_checks(resolved: Resolved, source: Source) -> Iterator[LayerCheck]:
    """Yield what comes of each layer at once; where bars are drawn, when they are done."""
    from imgfs.cli.progress import Progress
    from imgfs.image.layer_check import check_layers_of

    with closing(Progress(doing="checking", done="checked")) as progress:
        checks = check_layers_of(resolved, source, progress)
        if not draws_on(sys.stderr):
            yield from checks
            return
        found = list(checks)
    yield from found


def _check_layers(resolved: Resolved, source: Source, report: _Report) -> None:
    found = []
    for check in _layer_checks(resolved, source):
        what = f"ok, {counted(check.entries, 'entry', 'entries')}, {size(check.flat_size)} unpacked"
        trouble = "MISSING" if check.kind == "missing" else "WRONG"
        said = f"{trouble}: {check.error}" if check.error else what
        report.say(f"layer {check.number:<3} {check.layer.digest}  {said}")
        report.is_wrong |= bool(check.error)
        found.append(_layer_fields(check))
    report.fields["layers"] = found


def _layer_fields(check: LayerCheck) -> dict[str, object]:
    return {
        "number": check.number,
        "digest": str(check.layer.digest),
        "diff_id": str(check.diff_id),
        "size": check.layer.size,
        "flat_size": check.flat_size,
        "entries": check.entries,
        "ok": not check.error,
        "kind": check.kind,
        "error": check.error,
    }


def _ask_policy(
    policy: TrustPolicy, selection: ImageSelection, resolved: Resolved, source: Source, report: _Report
) -> None:
    from imgfs.signatures.evaluate import SignedImage, evaluate

    reference, digest = selection.reference, resolved.digest
    finder = _finder(selection)
    image = SignedImage(
        reference,
        digest,
        source,
        lambda: finder.find(reference, digest),
        lambda: finder.uses_attachments(reference) if isinstance(reference, RegistryReference) else None,
    )
    verdict: PolicyVerdict = evaluate(policy, image)
    report.is_refused |= not verdict.accepted
    report.fields["policy"] = verdict._asdict()
    report.say(
        f"policy    {'accepted' if verdict.accepted else 'REFUSED'} by {verdict.scope}: {verdict.reason}"
    )


def _finder(selection: ImageSelection) -> SignatureFinder:
    from imgfs.cli.connection import options_for, resolver_of, timeouts_of
    from imgfs.registry.config.credentials import find_credentials
    from imgfs.registry.signatures import SignatureClient
    from imgfs.signatures.stored import SignatureFinder

    reference, options, environment = selection.reference, selection.options, selection.environment
    if isinstance(reference, RegistryReference):
        options = options_for(options, reference.registry)
    timeouts = timeouts_of(options.read_timeout)
    client = SignatureClient(
        partial(find_credentials, environment.auth_sources, seconds=timeouts.helper),
        timeouts=timeouts,
        ca_bundle=environment.ca_bundle,
    )
    return SignatureFinder(environment.signature_places, resolver_of(options, environment), client)


def _check_signatures(
    keys: list[PublicKey], types: list[str], resolved: Resolved, source: Source, report: _Report
) -> None:
    """Look for signatures of the manifest and of the index that names it: its digest follows from that."""
    from imgfs.signatures.cosign import predicate_type, verified_of

    digests = dict.fromkeys((resolved.named, resolved.digest))
    found: list[Verified] = [one for digest in digests for one in verified_of(source, digest, keys)]
    for one in found:
        what = f"for {one.says}" if one.kind == "signature" else f"of type {one.says}"
        report.say(f"{one.kind:<9} {one.digest}  ok, by {one.key} {what}")
    missing = [] if any(one.kind == "signature" for one in found) else ["signature"]
    stated = {one.says for one in found if one.kind == "attestation"}
    missing += [f"attestation of type {name}" for name in types if predicate_type(name) not in stated]
    for what in missing:
        report.say(f"cosign    REFUSED: no {what} by {' or '.join(key.name for key in keys)}")
    report.is_refused |= bool(missing)
    report.fields["cosign"] = {
        "accepted": not missing,
        "missing": missing,
        "verified": [{**one._asdict(), "digest": str(one.digest)} for one in found],
    }
