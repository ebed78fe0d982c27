"""signedBy: signatures by GPG keys, as skopeo makes and stores them; its verdicts are those of imgfs."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from imgfs.cli import main
from imgfs.oci.descriptor import Digest
from tests.support import tarmake as tar
from tests.support.docker_registry import docker_registry, needs_docker_registry
from tests.support.fault_server import Fault, FaultServer, Reply, Seen, registry_error
from tests.support.mounted import documents, plain, write_image
from tests.support.openpgp import OpenPgpHome, claim, needs_gpg
from tests.support.patience import allowed

LAYER = plain(tar.archive(tar.file("a", b"a")))
VENDOR = "vendor.example/ns/app:v1"
EXACT = {"type": "exactReference", "dockerReference": VENDOR}
pytestmark = [needs_gpg]
needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="no skopeo")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def keys() -> Iterator[OpenPgpHome]:
    with OpenPgpHome() as home:
        for name in ("a", "b"):
            home.make_key(name)
            (home.path / f"{name}.gpg").write_bytes(home.public(name, armor=name == "b"))
        yield home


def signed_by(keys: OpenPgpHome, *names: str, **fields: object) -> dict[str, object]:
    paths = [str(keys.path / f"{name}.gpg") for name in names]
    key = {"keyPath": paths[0]} if len(paths) == 1 else {"keyPaths": paths}
    return {"type": "signedBy", "keyType": "GPGKeys", **key, **fields}


class Verify:
    """`imgfs verify` with a policy, by a user whose home is in a directory of its own."""

    def __init__(self, directory: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.policy = directory / "policy.json"
        self.registries_d = directory / "home/.config/containers/registries.d"
        self._capture = capfd
        monkeypatch.setenv("HOME", str(directory / "home"))
        monkeypatch.setenv("IMGFS_ETC", str(directory / "etc"))

    def configure(self, file: Mapping[str, Any]) -> None:
        self.registries_d.mkdir(parents=True, exist_ok=True)
        (self.registries_d / "a.yaml").write_text(json.dumps(file))  # JSON is YAML

    def __call__(self, image: str, *requirements: Mapping[str, object]) -> tuple[int, str]:
        """Return the exit code and the reason, or the error."""
        self.policy.write_text(json.dumps({"default": requirements}))
        words = ["--store", str(self.directory / "store"), "--no-layers", "--json", "--policy"]
        code = main(["verify", *words, str(self.policy), image])
        out, error = self._capture.readouterr()
        return code, json.loads(out)["policy"]["reason"] if out else error


@pytest.fixture
def verify(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> Verify:
    return Verify(tmp_path, capfd, monkeypatch)


class Skopeo(NamedTuple):
    keys: OpenPgpHome
    registries_d: Path

    def __call__(self, *words: object) -> bool:
        """Run skopeo; True if it succeeds."""
        command = ["skopeo", "--registries.d", str(self.registries_d), *map(str, words)]
        done = subprocess.run(
            command, env=self.keys.environment, capture_output=True, timeout=allowed(60), check=False
        )
        return done.returncode == 0


@needs_skopeo
@needs_docker_registry
def test_what_skopeo_signs_is_accepted_and_refused_as_by_skopeo(
    verify: Verify, keys: OpenPgpHome, tmp_path: Path
) -> None:
    layout = write_image(tmp_path / "layout", [LAYER], tag="v1")
    (tmp_path / "any.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    skopeo = Skopeo(keys, verify.registries_d)
    with docker_registry(tmp_path / "registry") as host:
        other = {"lookaside": f"file://{tmp_path}/public", "lookaside-staging": f"file://{tmp_path}/staging"}
        ours = {f"{host}/ns": {"lookaside": f"file://{tmp_path}/signatures"}}
        verify.configure({"docker": ours, "default-docker": other})

        def sign(image: str, key: str, *words: str, source: str = layout) -> None:
            said = ("copy", "--src-tls-verify=false", "--dest-tls-verify=false", *words)
            signing = ("--sign-by", keys.fingerprint(key), source, image)
            assert skopeo("--policy", tmp_path / "any.json", *said, *signing)

        app, directory = f"docker://{host}/ns/app:v1", f"dir:{tmp_path}/dir"
        sign(app, "a")
        sign(app, "b", "--sign-identity", VENDOR, source=app)  # which keeps the other signature
        sign(f"docker://{host}/elsewhere/app:v1", "a")  # and not published
        sign(directory, "b", "--sign-identity", VENDOR)
        (kept,) = (tmp_path / "signatures/ns").iterdir()  # app@sha256=…
        pinned = f"docker://{host}/ns/{kept.name.replace('=', ':')}"
        by_a, by_b = signed_by(keys, "a"), signed_by(keys, "b")
        remap = {"type": "remapIdentity", "prefix": host, "signedPrefix": "vendor.example"}
        asked: list[tuple[str, list[dict[str, object]], bool]] = [
            (app, [by_a], True),
            (pinned, [by_a], True),
            (app, [by_b], False),
            (app, [signed_by(keys, "b", "a")], True),
            (app, [{**by_b, "signedIdentity": EXACT}], True),
            (app, [{**by_b, "signedIdentity": remap}], True),
            (app, [by_a, {**by_b, "signedIdentity": remap}, {"type": "insecureAcceptAnything"}], True),
            (app, [by_a, {"type": "reject"}], False),
            (pinned, [{**by_a, "signedIdentity": {"type": "matchExact"}}], False),
            (app, [{**by_a, "keyPath": str(tmp_path / "none")}], False),
            (f"docker://{host}/elsewhere/app:v1", [by_a], False),
            (directory, [{**by_b, "signedIdentity": EXACT}], True),
            (directory, [by_b], False),
        ]
        for image, requirements, accepted in asked:
            code, reason = verify(image.removeprefix("docker://"), *requirements)
            assert (code, "signed by the key" in reason) == (0 if accepted else 3, accepted), reason
            copied = ("copy", "--src-tls-verify=false", "--remove-signatures", image, f"dir:{tmp_path}/copy")
            assert skopeo("--policy", verify.policy, *copied) is accepted, (image, requirements)


class SigningRegistry(FaultServer):
    """A registry with an image that keeps signatures, by the extension or as a web server beside it."""

    def __init__(self, *, extension: bool) -> None:
        super().__init__()
        self.extension = extension
        self.kept: list[bytes] = []
        made = documents([LAYER])
        self.blobs.update(made.blobs)
        self.digest = self.add_manifest("ns/app", "v1", made.manifest).digest
        self.name = f"{self.host}/ns/app:v1"

    def found(self, seen: Seen, fault: Fault) -> Reply:
        path = urlsplit(seen.path).path
        if path == "/v2/" and self.extension:
            return Reply(200, b"{}", {"X-Registry-Supports-Signatures": "1"})
        if path == f"/extensions/v2/ns/app/signatures/{self.digest}":
            fields = {"schemaVersion": 2, "type": "atomic", "name": "x"}
            entries = [{**fields, "content": base64.b64encode(body).decode()} for body in self.kept]
            return Reply(200, json.dumps({"signatures": entries}).encode())
        stem = f"/kept/ns/app@sha256={self.digest.hex}/signature-"
        number = int(path.removeprefix(stem)) if path.startswith(stem) else 0
        if 0 < number <= len(self.kept):
            return Reply(200, self.kept[number - 1])
        return registry_error(404, "NOT_HERE") if path.startswith("/kept") else super().found(seen, fault)


@pytest.mark.parametrize("extension", [True, False])
def test_one_good_signature_of_a_registry_or_web_server_is_enough(
    extension: bool, verify: Verify, keys: OpenPgpHome
) -> None:
    with SigningRegistry(extension=extension) as server:
        verify.configure({"default-docker": {"sigstore": f"{server.url}/kept"}})
        digest, by_a = str(server.digest), signed_by(keys, "a")
        assert verify(server.name, by_a) == (3, "a signature is required, and there is none")
        server.kept = [
            keys.sign(claim(digest, server.name), "b"),
            keys.sign(claim(digest, "example.com/other:v1"), "a"),
            keys.sign(claim(str(Digest.of(b"x")), server.name), "a"),
            keys.sign(claim(digest, server.name, more=1), "a"),
            b"\xc2junk",
        ]
        code, reason = verify(server.name, by_a)
        wanted = {
            "is another",
            "not for this name",
            "another manifest",
            "expected the fields",
            "no signature",
        }
        assert (code, {words for words in wanted if words not in reason}) == (3, set())
        server.kept.append(keys.sign(claim(digest, server.name), "a"))
        code, reason = verify(server.name, by_a)
        assert (code, reason) == (0, f"signed by the key {keys.fingerprint('a')} for {server.name}")
        asked = {urlsplit(seen.path).path.split("/")[1] for seen in server.seen("/", "GET")}
        assert asked == {"v2", "extensions" if extension else "kept"}


def test_a_store_that_fails_or_sends_anything_is_an_error_or_a_refusal(
    verify: Verify, keys: OpenPgpHome
) -> None:
    with SigningRegistry(extension=False) as server:
        by_a = signed_by(keys, "a")
        server.kept = [keys.sign(claim(str(server.digest), server.name), "a")]
        verify.configure({"docker": {server.host: {"lookaside": f"{server.url}/kept"}}})
        server.inject(Fault(status=403), on="/signature-1")
        code, error = verify(server.name, by_a)
        assert (code, "403" in error) == (1, True)
        for body, words in ((b"<html>", "not a signature"), (bytes(5 << 20), "4194304")):
            server.inject(Fault(body=body), on="/signature-1")
            code, reason = verify(server.name, by_a)
            assert (code, words in reason) == (3, True), reason
        assert verify(server.name, by_a)[0] == 0
        for url, words in (
            ("ftp://x", "'ftp://x': a URL of neither file"),
            ("file:x", "'file:x/ns/app@"),
            ("http://user:secret@x", "'http://x/ns/app@"),
            ("http://x?secret", "'http://x': a URL with a query"),
        ):
            verify.configure({"default-docker": {"lookaside": url}})
            code, error = verify(server.name, by_a)
            assert (code, f"the lookaside store {words}" in error, "secret" in error) == (2, True, False), (
                error
            )
        verify.configure({"docker": {server.host: {"use-sigstore-attachments": False, "lookaside": 1}}})
        code, error = verify(server.name, by_a)
        assert (code, "expected a string" in error) == (2, True)
