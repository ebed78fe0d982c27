"""registries.conf: which table is of an image, and where it is then (containers-registries.conf(5))."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from imgfs.config import RegistriesConf
from imgfs.errors import UsageError
from imgfs.registry.config.registries_conf import (
    Location,
    Registries,
    Registry,
    load_registries,
    parse_registries,
)
from imgfs.registry.config.reload import Reader
from tests.support.tomlmade import bodies_of

PATH = Path("/etc/containers/registries.conf")
KEYS = (
    "registry prefix location insecure blocked mirror pull-from-mirror mirror-by-digest-only aliases "
    "unqualified-search-registries short-name-mode registries search block all digest-only permissive"
)


def parse(text: str) -> Registries:
    return parse_registries(PATH, text.encode())


def registry(text: str) -> Registry:
    (found,) = parse(f"[[registry]]\n{text}").registries.values()
    return found


@pytest.mark.parametrize(
    ("prefix", "name", "matches"),
    [
        ("a.example", "a.example/app", True),
        ("a.example", "a.example:5000/app", False),
        ("a.example", "a.example.org/app", False),
        ("a.example:5000", "a.example:5000/app:v1", True),
        ("a.example/ns", "a.example/ns/app", True),
        ("a.example/ns", "a.example/nsx/app", False),
        ("a.example/ns/app", "a.example/ns/app", True),
        ("a.example/ns/app", "a.example/ns/app:v1", True),
        ("a.example/ns/app", "a.example/ns/app@sha256:00", True),
        ("a.example/ns/app:v1", "a.example/ns/app:v1", True),
        ("a.example/ns/app:v1", "a.example/ns/app:v12", False),
        ("a.example/ns/app:v1", "a.example/ns/app", False),
        ("*.example", "a.example/app", True),
        ("*.example", "a.b.example:5000/app", True),
        ("*.example", "example/app", False),
        ("*.example", "a.example.org/app", False),
        ("*.example", "b.org/a.example", False),
    ],
)
def test_a_prefix_ends_where_a_part_of_the_name_does(prefix: str, name: str, matches: bool) -> None:
    found = parse(f'[[registry]]\nprefix = "{prefix}"').find(name)
    assert (found is not None) == matches


def test_the_longest_prefix_counts() -> None:
    prefixes = ("a.example/ns", "*.example", "a.example/ns/app", "a.example")
    found = parse("".join(f'[[registry]]\nprefix = "{prefix}"\n' for prefix in prefixes))
    for name, expected in [
        ("a.example/ns/app:v1", "a.example/ns/app"),
        ("a.example/ns/other", "a.example/ns"),
        ("a.example/other", "a.example"),
        ("b.example/ns/app", "*.example"),
    ]:
        match = found.find(name)
        assert match
        assert match.prefix == expected


@pytest.mark.parametrize(
    ("prefix", "location", "name", "expected"),
    [
        ("a.example/foo", "b.example/bar", "a.example/foo/app", ("b.example", "bar/app")),
        ("a.example/foo", "b.example/bar", "a.example/foo", ("b.example", "bar")),
        ("a.example", "b.example:5000/a", "a.example/foo/app", ("b.example:5000", "a/foo/app")),
        ("a.example", "nexus", "a.example/app", ("nexus", "app")),
        ("docker.io", "hub.example", "docker.io/library/alpine", ("hub.example", "library/alpine")),
        ("*.example", "b.org/all", "x.example/app", ("b.org", "all/app")),
        ("*.example", "", "x.example/app", ("x.example", "app")),
        ("a.example/foo", "", "a.example/foo/app", ("a.example", "foo/app")),
        ("a.example/app:v1", "b.example/v1", "a.example/app", ("b.example", "v1")),
    ],
)
def test_a_location_replaces_the_prefix_host_and_repository_alike(
    prefix: str, location: str, name: str, expected: tuple[str, str]
) -> None:
    found = registry(f'prefix = "{prefix}"\nlocation = "{location}"')
    host, _, repository = name.partition("/")
    assert found.at(found.location, host, repository) == expected


def test_without_a_prefix_it_is_the_location() -> None:
    found = registry('location = "a.example/ns/"\ninsecure = true')
    assert (found.prefix, found.location) == ("a.example/ns", Location("", insecure=True))


def test_a_location_that_leaves_no_repository_is_an_error() -> None:
    found = registry('prefix = "a.example/app"\nlocation = "b.example"')
    with pytest.raises(UsageError, match=r"registry\[0\]: location 'b.example' leaves no repository"):
        found.at(found.location, "a.example", "app")


def test_mirrors_come_in_order_and_say_for_which_references_they_are() -> None:
    found = registry(
        """
        location = "a.example"
        [[registry.mirror]]
        location = "m1.example/a"
        [[registry.mirror]]
        location = "m2.example"
        insecure = true
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "m3.example"
        pull-from-mirror = "tag-only"
        """
    )
    assert found.mirrors == (
        Location("m1.example/a"),
        Location("m2.example", insecure=True, by_tag=False),
        Location("m3.example", by_digest=False),
    )


def test_mirrors_may_be_for_digests_only_all_at_once() -> None:
    found = registry(
        'location = "a.example"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = "m.example"'
    )
    assert found.mirrors == (Location("m.example", by_tag=False),)


def test_the_old_format_is_read() -> None:
    found = parse(
        "[registries.search]\nregistries = ['a.example', 'docker.io']\n"
        "[registries.insecure]\nregistries = ['b.example']\n[registries.block]\nregistries = ['c.example']"
    )
    assert found.search == ("a.example", "docker.io")
    insecure, blocked = (found.registries[host] for host in ("b.example", "c.example"))
    assert (insecure.location.insecure, insecure.blocked) == (True, False)
    assert (blocked.location.insecure, blocked.blocked) == (False, True)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("registry = 1", "registry"),
        ("registry = [1]", "registry[0]"),
        ("[[registry]]", "registry[0].prefix"),
        ('[[registry]]\nlocation = "https://a.example"', "registry[0].location"),
        ('[[registry]]\nprefix = "a.example"\nlocation = "b.example/app:v1"', "registry[0].location"),
        ('[[registry]]\nprefix = "*.example/ns"', "registry[0].prefix"),
        ('[[registry]]\nprefix = "a.*.example"', "registry[0].prefix"),
        ('[[registry]]\nprefix = ["a"]', "registry[0].prefix"),
        ('[[registry]]\nlocation = "a.example"\nblocked = "yes"', "registry[0].blocked"),
        ('[[registry]]\nlocation = "a.example"\ninsecure = 1', "registry[0].insecure"),
        ('[[registry]]\nlocation = "a.example"\n[[registry.mirror]]', "registry[0].mirror[0].location"),
        ("unqualified-search-registries = 1", "unqualified-search-registries"),
        ('unqualified-search-registries = ["a.example/ns"]', "unqualified-search-registries"),
        ("aliases = 1", "aliases"),
        ("[aliases]\napp = 1", "aliases.app"),
        ("registries = 1", "registries"),
        ("[registries]\nsearch = 1", "registries.search"),
        (
            '[[registry]]\nlocation = "a.example"\nblocked = true\n[[registry]]\nlocation = "a.example"',
            "registry",
        ),
        (
            '[[registry]]\nlocation = "a.example"\nmirror-by-digest-only = true\n'
            '[[registry.mirror]]\nlocation = "b.example"\npull-from-mirror = "all"',
            "registry[0].mirror[0].pull-from-mirror",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_file_and_key(text: str, key: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"{PATH}: {key}: ")


def test_unknown_words_are_warned_of_and_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    text = (
        'short-name-mode = "lax"\n[[registry]]\nlocation = "a.example"\n'
        '[[registry.mirror]]\nlocation = "b.example"\npull-from-mirror = "weekends"\n'
        '[[registry.mirror]]\nlocation = "c.example"\n'
    )
    found = parse(text)
    assert found.mode == ""
    match = found.find("a.example/app")
    assert match
    assert [mirror.place for mirror in match.mirrors] == ["c.example"]
    assert f"{PATH}: short-name-mode: 'lax': not known here, passed over" in caplog.text
    assert "registry[0].mirror[0].pull-from-mirror: 'weekends': not known here, the mirror is" in caplog.text


@given(bodies_of(KEYS.split()))
def test_hostile_files_are_refused_and_nothing_else(body: bytes) -> None:
    try:
        found = parse_registries(PATH, body)
        match = found.find("a.example/b")
        for location in (match.location, *match.mirrors) if match else ():
            match and match.at(location, "a.example", "b")
    except UsageError as error:
        said = str(error)
    else:
        said = f"{PATH}: understood"
    assert said.startswith(f"{PATH}: ")
    assert len(said.splitlines()) == 1


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_later_files_replace_what_earlier_ones_say_field_by_field(tmp_path: Path) -> None:
    main = written(
        tmp_path / "registries.conf",
        'unqualified-search-registries = ["a.example"]\nshort-name-mode = "enforcing"\n'
        '[[registry]]\nlocation = "a.example"\n[[registry]]\nlocation = "b.example"\n'
        '[aliases]\napp = "a.example/app"\nother = "a.example/other"',
    )
    written(
        tmp_path / "d/10.conf",
        'unqualified-search-registries = ["b.example"]\n[aliases]\napp = "x.example/app"\nother = ""',
    )
    written(tmp_path / "d/20.conf", '[[registry]]\nlocation = "a.example"\nblocked = true')
    written(tmp_path / "d/30.txt", "not read")
    (tmp_path / "d/40.conf").mkdir()
    found = load_registries(Reader(), [RegistriesConf(main, (tmp_path / "d",))])
    assert found.search == ("b.example",)
    assert found.mode == "enforcing"
    assert {name: one.blocked for name, one in found.registries.items()} == {
        "a.example": True,
        "b.example": False,
    }
    assert {name: alias.name for name, alias in found.aliases.items()} == {
        "app": "x.example/app",
        "other": "",
    }


def test_an_empty_list_takes_the_searched_registries_back(tmp_path: Path) -> None:
    main = written(tmp_path / "registries.conf", 'unqualified-search-registries = ["a.example"]')
    written(tmp_path / "d/10.conf", "unqualified-search-registries = []")
    assert load_registries(Reader(), [RegistriesConf(main, (tmp_path / "d",))]).search == ()


def test_the_first_file_that_exists_counts_with_what_is_added_to_it(tmp_path: Path) -> None:
    system = written(tmp_path / "system.conf", 'unqualified-search-registries = ["a.example"]')
    written(tmp_path / "d/10.conf", '[[registry]]\nlocation = "b.example"')
    files = [RegistriesConf(tmp_path / "user.conf"), RegistriesConf(system, (tmp_path / "d",))]
    found = load_registries(Reader(), files)
    assert (found.search, set(found.registries)) == (("a.example",), {"b.example"})
    written(tmp_path / "user.conf", "")
    assert load_registries(Reader(), files) == Registries()


def test_without_any_main_file_what_is_added_to_the_last_still_counts(tmp_path: Path) -> None:
    written(tmp_path / "d/10.conf", '[[registry]]\nlocation = "b.example"')
    files = [RegistriesConf(tmp_path / "user"), RegistriesConf(tmp_path / "system", (tmp_path / "d",))]
    assert set(load_registries(Reader(), files).registries) == {"b.example"}
    assert load_registries(Reader(), []) == Registries()


def test_a_file_named_by_the_user_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="CONTAINERS_REGISTRIES_CONF"):
        load_registries(Reader(), [RegistriesConf(tmp_path / "missing", named=True)])
    found = load_registries(Reader(), [RegistriesConf(Path("/dev/null"), named=True)])
    assert found == Registries()
