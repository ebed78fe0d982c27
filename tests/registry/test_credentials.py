"""Where credentials are kept: files of docker and podman, and programs; each of which may be broken."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from imgfs.errors import ImgfsError, Unauthorized, UsageError
from imgfs.registry.config.credentials import (
    Credentials,
    find_credentials,
    forget_credentials,
    keep_credentials,
)
from tests.support.mounted import is_alive, until
from tests.support.patience import allowed

CANARY = 'canary-"5e1f\\'  # as JSON writes it, it looks otherwise
ANN = Credentials("ann", CANARY)


def written(path: Path, **fields: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a script as docker-credential-NAME."""

    def install(script: str, name: str = "test") -> None:
        path = tmp_path / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return install


KEEPER = """\
echo "$1" >> verbs
case $1 in
store) cat > kept ;;
get) cat > asked; test -e kept && cat kept || { echo "credentials not found in native keychain"; exit 1; } ;;
erase) cat > erased; rm kept ;;
esac"""


# helpers that misbehave


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 3", "failed for h.io"),
        ("echo no such keyring; exit 1", "no such keyring"),
        ("echo gpg: no agent >&2; exit 1", "gpg: no agent"),
        ("echo rubbish", "is not JSON"),
        ("echo []", "is not a JSON object"),
        ("echo {}", "has no Username and Secret"),
        ('echo \'{"Username": "ann"}\'', "has no Username and Secret"),
        ('echo \'{"Username": "ann", "Secret": ""}\'', "has no Username and Secret"),
        ('echo \'{"Username": 1, "Secret": 2}\'', "has no Username and Secret"),
        ("printf '\\377\\376'", "is not JSON"),
        ("exec cat /dev/zero", "says more than"),
        ("exec cat /dev/zero >&2", "says more than"),
    ],
)
def test_a_helper_that_misbehaves_is_named(helper: Any, tmp_path: Path, script: str, why: str) -> None:
    helper(script)
    path = written(tmp_path / "auth.json", credsStore="test")
    with pytest.raises(Unauthorized, match=rf"^docker-credential-test.*{why}") as raised:
        find_credentials([path], "h.io", "x")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "script",
    [
        "sleep 300 & echo $! > pid; wait",
        "sleep 300 & echo $! > pid; exit 0",  # its child has its outputs open still
        "exec >&- 2>&-; echo $$ > pid; sleep 300",
    ],
)
def test_a_helper_that_hangs_is_ended_with_its_children_and_named(
    helper: Any, tmp_path: Path, script: str
) -> None:
    helper(script)
    path = written(tmp_path / "auth.json", credHelpers={"h.io": "test"})
    began = time.monotonic()
    with pytest.raises(Unauthorized, match=r"^docker-credential-test get: no answer within 1 s$"):
        find_credentials([path], "h.io", "x", seconds=1.0)
    assert time.monotonic() - began < allowed(10)
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not is_alive(pid), "its child has ended")


def test_a_helper_that_does_not_listen_is_believed_all_the_same(helper: Any, tmp_path: Path) -> None:
    helper('exec <&-; echo \'{"Username": "ann", "Secret": "s"}\'')
    path = written(tmp_path / "auth.json", credsStore="test")
    assert find_credentials([path], "h.io", "x") == Credentials("ann", "s")


def test_a_helper_with_nothing_but_empty_words_has_nothing(helper: Any, tmp_path: Path) -> None:
    helper('echo \'{"ServerURL": "h.io", "Username": "", "Secret": ""}\'')
    assert find_credentials([written(tmp_path / "a", credsStore="test")], "h.io", "x") is None


def test_what_a_failing_helper_says_of_a_secret_is_not_repeated(helper: Any, tmp_path: Path) -> None:
    helper('echo \'{"Username": "ann", "Secret": "canary"}\'; exit 1')
    path = written(tmp_path / "auth.json", credsStore="test")
    with pytest.raises(Unauthorized, match="docker-credential-test failed") as raised:
        find_credentials([path], "h.io", "x")
    assert "canary" not in str(raised.value)
    helper("cat; exit 1", "echo")
    path = written(tmp_path / "auth.json", credsStore="echo")
    with pytest.raises(Unauthorized, match="docker-credential-echo failed to store") as raised:
        keep_credentials(path, "h.io", "", ANN)
    assert "canary" not in str(raised.value)


# helpers that keep


@pytest.mark.parametrize(
    ("registry", "server"), [("h.io", "h.io"), ("docker.io", "https://index.docker.io/v1/")]
)
def test_a_file_that_names_a_helper_has_it_keep_the_secret(
    helper: Any, tmp_path: Path, registry: str, server: str
) -> None:
    helper(KEEPER)
    path = written(tmp_path / "config.json", credsStore="test", psFormat="table")
    assert keep_credentials(path, registry, "", ANN) == "docker-credential-test"
    kept = json.loads((tmp_path / "kept").read_text())
    assert kept == {"ServerURL": server, "Username": "ann", "Secret": CANARY}
    assert json.loads(path.read_text()) == {"credsStore": "test", "psFormat": "table", "auths": {server: {}}}
    assert find_credentials([path], registry, "x") == ANN
    assert forget_credentials(path, registry)
    assert (tmp_path / "erased").read_text() == server
    assert json.loads(path.read_text())["auths"] == {}
    assert find_credentials([path], registry, "x") is None
    assert not forget_credentials(path, registry)


def test_the_helper_of_one_registry_keeps_its_own_only(helper: Any, tmp_path: Path) -> None:
    helper(KEEPER)
    path = written(tmp_path / "auth.json", credHelpers={"h.io": "test"})
    assert keep_credentials(path, "h.io", "", ANN) == "docker-credential-test"
    assert keep_credentials(path, "other.io", "", ANN) == str(path)
    assert (tmp_path / "verbs").read_text().split() == ["store"]
    assert set(json.loads(path.read_text())["auths"]) == {"h.io", "other.io"}


def test_a_helper_keeps_no_namespaces(helper: Any, tmp_path: Path) -> None:
    helper(KEEPER)
    path = written(tmp_path / "auth.json", credsStore="test")
    with pytest.raises(UsageError, match="docker-credential-test keeps credentials of registries"):
        keep_credentials(path, "h.io", "team", ANN)
    assert not (tmp_path / "verbs").exists()


# files


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "home/.config/containers/auth.json"
    old = os.umask(0)
    try:
        assert keep_credentials(path, "h.io", "", ANN) == str(path)
    finally:
        os.umask(old)
    assert mode_of(path) == 0o600
    assert mode_of(path.parent) == 0o700
    assert os.listdir(path.parent) == ["auth.json"]
    assert find_credentials([path], "h.io", "x") == ANN


def test_a_file_that_everybody_could_read_is_closed(tmp_path: Path) -> None:
    path = written(tmp_path / "auth.json", auths={})
    path.chmod(0o644)
    keep_credentials(path, "h.io", "", ANN)
    assert mode_of(path) == 0o600


def test_what_others_wrote_into_the_file_stays(tmp_path: Path) -> None:
    others = {"HttpHeaders": {"X": "y"}, "auths": {"a.io": {"auth": "YTpi", "email": "?"}}, "plugins": [1]}
    path = written(tmp_path / "auth.json", **others)
    keep_credentials(path, "h.io", "", ANN)
    keep_credentials(path, "h.io", "team", Credentials("team", "t"))
    assert forget_credentials(path, "h.io")
    assert forget_credentials(path, "h.io", "team")
    assert json.loads(path.read_text()) == others


def test_a_namespace_has_a_key_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    keep_credentials(path, "h.io", "", ANN)
    keep_credentials(path, "h.io", "team", Credentials("team", "t"))
    assert find_credentials([path], "h.io", "team/app") == Credentials("team", "t")
    assert find_credentials([path], "h.io", "other/app") == ANN
    assert forget_credentials(path, "h.io")
    assert find_credentials([path], "h.io", "team/app") == Credentials("team", "t")
    assert find_credentials([path], "h.io", "other/app") is None


@pytest.mark.parametrize(
    ("name", "key"), [("auth.json", "docker.io"), ("config.json", "https://index.docker.io/v1/")]
)
def test_docker_hub_is_kept_under_the_name_that_the_files_owner_looks_for(
    tmp_path: Path, name: str, key: str
) -> None:
    stale = {
        auth: {"auth": "YTpi"} for auth in ("docker.io", "https://index.docker.io/v1/", "index.docker.io")
    }
    path = written(tmp_path / name, auths=stale)
    keep_credentials(path, "docker.io", "", ANN)
    assert list(json.loads(path.read_text())["auths"]) == [key]
    assert find_credentials([path], "docker.io", "library/debian") == ANN


def test_old_spellings_of_a_registry_are_forgotten_too(tmp_path: Path) -> None:
    auths = {"https://h.io/v1/": {"auth": "YTpi"}, "http://h.io": {"auth": "YTpi"}, "hh.io": {"auth": "YTpi"}}
    path = written(tmp_path / "config.json", auths=auths)
    assert forget_credentials(path, "h.io")
    assert list(json.loads(path.read_text())["auths"]) == ["hh.io"]


def test_an_identity_token_is_kept_as_one(tmp_path: Path) -> None:
    token = Credentials("<token>", "idt", identity_token=True)
    keep_credentials(tmp_path / "auth.json", "h.io", "", token)
    [entry] = json.loads((tmp_path / "auth.json").read_text())["auths"].values()
    assert (base64.b64decode(entry["auth"]), entry["identitytoken"]) == (b"<token>:", "idt")
    assert find_credentials([tmp_path / "auth.json"], "h.io", "x") == token


def test_an_empty_file_is_written_as_if_it_were_none(tmp_path: Path) -> None:
    path = tmp_path / "made-by-mktemp"
    path.touch(0o600)
    assert not forget_credentials(path, "h.io")
    keep_credentials(path, "h.io", "", ANN)
    assert find_credentials([path], "h.io", "x") == ANN


def test_a_symbolic_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    link = tmp_path / "auth.json"
    link.symlink_to("vault/secrets.json")
    for _ in range(2):  # it leads nowhere at first
        keep_credentials(link, "h.io", "", ANN)
        assert os.readlink(link) == "vault/secrets.json"
        assert find_credentials([tmp_path / "vault/secrets.json"], "h.io", "x") == ANN


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes others' files")
def test_a_file_stays_its_owners_if_root_writes_it(tmp_path: Path) -> None:
    path = written(tmp_path / "auth.json")
    os.chown(path, 1234, 2345)
    keep_credentials(path, "h.io", "", ANN)
    assert (path.stat().st_uid, path.stat().st_gid, mode_of(path)) == (1234, 2345, 0o600)


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
OTHER = 65_533


@root_only
@pytest.mark.parametrize("change", [keep_credentials, forget_credentials])
def test_no_secret_goes_where_another_user_has_a_hand_in_it(
    tmp_path: Path, change: Callable[..., object]
) -> None:
    words = ("h.io", "", ANN) if change is keep_credentials else ("h.io",)
    shared, theirs, mine = (tmp_path / name for name in ("shared", "theirs", "mine"))
    for place in (shared, theirs, mine):
        place.mkdir()
    kept = written(mine / "auth.json", auths={"h.io": {"auth": "dTpw"}})
    before = kept.read_bytes()
    (shared / "link").symlink_to(kept)
    (shared / "own").write_bytes(before)
    for path in (shared / "link", shared / "own", theirs):
        os.chown(path, OTHER, OTHER, follow_symlinks=False)
    (theirs / "auth.json").write_bytes(before)
    shared.chmod(0o1777)
    for path in (shared / "link", shared / "own", theirs / "auth.json"):
        with pytest.raises(UsageError, match=rf"{path.parent}.*uid {OTHER}"):
            change(path, *words)
        assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"auths": 1}', '{"auths": {}, "credHelpers": 7}'])
def test_a_file_that_is_not_understood_is_named_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "auth.json"
    path.write_text(text)
    for change in (
        lambda: keep_credentials(path, "h.io", "", ANN),
        lambda: forget_credentials(path, "h.io"),
    ):
        with pytest.raises(UsageError, match=r"auth\.json"):
            change()
    assert path.read_text() == text


def test_what_is_no_file_is_an_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop", "."):
        with pytest.raises(UsageError):
            keep_credentials(tmp_path / name, "h.io", "", ANN)
        with pytest.raises(UsageError):
            find_credentials([tmp_path / name], "h.io", "x")


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "auth.json", auths={"a.io": {}})
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UsageError, match=r"auth\.json: cannot keep credentials: No space left"):
        keep_credentials(path, "h.io", "", ANN)
    assert os.listdir(tmp_path) == ["auth.json"]
    assert path.read_bytes() == before


def fail(fd: int) -> None:
    raise OSError(28, "No space left on device")


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    hosts = [f"h{number}.io" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda host: keep_credentials(path, host, "", ANN), hosts))
    assert sorted(json.loads(path.read_text())["auths"]) == sorted(hosts)


def test_a_file_that_is_being_written_in_place_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    whole = json.dumps({"auths": {"h.io": {"username": "ann", "password": "s"}}})
    path.write_text(whole[:20])
    writing = threading.Timer(0.06, lambda: path.write_text(whole))
    writing.start()
    assert find_credentials([path], "h.io", "x") == Credentials("ann", "s")
    writing.join()


@pytest.mark.parametrize(
    "text",
    [
        '{"auths": {"h.io": {"auth": "canary!"}}}',
        '{"auths": {"h.io": {"auth": "Y2FuYXJ5_w=="}}}',
        '{"auths": {"h.io": {"auth": "canary"}}',
        '["canary"]',
        '{"auths": "canary"}',
        '{"auths": {}, "credHelpers": "canary"}',
    ],
)
def test_no_error_of_a_broken_file_has_what_is_in_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "auth.json"
    path.write_text(text)
    with pytest.raises(ImgfsError, match=r"auth\.json") as raised:
        find_credentials([path], "h.io", "x")
    assert "canary" not in str(raised.value)
