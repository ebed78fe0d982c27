"""registries.d: which lookaside store counts for an image, and what makes a file wrong."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.config import signature_places
from imgfs.errors import UsageError
from imgfs.signatures.identity import ImageName
from imgfs.signatures.registries_d import load_signature_config, parse_sections

FILE = """\
default-docker:
    lookaside: https://default.example
    lookaside-staging: file:///staging
docker:
    reg.example:5000:
        sigstore: https://old.example
        use-sigstore-attachments: true
    reg.example:5000/ns/app:
        lookaside: https://app.example
    reg.example:5000/ns/app:v1:
        lookaside: https://tag.example/x
        use-sigstore-attachments: false
    reg.example:5000/empty:
    "*.example.com":
        lookaside: file:///srv/sigs
unknown: [1, 2]
"""


@pytest.mark.parametrize(
    ("name", "lookaside", "uses"),
    [
        ("reg.example:5000/ns/app:v1", "https://tag.example/x", False),
        ("reg.example:5000/ns/app:v2", "https://app.example", True),
        ("reg.example:5000/ns/apple:v1", "https://old.example", True),
        ("reg.example:5000/empty:v1", "https://old.example", True),
        ("reg.example/ns/app:v1", "https://default.example", None),
        ("a.b.example.com:1/x:v1", "file:///srv/sigs", None),
        ("example.com/x:v1", "https://default.example", None),
    ],
)
def test_the_most_specific_scope_that_says_it_counts(
    name: str, lookaside: str, uses: bool | None, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(FILE)
    (tmp_path / "a.yml").write_text("[")  # has another name
    config = load_signature_config([tmp_path / "none", tmp_path, tmp_path / "a.yaml"])
    image = ImageName.parse(name)
    assert (config.lookaside(image), config.uses_attachments(image)) == (lookaside, uses)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("docker: [", r"a\.yaml: no YAML, line 2"),
        ("- x", "expected an object"),
        ("docker: [x]", "docker: expected an object"),
        ("docker: {x: y}", "docker: x: expected an object"),
        ("docker: {x: {lookaside: [1]}}", "x.lookaside: expected a string"),
        ("docker: {x: {use-sigstore-attachments: 1}}", "expected true or false"),
        ("docker:\n  x: {}\n  x: {}", "line 3: 'x' is there twice"),
        ("a: !!python/object:os.system {}", "no YAML, line 1"),
        ("[" * 5000, "no YAML"),
        ("\0", "no YAML"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_place(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UsageError, match=what):
        load_signature_config([tmp_path])


def test_two_files_must_not_speak_of_one_scope(tmp_path: Path) -> None:
    for name, text in (("a", "docker: {x: {}}"), ("b", "default-docker: {}"), ("c", "docker: {y: {}}")):
        (tmp_path / f"{name}.yaml").write_text(text)
    assert set(load_signature_config([tmp_path]).scopes) == {"x", "y"}
    (tmp_path / "d.yaml").write_text("default-docker: {lookaside: x}")
    with pytest.raises(UsageError, match=r"default-docker is both in .*b\.yaml and in .*d\.yaml"):
        load_signature_config([tmp_path])
    (tmp_path / "d.yaml").write_text("docker: {x: {}}")
    with pytest.raises(UsageError, match=r"'x' is both in .*a\.yaml and in .*d\.yaml"):
        load_signature_config([tmp_path])


def test_nothing_is_said_where_there_is_no_directory() -> None:
    assert load_signature_config([Path("/none")]).lookaside(ImageName.parse("example.com/x:v1")) == ""


def test_where_files_and_signatures_usually_are() -> None:
    environ = {"HOME": "/home/me", "XDG_CONFIG_HOME": "/elsewhere", "IMGFS_ETC": "/e"}
    users = signature_places(environ, 1000)
    assert [str(path) for path in users.directories] == [
        "/home/me/.config/containers/registries.d",
        "/e/containers/registries.d",
    ]
    assert str(users.lookaside) == "/home/me/.local/share/containers/sigstore"
    assert str(signature_places(environ, 0).lookaside) == "/var/lib/containers/sigstore"


@given(st.text(alphabet="docker:{}[]&*!-? \n\t'\"x0.", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(UsageError):
        parse_sections(text.encode(), Path("f"))
