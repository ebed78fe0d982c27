"""Names of files and layouts are not asked of a registry, and never pushed to one."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgfs.config import RegistriesConf
from imgfs.errors import UsageError
from imgfs.oci.reference import parse_reference
from imgfs.registry.config.shortnames import candidates, parse_destination
from tests.support.mounted import Imgfs, gzipped, write_image
from tests.support.tarmake import archive, file


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a file, a layout and an ordinary directory, and to be in it."""
    (tmp_path / "saved").write_bytes(b"tar")
    (tmp_path / "some.dir").mkdir()
    (tmp_path / "some.dir/saved").write_bytes(b"tar")
    (tmp_path / "src").mkdir()
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.json").write_text("{}")
    write_image(tmp_path / "layout", [gzipped(archive(file("a", b"1")))], tag="v1")
    write_image(tmp_path / "bare", [gzipped(archive(file("a", b"1")))], tag="v1")
    (tmp_path / "bare/oci-layout").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("saved", "'saved' is a file; .*write docker://docker.io/library/saved:latest"),
        ("saved:v1", "is a file"),
        ("some.dir/saved", "is a file"),
        ("layout:v1", "OCI layout.*: write oci:layout:v1; "),
        ("layout", "OCI layout.*: write oci:layout:TAG; "),
        ("bare:v1", "write oci:bare:v1"),
        ("app.tar", "archive"),
        ("ostree:x", "other tools"),
    ],
)
def test_names_of_what_is_here_are_an_error_that_says_what_was_meant(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        candidates(text, [])
    with pytest.raises(UsageError, match=says):
        parse_destination(text)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "text",
    ["src", "src:v1", "site", "docker://saved", "oci:layout:v1", "tar:saved", "saved2", "quay.io/saved"],
)
def test_other_names_are_what_they_always_are(text: str) -> None:
    assert candidates(text, []) == (parse_reference(text),)


def test_a_name_that_no_file_can_have_is_an_ordinary_error() -> None:
    with pytest.raises(UsageError, match="not a repository"):
        parse_destination("a\0b")


def test_an_alias_is_not_docker_hub(here: Path) -> None:
    conf = here / "registries.conf"
    conf.write_text('[aliases]\nsaved = "a.example/saved"\n')
    assert str(candidates("saved", [RegistriesConf(conf)])[0]) == "a.example/saved:latest"


def test_commands_neither_ask_for_files_nor_push_to_them(imgfs: Imgfs, here: Path) -> None:
    layout = f"oci:{here / 'layout'}:v1"
    for target in ("app.tar", "ostree:x", "layout:v1", "saved"):
        assert "oci:" in imgfs.run("copy", layout, target, cwd=here).complaint(2)
        assert "oci:" in imgfs.run("ls", target, cwd=here).complaint(2)
