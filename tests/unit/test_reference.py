"""References: docker's grammar, and OCI layouts."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import UsageError
from imgfs.oci.descriptor import Digest
from imgfs.oci.reference import (
    EngineReference,
    FileReference,
    LayoutReference,
    RegistryReference,
    parse_reference,
)

HEX = "0123456789abcdef" * 4
DIGEST = Digest("sha256", HEX)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/ns/app:v1", "docker.io/ns/app:v1"),
        ("ns/app", "docker.io/ns/app:latest"),
        ("docker://alpine", "docker.io/library/alpine:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("registry:5000/a/b/c/d:t", "registry:5000/a/b/c/d:t"),
        ("Uppercase/app", "Uppercase/app:latest"),
        ("127.0.0.1:80/app", "127.0.0.1:80/app:latest"),
        ("[::1]:5000/x:y", "[::1]:5000/x:y"),
        ("[2001:db8::1]/x", "[2001:db8::1]/x:latest"),
        ("quay.io/a-b__c.d/e--f", "quay.io/a-b__c.d/e--f:latest"),
        ("quay.io/ns/app.tar", "quay.io/ns/app.tar:latest"),
        ("docker://app.tar", "docker.io/library/app.tar:latest"),
        ("docker://dir:x", "docker.io/library/dir:x"),
        ("target/app", "docker.io/target/app:latest"),
        ("dir/app", "docker.io/dir/app:latest"),
        (f"alpine@sha256:{HEX}", f"docker.io/library/alpine@sha256:{HEX}"),
        (f"h.io/a:v1@sha256:{HEX}", f"h.io/a:v1@sha256:{HEX}"),
        ("localhost:5000", "docker.io/library/localhost:5000"),  # docker reads it so, too
    ],
)
def test_familiar_names_become_canonical_ones(text: str, canonical: str) -> None:
    assert str(parse_reference(text)) == canonical


def test_a_digest_pins_and_leaves_no_default_tag() -> None:
    reference = parse_reference(f"h.io/a@{DIGEST}")
    assert reference == RegistryReference("h.io", "a", None, DIGEST)
    assert reference.pinned
    assert not parse_reference("h.io/a").pinned


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no repository"),
        ("quay.io/", "names no repository"),
        ("quay.io/Ns/app", "lower case: ns/app"),
        ("Alpine", "lower case"),
        ("https://quay.io/ns/app", "without https://"),
        ("http://localhost/app", "without http://"),
        (HEX, "image id"),
        ("alpine:", "not a tag"),
        ("alpine:-x", "not a tag"),
        ("alpine:" + "t" * 129, "not a tag"),
        ("alpine@sha256:abc", "not a sha256 digest"),
        ("alpine@md5:" + "a" * 32, "not supported"),
        ("h.io/" + "a" * 256, "longer than 255"),
        ("h.io/a//b", "not a repository"),
        ("h.io/a..b", "not a repository"),
        ("h.io/a___b", "not a repository"),
        ("h.io/-a", "not a repository"),
        ("h_o.io/a", "host[:port]"),
        ("h.io:port/a", "host[:port]"),
        ("h.io:65536/a", "no port 65536"),
        ("[::1]:0/a", "no port 0"),
        ("alpine\n", "not a repository"),
        ("docker-archive:", "docker-archive:FILE[:NAME:TAG]"),
        ("oci-archive::v1", "names no file"),
        ("tar:", "write tar:FILE"),
        ("oci-layout:app:v1", "place of other tools"),
        ("containers-storage:", "names no image"),
        ("containers-storage:[p]app", "[/ROOT]NAME"),
        ("docker-daemon:", "write docker-daemon:NAME"),
        ("docker-daemon:a/../b", "names no image"),
        ("docker-daemon:/a", "names no image"),
        ("docker-daemon:a?b", "names no image"),
        ("docker-daemon:a\nb", "names no image"),
        ("containerd:a//b", "write containerd:[NAMESPACE/]NAME"),
        ("containerd:app@sha256:abc", "not a sha256 digest"),
        (
            "ostree:app",
            "oci-archive:FILE[:TAG], docker-archive:FILE[:NAME:TAG], dir:PATH, tar:FILE",
        ),
        ("app.tar", "archive; imgfs knows docker://NAME, oci:DIR"),
        ("app.tar", "Docker Hub is docker://app.tar"),
        ("app.tar:v1", "archive"),
        ("ns/app.TAR.gz", "archive"),
        ("app.tgz", "archive"),
        ("app.tar.zst", "archive"),
        ("./app", "is a path"),
        ("../app", "is a path"),
        ("/srv/app.tar", "is a path"),
        ("~/app", "is a path"),
        ("oci:", "names no directory"),
        ("oci::tag", "names no directory"),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_reference(text)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_longest_names_are_allowed() -> None:
    reference = parse_reference(f"h.io/{'a' * 255}:{'t' * 128}")
    assert isinstance(reference, RegistryReference)
    assert len(reference.repository) == 255


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("oci-archive:/a/b.tar", FileReference("oci-archive", Path("/a/b.tar"))),
        ("oci-archive:a.tar:v1", FileReference("oci-archive", Path("a.tar"), "v1")),
        ("docker-archive:a:h.io:5000/b:v1", FileReference("docker-archive", Path("a"), "h.io:5000/b:v1")),
        (f"docker-archive:a.tar@{DIGEST}", FileReference("docker-archive", Path("a.tar"), None, DIGEST)),
        ("dir:a:b", FileReference("dir", Path("a:b"))),
        ("tar:root.tar.gz", FileReference("tar", Path("root.tar.gz"))),
        ("containers-storage:h.io/app:v1", FileReference("containers-storage", Path(), "h.io/app:v1")),
        ("containers-storage:[/s]app", FileReference("containers-storage", Path("/s"), "app")),
    ],
)
def test_files_are_named_by_transport_and_path(text: str, reference: FileReference) -> None:
    assert parse_reference(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("docker-daemon:app", EngineReference("docker-daemon", "app")),
        (f"docker-daemon:app@{DIGEST}", EngineReference("docker-daemon", f"app@{DIGEST}")),
        (f"docker-daemon:sha256:{HEX}", EngineReference("docker-daemon", f"sha256:{HEX}")),
        ("containerd:k8s.io/h.io:5000/a/b:v1", EngineReference("containerd", "k8s.io/h.io:5000/a/b:v1")),
        (f"containerd:app@{DIGEST}", EngineReference("containerd", "app", digest=DIGEST)),
    ],
)
def test_an_engine_is_named_and_what_it_calls_the_image(text: str, reference: EngineReference) -> None:
    assert parse_reference(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("oci:dir", LayoutReference(Path("dir"))),
        ("oci:/a/b:v1", LayoutReference(Path("/a/b"), "v1")),
        ("oci:dir:docker.io/library/alpine:3", LayoutReference(Path("dir"), "docker.io/library/alpine:3")),
        (f"oci:dir@{DIGEST}", LayoutReference(Path("dir"), None, DIGEST)),
        (f"oci:dir:v1@{DIGEST}", LayoutReference(Path("dir"), "v1", DIGEST)),
        ("oci:user@host", LayoutReference(Path("user@host"))),
    ],
)
def test_layouts_are_named_by_directory_tag_and_digest(text: str, reference: LayoutReference) -> None:
    assert parse_reference(text) == reference
    assert str(reference) == text


def _component() -> st.SearchStrategy[str]:
    letters = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=5)
    return (
        st.builds("{}{}{}".format, letters, st.sampled_from([".", "_", "__", "-", "--"]), letters) | letters
    )


@settings(max_examples=100)
@given(
    registry=st.sampled_from(["docker.io", "quay.io", "localhost:5000", "[::1]:80", "HOST"]),
    path=st.lists(_component(), min_size=2, max_size=4).map("/".join),
    tag=st.none() | st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=9),
    digest=st.none() | st.just(DIGEST),
)
def test_canonical_text_reads_back_as_the_same_reference(
    registry: str, path: str, tag: str | None, digest: Digest | None
) -> None:
    reference = RegistryReference(registry, path, tag or (None if digest else "latest"), digest)
    assert parse_reference(str(reference)) == reference


@settings(max_examples=200)
@given(st.text(max_size=60) | st.text("aA:/.@-_[]0", max_size=40))
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UsageError:
        return
    if isinstance(reference, RegistryReference):
        assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize("text", ["ann:canary@reg.example/app:1", "https://ann:canary@reg.example/app:1"])
def test_a_password_before_a_host_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match=r"^'…@reg\.example/app:1': what is before @") as raised:
        parse_reference(text)
    assert "canary" not in str(raised.value)
    digest = f"sha256:{'0' * 64}"
    for name in (f"app@{digest}", f"reg.example:5000/app:1@{digest}"):
        assert str(parse_reference(name)).endswith(f"@{digest}")
