"""imgfs login and logout: what is checked, where it is kept, and who else finds it there."""

from __future__ import annotations

import base64
import json
import os
import pty
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.docker_registry import docker_registry, needs_docker_registry, push_image
from tests.support.fault_server import Fault, FaultServer, Reply, Seen
from tests.support.mounted import Imgfs, Ran, until, write_image
from tests.support.patience import allowed
from tests.support.token_server import TokenServer

HTPASSWD = "ann:$2y$05$abcdefghijklmnopqrstuumLA/noyXYiOEbS6hfQKg0ILR3AVF63.\n"
SECRET = "canary-5e1f"
PAIR = base64.b64encode(f"ann:{SECRET}".encode()).decode()
TRACES = (SECRET, PAIR, base64.b64encode(SECRET.encode()).decode().rstrip("="))


class Registry(FaultServer):
    """One that has a root, too."""

    def found(self, seen: Seen, fault: Fault) -> Reply:
        return Reply(200) if seen.path == "/v2/" else super().found(seen, fault)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with Registry() as running:
        yield running


@pytest.fixture
def private(server: FaultServer) -> FaultServer:
    """A registry that wants ann's password."""
    server.basic = ("ann", SECRET)
    return server


@pytest.fixture
def auth_file(imgfs: Imgfs, tmp_path: Path) -> Path:
    path = tmp_path / "auth/auth.json"
    imgfs.environment["REGISTRY_AUTH_FILE"] = str(path)
    return path


def login(imgfs: Imgfs, *arguments: str, password: str | bytes = SECRET, **more: Any) -> Ran:
    """`imgfs login -u ann --password-stdin ARGUMENTS…`; whatever comes of it, it shows no secret."""
    given = password.encode() if isinstance(password, str) else password
    process = imgfs.start("login", "-u", "ann", "--password-stdin", *arguments, stdin=subprocess.PIPE, **more)
    out, err = process.communicate(given, timeout=allowed(60))
    ran = Ran(process.returncode, out, err.decode())
    assert [trace for trace in TRACES if trace in ran.text + ran.err] == []
    return ran


def auths(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["auths"]
    return found


# what is checked


@pytest.mark.parts
@needs_docker_registry
def test_a_password_that_a_registry_takes_is_kept_and_found(
    imgfs: Imgfs, tmp_path: Path, auth_file: Path
) -> None:
    with docker_registry(tmp_path / "private", htpasswd=HTPASSWD) as host:
        push_image(host, "team/app", "v1", [], auth=("ann", SECRET))
        said = imgfs.run("inspect", f"{host}/team/app:v1").complaint()
        assert f"no credentials for {host}" in said
        assert login(imgfs, host).text == f"logged in to {host} as ann, kept by {auth_file}\n"
        assert auths(auth_file) == {host: {"auth": PAIR}}
        assert stat.S_IMODE(auth_file.stat().st_mode) == 0o600
        assert imgfs.ok("inspect", f"{host}/team/app:v1")
        assert imgfs.ok("logout", host) == f"logged out of {host}: removed from {auth_file}\n"
        assert imgfs.run("inspect", f"{host}/team/app:v1").code == 1


@pytest.mark.parametrize(
    "words",
    [("catalog", "{}"), ("tags", "{}/app"), ("inspect", "{}/app:v1"), ("copy", "{layout}", "{}/app:v1")],
)
def test_every_command_waits_for_a_helper_as_long_as_for_the_registry(
    words: tuple[str, ...], imgfs: Imgfs, private: FaultServer, auth_file: Path, tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker-credential-slow").write_text("#!/bin/sh\nsleep 300\n")
    (programs / "docker-credential-slow").chmod(0o755)
    imgfs.environment["PATH"] = f"{programs}:{imgfs.environment['PATH']}"
    auth_file.parent.mkdir()
    auth_file.write_text(json.dumps({"credHelpers": {private.host: "slow"}}))
    image = write_image(tmp_path / "layout", [])
    command, *rest = (word.format(private.host, layout=image) for word in words)
    said = imgfs.run(command, "--read-timeout", "1", *rest).complaint()
    assert said.startswith("docker-credential-slow get: no answer within 1 s")


@pytest.mark.parts
@needs_docker_registry
def test_a_password_that_a_token_server_takes_is_kept(imgfs: Imgfs, tmp_path: Path, auth_file: Path) -> None:
    with (
        TokenServer(tmp_path, {"ann": SECRET}) as tokens,
        docker_registry(tmp_path / "registry", token=tokens.configuration) as host,
    ):
        said = login(imgfs, host, password="wrong").complaint()
        assert said == "the token server 127.0.0.1 refused user ann"
        assert not auth_file.exists()
        assert login(imgfs, host).code == 0
        assert (tokens.asked, tokens.granted) == ([None, "ann"], 1)
        assert auths(auth_file) == {host: {"auth": PAIR}}


@pytest.mark.parts
@needs_docker_registry
@pytest.mark.parametrize("posting", [True, False])
def test_an_identity_token_is_kept_as_one_and_traded(
    imgfs: Imgfs, tmp_path: Path, auth_file: Path, posting: bool
) -> None:
    with docker_registry(tmp_path / "registry") as host:
        push_image(host, "app", "v1", [])
    with (
        TokenServer(tmp_path, {"<token>": SECRET}) as tokens,
        docker_registry(tmp_path / "registry", token=tokens.configuration) as host,
    ):
        tokens.refresh, tokens.posting = {SECRET}, posting
        assert login(imgfs, "-u", "<token>", host).code == 0
        assert auths(auth_file)[host]["identitytoken"] == SECRET
        assert imgfs.ok("inspect", f"{host}/app:v1")
        assert set(tokens.asked) == {"" if posting else "<token>"}


def test_a_refused_password_is_not_kept(imgfs: Imgfs, private: FaultServer, auth_file: Path) -> None:
    said = login(imgfs, private.host, password="wrong").complaint()
    assert "401 UNAUTHORIZED" in said
    assert said.endswith("; user ann was refused")
    assert not auth_file.exists()


def test_a_registry_that_wants_no_password_is_said_to(
    imgfs: Imgfs, server: FaultServer, auth_file: Path
) -> None:
    ran = login(imgfs, server.host)
    note = f"imgfs: {server.host} needs no credentials for reading: the password has not been checked\n"
    assert (ran.code, ran.err) == (0, note)
    assert auths(auth_file) == {server.host: {"auth": PAIR}}


def test_where_there_is_no_registry_nothing_is_kept(
    imgfs: Imgfs, server: FaultServer, auth_file: Path
) -> None:
    server.inject(Fault(status=404, body=b"not here"), on="/v2/")
    assert f"{server.host} is not a registry" in login(imgfs, server.host).complaint()
    with FaultServer() as other:
        gone = other.host
    assert "refused" in login(imgfs, "--read-timeout", "1", gone).complaint()
    assert not auth_file.exists()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=401, body=json.dumps({"errors": [{"code": "NO", "message": "no"}]}).encode()),
        Fault(status=403, body=b"no"),
        Fault(status=500, body=b"oops"),
        Fault(status=429, headers={"Retry-After": "9999"}, body=b""),
        Fault(status=302, headers={"Location": "/v2/"}, body=b""),
        Fault(status=302, headers={"Location": "ftp://nowhere/"}, body=b""),
        Fault(status=401, headers={"WWW-Authenticate": 'Bearer realm="http://169.254.169.254/"'}, body=b""),
        Fault(status=401, headers={"WWW-Authenticate": 'Bearer realm="nonsense"'}, body=b""),
        Fault(status=401, headers={"WWW-Authenticate": "Negotiate"}, body=b""),
        Fault(drop=True),
        Fault(pause=30.0),
    ],
    ids=lambda fault: f"{fault.status} {dict(fault.headers)}",
)
def test_no_refusal_shows_the_password_or_keeps_it(
    imgfs: Imgfs, private: FaultServer, auth_file: Path, fault: Fault
) -> None:
    private.inject(fault, on="/v2/", times=40)
    login(imgfs, "--read-timeout", "1", private.host).complaint()
    assert not auth_file.exists()


def test_an_authorization_is_never_sent_along_a_redirect(
    imgfs: Imgfs, private: FaultServer, auth_file: Path
) -> None:
    with FaultServer() as elsewhere:
        elsewhere.basic = ("ann", SECRET)
        private.inject(Fault(status=307, headers={"Location": f"{elsewhere.url}/v2/"}, body=b""), on="/v2/")
        assert "401" in login(imgfs, private.host).complaint()
        assert all("authorization" not in seen.headers for seen in elsewhere.log)
    assert not auth_file.exists()


# the password


def test_a_password_is_no_argument(imgfs: Imgfs, auth_file: Path) -> None:
    for option in ("-p", "--password"):
        ran = imgfs.run("login", "-u", "ann", option, SECRET, "h.io")
        assert ran.code == 2
        assert not auth_file.exists()


def test_the_password_is_not_to_be_seen_in_the_list_of_processes(
    imgfs: Imgfs, private: FaultServer, auth_file: Path
) -> None:
    private.inject(Fault(pause=30.0), on="/v2/")
    words = ("login", "-u", "ann", "--password-stdin", private.host)
    process = imgfs.start(*words, stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(SECRET.encode())
    process.stdin.close()
    process.stdin = None
    until(lambda: private.seen("/v2/"), "the registry is being asked")
    for part in ("cmdline", "environ"):
        assert SECRET.encode() not in Path(f"/proc/{process.pid}/{part}").read_bytes()
    process.kill()


@pytest.mark.parametrize(
    ("given", "taken"),
    [(SECRET, SECRET), (f"{SECRET}\n", SECRET), (f"{SECRET}\r\n", SECRET), ("a\n\n", "a\n")],
)
def test_the_end_of_the_line_is_not_part_of_the_password(
    imgfs: Imgfs, server: FaultServer, auth_file: Path, given: str, taken: str
) -> None:
    server.basic = ("ann", taken)
    assert login(imgfs, server.host, password=given).code == 0


@pytest.mark.parametrize("password", ["", "\n", b"\xff\xfe", "x" * 9000])
def test_a_password_that_can_be_none_is_refused(
    imgfs: Imgfs, server: FaultServer, auth_file: Path, password: str | bytes
) -> None:
    assert "password" in login(imgfs, server.host, password=password).complaint(2)
    assert server.log == []


def test_without_a_terminal_it_says_how_to_give_a_password(imgfs: Imgfs) -> None:
    assert "--password-stdin" in imgfs.run("login", "h.io").complaint(2)
    assert "needs --username" in imgfs.run("login", "--password-stdin", "h.io").complaint(2)
    said = imgfs.run("login", "-u", "a:b", "--password-stdin", "h.io").complaint(2)
    assert said == "a user name has no colon (RFC 7617, 2)"


def test_on_a_terminal_it_asks_and_does_not_echo(imgfs: Imgfs, private: FaultServer, auth_file: Path) -> None:
    ours, theirs = pty.openpty()
    process = imgfs.start("login", private.host, stdin=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    drawn = b""
    for prompt, answer in (("User name", "ann"), ("Password", SECRET)):
        ends = time.monotonic() + allowed(30)
        while prompt.encode() not in drawn and time.monotonic() < ends:
            drawn += os.read(ours, 1024)
        os.write(ours, f"{answer}\n".encode())
    out, _ = process.communicate(timeout=allowed(60))
    os.close(ours)
    assert (process.returncode, SECRET.encode() in drawn + out) == (0, False), drawn
    assert auths(auth_file) == {private.host: {"auth": PAIR}}


# where it is kept


def others(program: str) -> Any:
    return pytest.param(program, marks=pytest.mark.skipif(not shutil.which(program), reason=f"no {program}"))


def test_it_is_kept_where_podman_keeps_it(imgfs: Imgfs, private: FaultServer, tmp_path: Path) -> None:
    home = imgfs.directory / "home"
    imgfs.environment["XDG_RUNTIME_DIR"] = str(tmp_path)
    assert login(imgfs, private.host).code == 0
    assert list(auths(tmp_path / "containers/auth.json")) == [private.host]
    assert login(imgfs, "--docker", private.host).code == 0
    assert list(auths(home / ".docker/config.json")) == [private.host]
    assert login(imgfs, "--authfile", str(tmp_path / "mine"), private.host).code == 0
    assert list(auths(tmp_path / "mine")) == [private.host]


OWN_RUN = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run && eval "$0"')


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a /run of its own")
@pytest.mark.parametrize("program", ["imgfs", others("skopeo"), others("podman")])
def test_without_a_session_roots_are_kept_where_podman_keeps_them(
    imgfs: Imgfs, private: FaultServer, program: str
) -> None:
    """As in a service, a job of cron or after `su`: who has logged in by one is known to the other."""
    words = imgfs.command("login") if program == "imgfs" else [program, "login", "--tls-verify=false"]
    words = [*words, "-u", "ann", "--password-stdin", private.host]
    asked = imgfs.command("logout", "--all", private.host)
    script = f"{shlex.join(words)} && cat /run/containers/0/auth.json && {shlex.join(asked)}"
    ran = imgfs.program(*OWN_RUN, script, input=SECRET.encode())
    assert ran.code == 0, ran
    assert f'"{private.host}"' in ran.text
    assert ran.text.endswith(f"logged out of {private.host}: removed from /run/containers/0/auth.json\n")


def test_logging_out_says_who_still_knows(imgfs: Imgfs, private: FaultServer, tmp_path: Path) -> None:
    imgfs.environment["XDG_RUNTIME_DIR"] = str(tmp_path)
    login(imgfs, private.host)
    login(imgfs, "--docker", private.host)
    home = imgfs.directory / "home"
    ran = imgfs.run("logout", private.host)
    assert ran.code == 0
    assert ran.err == f"imgfs: {home}/.docker/config.json still has credentials for it (--all)\n"
    said = imgfs.run("logout", private.host).complaint()
    assert said.startswith(f"not logged in to {private.host}: nothing in {tmp_path}/containers/auth.json")
    assert "still has" in said
    assert imgfs.ok("logout", "--all", private.host)
    assert "still has" not in imgfs.run("logout", private.host).complaint()


@pytest.mark.parametrize("name", ["", "debian", "oci:x", "h.io/Team", "ftp://h.io", "h.io:tag/x", "h.io/x:y"])
def test_what_is_no_registry_is_refused_before_anything_is_asked(imgfs: Imgfs, name: str) -> None:
    assert imgfs.run("login", "-u", "ann", "--password-stdin", name).code == 2
    assert imgfs.run("logout", name).code == 2


def test_a_namespace_is_kept_under_its_own_key(imgfs: Imgfs, private: FaultServer, auth_file: Path) -> None:
    assert login(imgfs, f"{private.host}/team/a").code == 0
    assert auths(auth_file) == {f"{private.host}/team/a": {"auth": PAIR}}
    assert imgfs.run("logout", private.host).code == 1
    assert imgfs.ok("logout", f"{private.host}/team/a")


def test_a_helper_keeps_it_if_the_file_names_one(
    imgfs: Imgfs, private: FaultServer, auth_file: Path, tmp_path: Path
) -> None:
    program = tmp_path / "bin/docker-credential-test"
    program.parent.mkdir()
    kept = tmp_path / "kept"
    program.write_text(
        f"#!/bin/sh\ncase $1 in store) cat > {kept};; get) cat {kept};; erase) rm {kept};; esac"
    )
    program.chmod(0o755)
    imgfs.environment["PATH"] = f"{program.parent}:{imgfs.environment['PATH']}"
    auth_file.parent.mkdir()
    auth_file.write_text('{"credsStore": "test"}')
    assert login(imgfs, private.host).text.endswith("kept by docker-credential-test\n")
    assert json.loads(kept.read_text())["Secret"] == SECRET
    assert SECRET not in auth_file.read_text()
    assert PAIR not in auth_file.read_text()
    assert imgfs.ok("logout", private.host)
    assert not kept.exists()
    program.write_text("#!/bin/sh\necho the keyring is locked; exit 1")
    said = login(imgfs, private.host).complaint()
    assert said.startswith(f"docker-credential-test failed to store credentials for {private.host}")
    assert "the keyring is locked" in said


# what others find


@pytest.mark.parts
@needs_docker_registry
@pytest.mark.skipif(not shutil.which("skopeo"), reason="no skopeo")
@pytest.mark.parametrize("options", [(), ("--docker",)], ids=["podman's file", "docker's file"])
def test_what_is_kept_is_found_by_skopeo(imgfs: Imgfs, tmp_path: Path, options: tuple[str, ...]) -> None:
    imgfs.environment["XDG_RUNTIME_DIR"] = str(tmp_path)
    with docker_registry(tmp_path / "private", htpasswd=HTPASSWD) as host:
        push_image(host, "team/app", "v1", [], auth=("ann", SECRET))
        inspect = ("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{host}/team/app:v1")
        assert imgfs.program(*inspect).code != 0
        for place in (host, f"{host}/team"):
            if not options or place == host:  # docker knows no namespaces
                assert login(imgfs, *options, place).code == 0
                assert imgfs.program(*inspect).code == 0
                assert imgfs.ok("logout", *options, place)
        assert imgfs.program(*inspect).code != 0


@pytest.mark.parts
@needs_docker_registry
@pytest.mark.parametrize("program", [others("skopeo"), others("podman")])
def test_what_others_keep_is_found_and_forgotten(imgfs: Imgfs, tmp_path: Path, program: str) -> None:
    imgfs.environment["XDG_RUNTIME_DIR"] = str(tmp_path)
    with docker_registry(tmp_path / "private", htpasswd=HTPASSWD) as host:
        push_image(host, "team/app", "v1", [], auth=("ann", SECRET))
        words = (program, "login", "--tls-verify=false", "-u", "ann", "--password-stdin", host)
        ran = imgfs.program(*words, input=SECRET.encode())
        assert ran.code == 0, ran
        assert imgfs.ok("inspect", f"{host}/team/app:v1")
        assert imgfs.ok("logout", host)
        ran = imgfs.program(program, "logout", host)
        assert "not logged in" in (ran.text + ran.err).lower()


@pytest.mark.parametrize("spelled", ["http://{}", "https://{}", "{}/", "{}/v1/", "{}/v2/", "http://{}/v2"])
def test_a_registry_is_its_host_however_it_is_spelled(
    imgfs: Imgfs, private: FaultServer, auth_file: Path, spelled: str
) -> None:
    assert login(imgfs, spelled.format(private.host)).code == 0
    assert auths(auth_file) == {private.host: {"auth": PAIR}}
    assert imgfs.ok("logout", spelled.format(private.host))
    assert auths(auth_file) == {}
