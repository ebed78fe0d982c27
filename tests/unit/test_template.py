"""Go templates of --format, as docker's and podman's users type them."""

from __future__ import annotations

import pytest

from imgfs.cli.template import filled
from imgfs.errors import UsageError

FOUND = {
    "Id": "sha256:ab",
    "RepoDigests": ["h/a@sha256:cd", "h/b@sha256:cd"],
    "Config": {"Labels": {"a.b": "1", "c": "2"}, "Cmd": ["sh", "-c"], "Tty": False, "User": None},
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.Id}}", "sha256:ab"),
        ("{{ .Id }}: {{.Config.Cmd}}", "sha256:ab: [sh -c]"),
        ("{{.Config.Labels}}", "map[a.b:1 c:2]"),
        ("{{json .Config.Cmd}}", '["sh", "-c"]'),
        ("{{index .RepoDigests 1}}", "h/b@sha256:cd"),
        ('{{index .Config.Labels "a.b"}}', "1"),
        ("{{index .Config.Labels `a.b`}}{{index .Config.Labels `none`}}", "1"),
        ('{{index .Config "Labels" "c"}}', "2"),
        ("{{.Config.Tty}}{{.Config.User}}", "false"),
        (r"table {{.Id}}\t{{.Id}}", "sha256:ab\tsha256:ab"),
        ("no field", "no field"),
    ],
)
def test_a_template_is_filled_as_go_fills_it(template: str, text: str) -> None:
    assert filled(template, FOUND) == text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{.Nope}}", "there is no field 'Nope'; there are: Config, Id, RepoDigests"),
        ("{{.Id.x}}", "there is no field 'x'; there are: none"),
        ("{{index .RepoDigests 2}}", "nothing at the index 2"),
        ("{{index .Id 0}}", "nothing at the index 0"),
        ("{{range .RepoDigests}}", "is not {{.Field}}, {{json .Field}} or {{index .Field KEY}}"),
        ("{{.Id", "without an end"),
    ],
)
def test_a_template_that_cannot_be_filled_says_why(template: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        filled(template, FOUND)
    assert reason in str(caught.value)
