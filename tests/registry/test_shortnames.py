"""Names without a registry (containers-registries.conf(5), "Short-name aliasing")."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgfs.config import RegistriesConf
from imgfs.errors import NotFound, Unauthorized, Unavailable, UsageError
from imgfs.oci.reference import Reference, parse_reference
from imgfs.registry.config.shortnames import candidates, first_found

DIGEST = f"sha256:{'0' * 64}"
TWO = 'unqualified-search-registries = ["a.example:5000", "docker.io"]\n'


def meant(tmp_path: Path, conf: str, text: str) -> list[str]:
    path = tmp_path / "registries.conf"
    path.write_text(conf)
    return [str(reference) for reference in candidates(text, [RegistriesConf(path)])]


@pytest.mark.parametrize(
    "text", ["alpine", "team/app:v1", "quay.io/ns/app", f"alpine@{DIGEST}", "oci:dir:tag", "localhost/app"]
)
@pytest.mark.parametrize("conf", ["", "unqualified-search-registries = []", "short-name-mode = 'enforcing'"])
def test_without_a_word_about_them_names_mean_what_they_always_do(
    tmp_path: Path, conf: str, text: str
) -> None:
    assert meant(tmp_path, conf, text) == [str(parse_reference(text))]
    assert candidates(text, []) == (parse_reference(text),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("app", "a.example/team/app:latest"),
        ("app:v1", "a.example/team/app:v1"),
        (f"app:v1@{DIGEST}", f"a.example/team/app:v1@{DIGEST}"),
        (f"app@{DIGEST}", f"a.example/team/app@{DIGEST}"),
        ("team/it", "docker.io/library/it:latest"),
        ("gone", "docker.io/library/gone:latest"),
        ("other/app", "docker.io/other/app:latest"),
        ("docker.io/app", "docker.io/app:latest"),
        ("docker://app", "docker.io/library/app:latest"),
    ],
)
def test_an_alias_decides_with_the_tag_and_digest_that_were_written(
    tmp_path: Path, text: str, expected: str
) -> None:
    aliases = '[aliases]\napp = "a.example/team/app"\n"team/it" = "docker.io/it"\ngone = ""\n'
    assert meant(tmp_path, aliases, text) == [str(parse_reference(expected))]


@pytest.mark.parametrize(
    "value", ["app", "team/app", "a.example/app:v1", f"a.example/app@{DIGEST}", "oci:dir", "A b"]
)
def test_an_alias_that_is_no_whole_name_is_refused_with_file_and_key(tmp_path: Path, value: str) -> None:
    with pytest.raises(UsageError, match=r"registries\.conf: aliases\.app: "):
        meant(tmp_path, f'[aliases]\napp = "{value}"', "app")


def test_one_registry_to_search_is_clear(tmp_path: Path) -> None:
    conf = 'unqualified-search-registries = ["a.example:5000", "a.example:5000"]'
    assert meant(tmp_path, conf, "app:v1") == ["a.example:5000/app:v1"]
    assert meant(tmp_path, conf, "quay.io/app") == ["quay.io/app:latest"]


@pytest.mark.parametrize("mode", ["permissive", "disabled"])
def test_several_are_candidates_in_order_if_the_mode_allows_it(tmp_path: Path, mode: str) -> None:
    found = meant(tmp_path, f'{TWO}short-name-mode = "{mode}"', "app")
    assert found == ["a.example:5000/app:latest", "docker.io/library/app:latest"]


@pytest.mark.parametrize("mode", ["", 'short-name-mode = "enforcing"'])
def test_several_are_an_error_that_names_them_otherwise(tmp_path: Path, mode: str) -> None:
    with pytest.raises(UsageError) as caught:
        meant(tmp_path, TWO + mode, "app:v1")
    assert "a.example:5000/app:v1, docker.io/library/app:v1" in str(caught.value)


def test_the_first_candidate_that_is_there_is_the_one() -> None:
    found = [parse_reference(f"{host}.example/app") for host in "abcd"]
    asked: list[str] = []

    def ask(reference: Reference) -> None:
        asked.append(str(reference)[0])
        if asked == ["a"]:
            raise NotFound("none")
        if asked == ["a", "b"]:
            raise Unauthorized("nobody")

    assert first_found(found, ask) == found[2]
    assert asked == ["a", "b", "c"]


def test_one_candidate_alone_is_not_asked_for() -> None:
    reference = parse_reference("a.example/app")
    assert first_found([reference], lambda one: pytest.fail(f"asked for {one}")) == reference


@pytest.mark.parametrize("error", [NotFound, Unavailable])
def test_a_registry_that_is_away_is_not_passed_over(error: type[NotFound | Unavailable]) -> None:
    found = [parse_reference(f"{host}.example/app") for host in "ab"]

    def ask(_: Reference) -> None:
        raise error("no")

    with pytest.raises(error, match="^no$" if error is Unavailable else "a.example/app.*, b.example/app"):
        first_found(found, ask)
