"""imgfs verify: digests, DiffIDs and tars of layers, policies, cosign's signatures; exit codes by kind."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from imgfs.cli import main
from imgfs.oci.image import OCI_INDEX, OCI_MANIFEST
from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.keyless import HOUR, LOGGED, Authority, Certified, Log, Made, public_pem
from tests.support.mounted import (
    Stored,
    documents,
    gzipped,
    plain,
    sha256,
    write_documents,
    write_image,
    zstd,
)
from tests.support.signing import KINDS, Part, Signer, attachment, claim_of, tag_of

FIRST = tar.archive(tar.directory("etc"), tar.file("etc/a", b"a" * 100_000), tar.hardlink("etc/b", "etc/a"))
SECOND = tar.archive(tar.whiteout("etc/a"), tar.symlink("l", "etc"))
SPDX = "https://spdx.dev/Document"
Capture = pytest.CaptureFixture[str]


class Verify:
    def __init__(self, directory: Path, capfd: Capture) -> None:
        self.directory = directory
        self._capture = capfd

    def __call__(self, *words: str | Path, code: int = 0) -> str:
        assert main(["verify", "--store", str(self.directory / "store"), *map(str, words)]) == code
        out, err = self._capture.readouterr()
        return out or err

    def json(self, *words: str | Path, code: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("--json", *words, code=code))
        assert found["ok"] is (code == 0)
        return found

    def policy(self, requirements: Sequence[Mapping[str, Any]], **transports: object) -> Path:
        path = self.directory / "policy.json"
        path.write_text(json.dumps({"default": requirements, "transports": transports}))
        return path


@pytest.fixture
def verify(tmp_path: Path, capfd: Capture) -> Verify:
    return Verify(tmp_path, capfd)


def test_every_layer_is_a_line_and_counts_what_tar_counts(verify: Verify, tmp_path: Path) -> None:
    name = write_image(tmp_path / "layout", [gzipped(FIRST), zstd(SECOND), gzipped(FIRST)])
    lines = verify(name).splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["layer", "1"], ["layer", "2"], ["layer", "3"]]
    assert all("  ok" in line for line in lines)
    for layer, flat in zip(verify.json(name)["layers"], (FIRST, SECOND, FIRST), strict=True):
        with tarfile.open(fileobj=BytesIO(flat)) as archive:
            assert layer["entries"] == len(archive.getnames())
        assert (layer["flat_size"], layer["diff_id"], layer["kind"]) == (len(flat), sha256(flat), "")


def broken(kind: str) -> Stored:
    """A layer that is wrong in one way, which its digest, or the DiffID, may cover."""
    good = gzipped(FIRST)
    if kind == "diff_id":
        return good._replace(diff_id=sha256(SECOND))
    if kind == "format":
        flat = FIRST[:512] + b"\xff" * 512 + FIRST[1024:]
        return gzipped(flat)
    return good


@pytest.mark.parametrize("kind", ["digest", "length", "diff_id", "format", "missing"])
def test_what_is_wrong_is_named_by_its_kind_and_the_rest_is_checked(
    kind: str, verify: Verify, tmp_path: Path
) -> None:
    wrong = broken(kind)
    name = write_image(tmp_path / "layout", [wrong, plain(SECOND)])
    blob = tmp_path / "layout/blobs/sha256" / sha256(wrong.blob).removeprefix("sha256:")
    if kind == "digest":
        blob.write_bytes(blob.read_bytes()[:-9] + b"!" + blob.read_bytes()[-8:])
    if kind == "length":
        blob.write_bytes(blob.read_bytes() + b"more")
    if kind == "missing":
        blob.unlink()
    layers = verify.json(name, code=1)["layers"]
    assert [layer["kind"] for layer in layers] == [kind, ""]
    trouble = "MISSING" if kind == "missing" else "WRONG"
    assert f"layer 1   {layers[0]['digest']}  {trouble}: " in verify(name, code=1)


def test_a_wrong_document_is_an_error(verify: Verify, tmp_path: Path) -> None:
    name = write_image(tmp_path / "layout", [plain(SECOND)])
    config = json.loads(documents([plain(SECOND)]).manifest)["config"]["digest"]
    path = tmp_path / "layout/blobs/sha256" / config.removeprefix("sha256:")
    path.write_bytes(path.read_bytes().replace(b"amd64", b"arm64"))
    assert "expected sha256:" in verify(name, code=1)


def test_nothing_is_taken_from_the_store_or_kept_there(verify: Verify) -> None:
    with FaultServer() as server:
        signed = Served(server)
        verify(signed.name)
        verify(signed.name)
        assert len(server.seen("/blobs/", "GET")) == 4  # config and layer, each time
    kept = [path for path in (verify.directory / "store").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) < 1000


class Served:
    """An image in a registry, and what is attached to it."""

    def __init__(self, server: FaultServer, *, indexed: bool = False) -> None:
        made = documents([gzipped(FIRST)])
        server.blobs.update(made.blobs)
        self.server = server
        self.digest = sha256(made.manifest)
        self.size = len(made.manifest)
        server.add_manifest("app", None if indexed else "v1", made.manifest)
        self.named = self.digest
        if indexed:
            entry: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": self.digest, "size": self.size}
            entry["platform"] = {"os": "linux", "architecture": "amd64"}
            body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
            self.named = str(server.add_manifest("app", "v1", body, OCI_INDEX).digest)
        self.repository = f"{server.host}/app"
        self.name = f"{self.repository}:v1"

    def attach(self, *parts: Part, to: str = "", suffix: str = "sig") -> None:
        made = attachment(parts)
        self.server.blobs.update(made.blobs)
        self.server.add_manifest("app", tag_of(to or self.digest, suffix), made.manifest)

    def refer(self, *parts: Part, artifact_type: str) -> None:
        """Attach as a referrer, under the tag of a registry without the API."""
        subject = {"mediaType": OCI_MANIFEST, "digest": self.digest, "size": self.size}
        made = attachment(parts, subject, artifact_type)
        self.server.blobs.update(made.blobs)
        entry = self.server.add_manifest("app", None, made.manifest)
        index = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                {
                    "mediaType": OCI_MANIFEST,
                    "digest": str(entry.digest),
                    "size": entry.size,
                    "artifactType": artifact_type,
                }
            ],
        }
        tag = self.digest.replace(":", "-")
        self.server.add_manifest("app", tag, json.dumps(index).encode(), OCI_INDEX)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("indexed", [False, True])
def test_a_signature_by_the_key_is_accepted_and_by_another_is_not(
    kind: str, indexed: bool, verify: Verify, tmp_path: Path
) -> None:
    signer, other = Signer(kind, tmp_path), Signer(kind, tmp_path, "other")
    with FaultServer() as server:
        served = Served(server, indexed=indexed)
        fast = (served.name, "--no-layers")
        assert verify.json(*fast, "--cosign", signer.public, code=3)["cosign"]["missing"] == ["signature"]
        served.attach(signer.signature(served.named, "example.com/app"), to=served.named)
        found = verify.json(*fast, "--cosign", other.public, "--cosign", signer.public)["cosign"]["verified"]
        assert found == [
            {
                "kind": "signature",
                "digest": served.named,
                "key": str(signer.public),
                "says": "example.com/app",
            }
        ]
        assert "REFUSED: no signature by" in verify(*fast, "--cosign", other.public, code=3)


def test_a_signature_of_another_manifest_or_of_changed_bytes_is_none(verify: Verify, tmp_path: Path) -> None:
    signer = Signer("ecdsa", tmp_path)
    with FaultServer() as server:
        served = Served(server)
        good = signer.signature(served.digest)
        changed = good._replace(body=good.body.replace(b"null", b'"x"'))
        wrong = good._replace(annotations={"dev.cosignproject.cosign/signature": "?"})
        more = signer.signature(served.digest, extra="field")
        of_another = signer.signature(sha256(b"x"))
        other_type = signer.signature(served.digest, type="atomic container signature")
        served.attach(changed, wrong, more, of_another, other_type)
        words = (served.name, "--no-layers", "--cosign", signer.public)
        assert verify.json(*words, code=3)["cosign"]["verified"] == []
        served.attach(changed, wrong, more, good)
        assert len(verify.json(*words)["cosign"]["verified"]) == 1


@pytest.mark.parametrize("bundled", [False, True])
def test_attestations_count_by_their_type(bundled: bool, verify: Verify, tmp_path: Path) -> None:
    signer = Signer("ecdsa", tmp_path)
    with FaultServer() as server:
        served = Served(server)
        served.attach(signer.signature(served.digest))
        words = (served.name, "--no-layers", "--cosign", signer.public, "--attestation", "spdx")
        assert verify.json(*words, code=3)["cosign"]["missing"] == ["attestation of type spdx"]
        part = signer.attestation(served.digest, {"spdxVersion": "SPDX-2.3"}, SPDX, bundled=bundled)
        of_another = signer.attestation(sha256(b"x"), {}, "https://cyclonedx.org/bom")
        if bundled:
            served.refer(part, of_another, artifact_type=part.media_type)
        else:
            served.attach(part, of_another, suffix="att")
        verified = verify.json(*words)["cosign"]["verified"]
        assert [(one["kind"], one["says"]) for one in verified][1:] == [("attestation", SPDX)]
        assert "attestation of type cyclonedx" in verify(*words, "--attestation", "cyclonedx", code=3)
        assert "--attestation needs --cosign" in verify(served.name, "--attestation", "spdx", code=2)


def test_a_statement_that_signs_is_a_signature(verify: Verify, tmp_path: Path) -> None:
    """cosign 3 signs so."""
    signer = Signer("ecdsa", tmp_path)
    kind = "https://sigstore.dev/cosign/sign/v1"
    with FaultServer() as server:
        served = Served(server)
        words = (served.name, "--no-layers", "--cosign", signer.public)
        wrong = signer.attestation(sha256(b"x"), {}, kind, bundled=True)
        served.refer(wrong, artifact_type=wrong.media_type)
        assert verify.json(*words, code=3)["cosign"]["missing"] == ["signature"]
        part = signer.attestation(served.digest, {}, kind, bundled=True)
        served.refer(part, artifact_type=part.media_type)
        assert [one["kind"] for one in verify.json(*words)["cosign"]["verified"]] == ["signature"]


def test_a_policy_decides_by_key_and_name(verify: Verify, tmp_path: Path) -> None:
    signer, other = Signer("ecdsa", tmp_path), Signer("ecdsa", tmp_path, "other")
    with FaultServer() as server:
        served = Served(server)
        served.attach(signer.signature(served.digest, served.name))
        required = {"type": "sigstoreSigned", "keyPath": str(signer.public)}

        def asked(*requirements: Mapping[str, Any], name: str = served.name, code: int = 0) -> str:
            words = (name, "--no-layers", "--policy", verify.policy(requirements))
            return str(verify.json(*words, code=code)["policy"]["reason"])

        assert "signed by" in asked(required)
        assert "signed by" in asked(required, name=f"{served.repository}@{served.digest}")
        assert "another key" in asked({**required, "keyPath": str(other.public)}, code=3)
        exact = {"type": "exactRepository", "dockerRepository": "example.com/app"}
        assert "not for this name" in asked({**required, "signedIdentity": exact}, code=3)
        assert "No such file" in asked({**required, "keyPath": str(tmp_path / "none")}, code=3)
        assert "not a public key" in asked({**required, "rekorPublicKeyData": "AA=="}, code=3)
        assert "rejected" in asked(required, {"type": "reject"}, code=3)
        served.attach(Part(b"{}", "text/plain"))
        assert "there is none" in asked(required, code=3)


def test_a_policy_wants_a_log_or_certificates(verify: Verify, tmp_path: Path) -> None:
    log, root = Log(), Authority("root")
    middle = root.authority("middle")
    now = datetime.now(UTC)
    issuer, email = "https://login.example", "me@example.com"
    short = middle.leaf(emails=[email], issuer=issuer)
    lasting = middle.leaf(emails=[email], hosts=["build.example"], begin=now - HOUR, end=now + HOUR)
    for name, body in (("log", log.pem), ("root", root.pem), ("key", public_pem(short.key))):
        (tmp_path / name).write_bytes(body)
    logged = {"rekorPublicKeyPath": str(tmp_path / "log")}
    by_key = {"type": "sigstoreSigned", "keyPath": str(tmp_path / "key"), **logged}
    who = {"caPath": str(tmp_path / "root"), "oidcIssuer": issuer, "subjectEmail": email}
    by_fulcio = {"type": "sigstoreSigned", "fulcio": who, **logged}
    where = {"caRootsPath": str(tmp_path / "root"), "subjectEmail": email, "subjectHostname": "build.example"}
    by_pki = {"type": "sigstoreSigned", "pki": where}
    with FaultServer() as server:
        served = Served(server)
        payload = claim_of(served.digest, served.name)

        def asked(made: Made, requirement: Mapping[str, Any], code: int) -> str:
            served.attach(made.part)
            words = (served.name, "--no-layers", "--policy", verify.policy([requirement]))
            return str(verify.json(*words, code=code)["policy"]["reason"])

        def signature(leaf: Certified, key: Any = None) -> Made:
            return Made(payload, key or leaf.key)

        pem = short.pem
        keyless = signature(short).certified(short).logged(log, pem)
        assert asked(keyless, by_fulcio, 0) == f"signed by the certificate of {email} for {served.name}"
        later = signature(short).certified(short).logged(log, pem, LOGGED + 2 * HOUR)
        assert "not valid at 2025-06-01 02:00:00" in asked(later, by_fulcio, 3)
        unlogged = signature(short).certified(short)
        assert "without an entry" in asked(unlogged, by_fulcio, 3)
        assert "without a certificate" in asked(signature(short).logged(log, pem), by_fulcio, 3)
        of_another = unlogged.logged(log, lasting.pem)
        assert "a log of another key" in asked(of_another, by_fulcio, 3)
        stolen = signature(short, lasting.key).certified(short).logged(log, pem)
        assert "by another key" in asked(stolen, by_fulcio, 3)
        alone = signature(short).certified(short, chain="").logged(log, pem)
        assert "authority that is another" in asked(alone, by_fulcio, 3)
        for field, value in (("oidcIssuer", "https://x"), ("subjectEmail", "x@example.com")):
            assert "a certificate" in asked(keyless, {**by_fulcio, "fulcio": {**who, field: value}}, 3)
        key_logged = signature(short).logged(log, public_pem(short.key))
        assert asked(key_logged, by_key, 0) == f"signed by {tmp_path}/key for {served.name}"
        assert "without an entry" in asked(signature(short), by_key, 3)
        assert "a log of another key" in asked(signature(short).logged(log, log.pem), by_key, 3)
        assert asked(signature(lasting).certified(lasting), by_pki, 0).startswith("signed by the certificate")
        assert "not for build.other" in asked(
            signature(lasting).certified(lasting),
            {**by_pki, "pki": {**where, "subjectHostname": "build.other"}},
            3,
        )
        (tmp_path / "root").write_bytes(b"junk")
        assert f"{tmp_path}/root: not certificates" in asked(keyless, by_fulcio, 3)


def test_policy_is_found_where_it_usually_is(
    verify: Verify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMGFS_ETC", str(tmp_path / "etc"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    name = write_image(tmp_path / "layout", [plain(SECOND)])
    assert "no policy: neither" in verify(name, "--policy", code=2)
    for place, kind, code in (("etc", "reject", 3), ("config", "insecureAcceptAnything", 0)):
        path = tmp_path / place / "containers/policy.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"default": [{"type": kind}]}))
        said = "REFUSED" if code else "accepted"
        assert f"policy    {said} by default" in verify(name, "--policy", code=code)


@pytest.mark.parametrize("kind", ["small", "text"])
def test_a_key_that_is_none_is_refused_before_anything_is_fetched(
    kind: str, verify: Verify, tmp_path: Path
) -> None:
    path = Signer("small", tmp_path).public if kind == "small" else tmp_path / "text"
    (tmp_path / "text").write_bytes(b"-----BEGIN PUBLIC KEY-----\nAAAA\n")
    assert str(path) in verify("oci:/nowhere", "--cosign", path, code=2)


def test_every_transport_is_verified(verify: Verify, tmp_path: Path) -> None:
    (tmp_path / "root.tar.gz").write_bytes(gzip.compress(FIRST))
    assert verify.json(f"tar:{tmp_path / 'root.tar.gz'}")["layers"][0]["entries"] == 3
    name = write_image(tmp_path / "layout", [plain(FIRST)])
    for transport in ("oci-archive", "docker-archive"):
        target = f"{transport}:{tmp_path / transport}.tar"
        assert main(["copy", name, target]) == 0
        verify("--no-layers", target)
        assert len(verify.json(target)["layers"]) == 1


def test_two_layers_of_one_digest_may_not_have_two_diff_ids(verify: Verify, tmp_path: Path) -> None:
    made = documents([gzipped(FIRST), gzipped(FIRST)._replace(diff_id=sha256(SECOND))])
    name = write_documents(tmp_path / "layout", made.manifest, made.blobs)
    assert [layer["kind"] for layer in verify.json(name, code=1)["layers"]] == ["", "diff_id"]
