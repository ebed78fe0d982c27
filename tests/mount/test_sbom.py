"""imgfs sbom: what is attached as a referrer, under cosign's tags, or in the index, by digest and subject."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from imgfs.cli import main
from imgfs.oci.image import OCI_INDEX, OCI_MANIFEST
from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import documents, gzipped, sha256
from tests.support.signing import Part, Signer, attachment, tag_of

SPDX = b'{"spdxVersion": "SPDX-2.3"}'
CYCLONEDX = b'{"bomFormat": "CycloneDX"}'
PREDICATE = "https://spdx.dev/Document"
Capture = pytest.CaptureFixture[str]


class Repository:
    """A repository with an image, and whatever is attached to it."""

    def __init__(self, server: FaultServer, store: Path, capfd: Capture) -> None:
        made = documents([gzipped(tar.archive(tar.file("a", b"a")))])
        server.blobs.update(made.blobs)
        server.referrers_api = True
        server.add_manifest("app", "v1", made.manifest)
        self.digest = sha256(made.manifest)
        self.entry: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": self.digest}
        self.entry["size"] = len(made.manifest)
        self._server, self._store, self._capture = server, store, capfd

    def run(self, *words: str, code: int = 0) -> tuple[str, str]:
        name = f"{self._server.host}/app:v1"
        assert main(["sbom", "--store", str(self._store), *words, name]) == code
        out, err = self._capture.readouterr()
        return out, err

    def listed(self, *words: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("--json", *words)[0])
        return found

    def attach(self, part: Part, tag: str | None, artifact_type: str | None = None) -> dict[str, Any]:
        made = attachment([part], self.entry if artifact_type else None, artifact_type)
        self._server.blobs.update(made.blobs)
        self._server.add_manifest("app", tag, made.manifest)
        return {"mediaType": OCI_MANIFEST, "digest": sha256(made.manifest), "size": len(made.manifest)}

    def refer(self, part: Part, artifact_type: str) -> None:
        """Attach as a referrer, in the list of a registry without the API."""
        self._server.referrers_api = False
        entry = {**self.attach(part, None, artifact_type), "artifactType": artifact_type}
        tag = self.digest.replace(":", "-")
        _, body = self._server.manifests.get(("app", tag), ("", b'{"manifests": []}'))
        self.index([*json.loads(body)["manifests"], entry], tag)

    def index(self, entries: list[dict[str, Any]], tag: str) -> None:
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
        self._server.add_manifest("app", tag, body, OCI_INDEX)

    def build(self, statement: Mapping[str, Any]) -> None:
        """Have an index with an attestation, as buildkit makes it."""
        notes = {"in-toto.io/predicate-type": PREDICATE}
        part = Part(json.dumps(statement).encode(), "application/vnd.in-toto+json", notes)
        about = {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": self.digest,
        }
        image = {**self.entry, "platform": {"os": "linux", "architecture": "amd64"}}
        unknown = {"os": "unknown", "architecture": "unknown"}
        self.index([image, {**self.attach(part, None), "platform": unknown, "annotations": about}], "v1")


@pytest.fixture
def repository(tmp_path: Path, capfd: Capture) -> Any:
    with FaultServer() as server:
        yield Repository(server, tmp_path / "store", capfd)


def statement(digest: str, predicate: object) -> dict[str, Any]:
    return {
        "_type": "https://in-toto.io/Statement/v0.1",
        "subject": [{"name": "x", "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": PREDICATE,
        "predicate": predicate,
    }


def test_without_one_the_way_to_another_answer_is_said(repository: Repository) -> None:
    assert "no bill of materials is attached (see: imgfs packages)" in repository.run(code=1)[1]
    assert "no such bill of materials is attached" in repository.run("--type", "spdx", code=1)[1]
    assert repository.listed() == []


def test_a_referrer_is_written_byte_for_byte(repository: Repository, tmp_path: Path) -> None:
    repository.refer(Part(SPDX, "application/spdx+json"), "application/spdx+json")
    out, err = repository.run()
    assert out.encode() == SPDX
    assert "the word of the place it was found in, not of the image" in err
    repository.run("-o", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == SPDX
    assert repository.listed()[0] == {
        "type": "spdx",
        "digest": sha256(SPDX),
        "size": len(SPDX),
        "media_type": "application/spdx+json",
        "found_as": "referrer",
        "wrapped": "",
        "subject": repository.digest,
    }


def test_of_several_one_is_chosen(repository: Repository, tmp_path: Path) -> None:
    repository.refer(Part(SPDX, "application/spdx+json"), "application/spdx+json")
    repository.attach(Part(CYCLONEDX, "application/vnd.cyclonedx+json"), tag_of(repository.digest, "sbom"))
    out, err = repository.run()
    assert [line.split()[0] for line in out.splitlines()] == ["TYPE", "cyclonedx", "spdx"]
    assert "choose by --type or --digest" in err
    assert "choose by" in repository.run("-o", str(tmp_path / "out"), code=2)[1]
    assert repository.run("--type", "cyclonedx")[0].encode() == CYCLONEDX
    assert repository.run("--digest", sha256(SPDX)[:20])[0].encode() == SPDX
    assert "too short" in repository.run("--digest", "ab", code=2)[1]


def test_what_buildkit_attaches_is_named_by_the_index(repository: Repository) -> None:
    repository.build(statement(repository.digest, json.loads(SPDX)))
    out, err = repository.run()
    assert json.loads(out) == json.loads(SPDX)
    assert "the image's own index names" in err


def test_a_statement_about_another_image_is_refused(repository: Repository) -> None:
    repository.build(statement(sha256(b"x"), json.loads(SPDX)))
    assert "a statement about another image" in repository.run(code=1)[1]


@pytest.mark.parametrize("bundled", [False, True])
def test_an_attestation_is_taken_out_and_its_signature_is_said_to_be_unchecked(
    bundled: bool, repository: Repository, tmp_path: Path
) -> None:
    part = Signer("ecdsa", tmp_path).attestation(
        repository.digest, json.loads(SPDX), PREDICATE, bundled=bundled
    )
    provenance = Signer("ecdsa", tmp_path).attestation(
        repository.digest, {}, "https://slsa.dev/provenance/v1"
    )
    repository.attach(part, tag_of(repository.digest, "att"))
    repository.refer(provenance, provenance.media_type)
    out, err = repository.run()
    assert json.loads(out) == json.loads(SPDX)
    assert "its signature is not checked" in err


@pytest.mark.parametrize(
    "part",
    [
        Part(b"{", "application/vnd.in-toto+json"),
        Part(b"[]", "application/vnd.dsse.envelope.v1+json"),
        Part(b"\xff" * 100, "application/vnd.dev.sigstore.bundle.v0.3+json"),
        Part(b"x", "application/octet-stream"),
    ],
)
def test_what_is_no_bill_is_passed_over(part: Part, repository: Repository) -> None:
    repository.attach(part, tag_of(repository.digest, "att"))
    repository.refer(Part(SPDX, "application/spdx+json"), "application/spdx+json")
    assert repository.run()[0].encode() == SPDX


def test_bytes_with_another_digest_are_an_error(repository: Repository) -> None:
    repository.refer(Part(SPDX, "application/spdx+json"), "application/spdx+json")
    repository._server.blobs[sha256(SPDX)] = SPDX.replace(b"2.3", b"2.2")
    assert "expected sha256:" in repository.run(code=1)[1]
