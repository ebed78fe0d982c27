"""What demonstrates and measures imgfs is right itself: the link, the images, the registry, the scripts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts.lab import demo, layout, recipes
from scripts.lab.link import Link, RequestCounter, Traffic
from scripts.lab.registry import Registry, RegistryFailed
from tests.support.images import default_cache
from tests.support.mounted import CHECKOUT, NOBODY, Imgfs, is_alive
from tests.support.patience import allowed

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
MBIT, ROUND_TRIP = 200.0, 0.020


class _Zeros(BaseHTTPRequestHandler):
    """Answers GET /N with N zeros."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the body waits 40 ms for the head's acknowledgement

    def do_GET(self) -> None:
        size = int(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(bytes(size))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@contextmanager
def zeros() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Zeros) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextmanager
def connected(port: int) -> Iterator[HTTPConnection]:
    connection = HTTPConnection("127.0.0.1", port, timeout=allowed(30))
    try:
        yield connection
    finally:
        connection.close()


def get(connection: HTTPConnection, size: int) -> float:
    start = time.perf_counter()
    connection.request("GET", f"/{size}")
    assert len(connection.getresponse().read()) == size
    return time.perf_counter() - start


def fastest(connection: HTTPConnection, size: int, times: int) -> float:
    """The least disturbed of several tries: other programs can only make a link look slower."""
    return min(get(connection, size) for _ in range(times))


def test_a_link_adds_its_round_trip_to_every_request_and_another_to_a_connection() -> None:
    with zeros() as server, Link(server, MBIT, ROUND_TRIP) as link, connected(link.port) as client:
        first, later = get(client, 1), fastest(client, 1, 10)
    assert first >= 2 * ROUND_TRIP
    assert ROUND_TRIP <= later < allowed(1.5 * ROUND_TRIP)


def test_a_link_lets_its_bandwidth_through_and_no_more() -> None:
    size = 37_500_000
    expected = size / MBIT / 125_000  # 1.5 s
    with zeros() as server, Link(server, MBIT, ROUND_TRIP) as link, connected(link.port) as client:
        get(client, 1)  # the connection costs a round trip of its own
        for _ in range(5):  # other programs can only make a link look slower
            seconds = get(client, size) - ROUND_TRIP
            # A line idle for less than CONTINUOUS counts as busy, so a transfer may start 5 ms ahead.
            assert seconds >= expected - 0.006
            if seconds <= allowed(1.2 * expected):
                return
    pytest.fail(f"{seconds:.2f} s instead of {expected:.2f} s")


def test_connections_share_the_bandwidth_of_a_link() -> None:
    size = 1_000_000
    with zeros() as server, Link(server, MBIT) as link:

        def fetch() -> None:
            with connected(link.port) as client:
                get(client, size)

        threads = [threading.Thread(target=fetch) for _ in range(4)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
    assert seconds >= 4 * size / MBIT / 125_000 - 0.006


def test_a_link_counts_requests_connections_and_bytes() -> None:
    with zeros() as server, Link(server) as link:
        with connected(link.port) as client:
            get(client, 1000)
            before = link.traffic()
            get(client, 50_000)
            get(client, 50_000)
        crossed = link.traffic() - before
    assert (before.connections, before.requests) == (1, 1)
    assert (crossed.connections, crossed.requests) == (0, 2)
    assert 100_000 < crossed.fetched < 101_000
    assert 0 < crossed.sent < 1000


def test_traffic_subtracts_field_by_field() -> None:
    assert Traffic(4, 7, 100, 50) - Traffic(1, 2, 30, 40) == Traffic(3, 5, 70, 10)


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_requests_are_counted_however_they_are_cut(step: int) -> None:
    stream = b"GET /a HTTP/1.1\r\nHost: GET\r\n\r\nHEAD /b?c HTTP/1.1\r\n\r\nPUT /x HTTP/1.0\r\n\r\n"
    counter = RequestCounter()
    assert sum(counter.feed(stream[at : at + step]) for at in range(0, len(stream), step)) == 3


def test_a_link_whose_server_refuses_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with Link(port) as link, socket.create_connection(("127.0.0.1", link.port), timeout=10) as client:
        assert client.recv(1) == b""


def test_leaving_a_link_ends_its_connections() -> None:
    with zeros() as server, connected(0) as client:
        with Link(server) as link:
            client.port = link.port
            get(client, 10)
            taken = client.sock
        assert taken.recv(1) == b""


def tree(root: Path) -> Path:
    (root / "d").mkdir(parents=True)
    (root / "d" / "tool").write_bytes(b"#!/bin/sh\n" * 100)
    (root / "d" / "tool").chmod(0o755)
    (root / "empty").touch()
    (root / "link").symlink_to("d/tool")
    return root


def test_a_layer_holds_the_tree_it_was_packed_from(tmp_path: Path) -> None:
    source = tree(tmp_path / "tree")
    layer = layout.pack_members(tmp_path, layout.tree_members(source, "opt/app"))
    blob = layout.blob_path(tmp_path, layer.digest).read_bytes()
    flat = gzip.decompress(blob)
    assert layer.digest == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    assert layer.diff_id == f"sha256:{hashlib.sha256(flat).hexdigest()}"
    assert (layer.size, layer.tar_size) == (len(blob), len(flat))
    with tarfile.open(fileobj=io.BytesIO(flat)) as tar:
        assert tar.getnames() == [
            *("opt", "opt/app"),
            *("opt/app/d", "opt/app/d/tool", "opt/app/empty", "opt/app/link"),
        ]
        assert layer.entries == len(tar.getnames())
        tool = tar.extractfile("opt/app/d/tool")
        assert tool is not None
        assert tool.read() == b"#!/bin/sh\n" * 100
        assert tar.getmember("opt/app/d/tool").mode == 0o755
        assert tar.getmember("opt/app/link").linkname == "d/tool"


def test_packing_the_same_tree_again_gives_the_same_layer(tmp_path: Path) -> None:
    source = tree(tmp_path / "tree")
    one, two = (layout.pack_members(tmp_path / name, layout.tree_members(source)) for name in ("one", "two"))
    assert one == two


def test_a_finished_tar_is_taken_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "root.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(tree(tmp_path / "tree"), ".")
    layer = layout.pack_tar(tmp_path, path)
    assert gzip.decompress(layout.blob_path(tmp_path, layer.digest).read_bytes()) == path.read_bytes()
    assert layer.entries == 5


def test_a_whiteout_stands_beside_what_it_hides() -> None:
    assert layout.whiteout("etc/issue").name == "etc/.wh.issue"
    assert layout.whiteout("etc").name == ".wh.etc"


def small_image(cache: Path) -> layout.Image:
    return layout.cached_image(
        cache, "small", lambda at: layout.write_image(at, "v1", [recipes.pack_files(at, {"a/b": "text"})])
    )


def test_an_image_is_built_once_and_found_again(tmp_path: Path) -> None:
    built = small_image(tmp_path)

    def build_again(at: Path) -> layout.Image:
        raise AssertionError(f"built a second time in {at}")

    assert layout.cached_image(tmp_path, "small", build_again) == built
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_an_image_whose_build_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(at: Path) -> layout.Image:
        (at / "torso").touch()
        raise recipes.RecipeError("no such tool")

    with pytest.raises(recipes.RecipeError):
        layout.cached_image(tmp_path, "small", build)
    assert list(tmp_path.iterdir()) == []


def test_a_layout_names_its_blobs_by_their_digests(tmp_path: Path) -> None:
    image = small_image(tmp_path)
    for path in (image.layout / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    manifest = json.loads(image.blob(image.digest).read_bytes())
    assert [layer["digest"] for layer in manifest["layers"]] == [layer.digest for layer in image.layers]


def test_a_synthetic_image_has_the_files_asked_for(tmp_path: Path) -> None:
    image = recipes.synthetic(tmp_path, 2_500)
    with tarfile.open(image.blob(image.layers[0].digest)) as tar:
        members = tar.getmembers()
    assert sum(member.isreg() for member in members) == 2_500
    assert len({member.name for member in members}) == image.entries == 2_500 + 4


def test_a_missing_or_failing_build_tool_is_said_in_one_line() -> None:
    with pytest.raises(recipes.RecipeError, match="no-such-tool is not installed"):
        recipes.run(["no-such-tool"])
    with pytest.raises(recipes.RecipeError, match=r"sh failed \(3\): last words"):
        recipes.run(["sh", "-c", "echo last words; exit 3"])


@pytest.mark.parts
@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="no docker-registry")
def test_a_registry_serves_what_was_pushed(tmp_path: Path) -> None:
    image = small_image(tmp_path / "cache")
    with Registry(tmp_path / "registry") as registry:
        assert registry.push(image, "ns/small") == f"{registry.host}/ns/small:v1"
        registry.push(image, "ns/small")  # again: everything is there
        with connected(registry.port) as client:
            client.request("GET", "/v2/ns/small/manifests/v1", headers={"Accept": layout.MANIFEST})
            served = client.getresponse().read()
    assert served == image.blob(image.digest).read_bytes()


@pytest.mark.parts
@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="no docker-registry")
def test_a_registry_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(RegistryFailed, match="address already in use"),
    ):
        Registry(tmp_path, taken.getsockname()[1]).start()


def test_a_layout_is_an_image_to_imgfs(tmp_path: Path, imgfs: Imgfs) -> None:
    image = small_image(tmp_path)
    seen = json.loads(imgfs.ok("inspect", "--json", image.reference))
    assert seen["digest"] == image.digest
    assert [(layer["digest"], layer["diff_id"], layer["size"]) for layer in seen["layers"]] == [
        (layer.digest, layer.diff_id, layer.size) for layer in image.layers
    ]
    assert imgfs.ok("cat", image.reference, "/a/b") == "text"


def test_the_test_images_are_kept_where_caches_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/imgfs-tests")
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # basedir-spec: empty is as good as unset
    monkeypatch.setenv("HOME", "/home/joe")
    assert default_cache() == Path("/home/joe/.cache/imgfs-tests")


# -- the scripts ---------------------------------------------------------------------------------------------

RUN = ("fusermount3", "crun", "catatonit", "newuidmap", "newgidmap")  # of the packages that every user needs
STUBS = {
    **dict.fromkeys(RUN, ""),
    "python3": "",
    "ldconfig": "echo libisal.so.2",
    "apt-get": 'echo "apt-get $*" >>"$HOME/called"; exit 1',
    "sudo": 'echo "sudo $*" >>"$HOME/called"; exit 1',
}
PAGES = ("man/man1/imgfs.1", "man/man8/mount.fuse.imgfs.8", "zsh/site-functions/_imgfs")
# Of the environment: it makes pages unless $HOME/broken is there, and notes what else it is asked for.
PYTHON = f"""
if [ "$*" = "-m compileall -q imgfs" ]; then cat imgfs/cli/arguments.py >"$HOME/compiled"; exit; fi
if [ "$*" != "-m imgfs.cli.pages .venv" ]; then echo "python $*" >>"$HOME/called"; exit; fi
[ ! -e "$HOME/broken" ] || {{ echo "no shtab" >&2; exit 1; }}
for page in {" ".join(PAGES)}; do
    mkdir -p ".venv/share/${{page%/*}}"
    cat imgfs/cli/arguments.py >".venv/share/$page"
done"""


def stub(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@dataclass(frozen=True)
class Installation:
    """A checkout that scripts/install has been run in, on a machine of stubs, by an ordinary user."""

    home: Path

    @property
    def checkout(self) -> Path:
        return self.home / "checkout"

    @property
    def command(self) -> Path:
        """What stands for the sources of the command line."""
        return self.checkout / "imgfs" / "cli" / "arguments.py"

    @property
    def share(self) -> Path:
        return self.home / ".local" / "share"

    def prepare(self) -> None:
        for name, script in STUBS.items():
            stub(self.home / "stubs" / name, script)
        (self.checkout / "scripts").mkdir(parents=True)
        for name in ("install", "packages"):
            shutil.copy(SCRIPTS / name, self.checkout / "scripts")
        shutil.copy(CHECKOUT / "pyproject.toml", self.checkout)
        (self.checkout / "imgfs" / "cli").mkdir(parents=True)
        for source in (self.checkout / "imgfs" / "__init__.py", self.command):
            source.touch()
        stub(self.checkout / ".venv" / "bin" / "imgfs", 'echo "imgfs $*" >>"$HOME/called"')
        stub(self.checkout / ".venv" / "bin" / "python", PYTHON)
        project = hashlib.sha256((CHECKOUT / "pyproject.toml").read_bytes()).hexdigest()
        made = f"made at {self.checkout} with {self.home}/stubs/python3\n"
        made += f"built from {project} with pages,engines\n"
        (self.checkout / ".venv" / "installed").write_text(made)
        if not os.geteuid():
            for path in (self.home, *self.home.rglob("*")):
                os.chown(path, *NOBODY)

    def install(self, *options: str) -> subprocess.CompletedProcess[str]:
        user, group = (None, None) if os.geteuid() else NOBODY
        paths = [self.home / ".local/bin", self.home / "stubs", "/usr/bin", "/bin"]
        return subprocess.run(
            [self.checkout / "scripts" / "install", *options],
            env={
                "HOME": str(self.home),
                "PATH": ":".join(map(str, paths)),
                "PYTHON": f"{self.home}/stubs/python3",
            },
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=allowed(20),
            user=user,
            group=group,
            extra_groups=None if user is None else [],
        )

    def want(self, *lines: str) -> None:
        """Have the list of packages name more."""
        with (self.checkout / "scripts" / "packages").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def called(self) -> str:
        """The commands that change a machine, as far as they were called."""
        path = self.home / "called"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def installation(open_path: Path) -> Installation:
    found = Installation(open_path)
    found.prepare()
    return found


def test_installing_again_does_nothing(installation: Installation) -> None:
    first, second = installation.install(), installation.install()
    assert (first.returncode, second.returncode) == (0, 0), (first, second)
    assert f"linked {installation.home}/.local/bin/imgfs" in first.stdout
    assert second.stdout == "install: imgfs is ready\n"
    assert installation.called() == ""


def test_pages_and_completions_are_put_in_place_and_follow_the_command_line(
    installation: Installation,
) -> None:
    said = installation.install()
    assert (said.returncode, said.stderr) == (0, "")
    assert f"install: man pages and completions are below {installation.share}\n" in said.stdout
    assert [(installation.share / page).read_text() for page in PAGES] == ["", "", ""]
    installation.command.write_text("--new")
    said = installation.install()
    assert said.stdout == "install: making man pages and completions\ninstall: imgfs is ready\n"
    assert [(installation.share / page).read_text() for page in PAGES] == ["--new"] * 3
    (installation.share / PAGES[0]).unlink()
    installation.install()
    assert (installation.share / PAGES[0]).read_text() == "--new"


def test_a_page_that_another_installation_has_put_there_stays(installation: Installation) -> None:
    page = installation.share / PAGES[0]
    page.parent.mkdir(parents=True)
    page.write_text("of the wheel")
    if not os.geteuid():
        for path in (installation.home / ".local", *(installation.home / ".local").rglob("*")):
            os.chown(path, *NOBODY)
    assert installation.install().returncode == 0
    assert page.read_text() == "of the wheel"
    assert (installation.share / PAGES[1]).is_symlink()


def test_pages_that_cannot_be_made_are_done_without(installation: Installation) -> None:
    (installation.home / "broken").touch()
    said = installation.install()
    assert (said.returncode, said.stdout.splitlines()[-1]) == (0, "install: imgfs is ready")
    assert said.stderr.splitlines() == [
        "no shtab",
        "install: failed: making man pages and completions",
        "install: going on without man pages and completions",
    ]
    assert not installation.share.exists()


def test_pages_that_cannot_be_linked_are_done_without(installation: Installation) -> None:
    installation.install()
    shutil.rmtree(installation.share)
    installation.share.touch()
    said = installation.install()
    assert said.returncode == 0
    assert said.stderr.endswith("install: going on without man pages and completions\n")


def test_installing_compiles_what_has_changed_for_users_who_cannot_write_there(
    installation: Installation,
) -> None:
    installation.install()
    assert (installation.home / "compiled").read_text() == ""
    installation.command.write_text("--new")
    installation.install()
    assert (installation.home / "compiled").read_text() == "--new"


def test_what_pyproject_newly_asks_for_is_installed(installation: Installation) -> None:
    with (installation.checkout / "pyproject.toml").open("a") as file:
        file.write("# a dependency\n")
    assert installation.install().returncode == 0
    assert "python -m pip install" in installation.called()
    done = installation.called()
    assert installation.install().returncode == 0
    assert installation.called() == done


def test_isa_l_is_missed_by_its_library_and_asked_for_by_its_package(installation: Installation) -> None:
    stub(installation.home / "stubs" / "ldconfig", "echo libz.so.1")
    said = installation.install()
    assert said.returncode == 1
    assert said.stderr == "install: missing packages; as root: apt-get install libisal2\n"
    assert installation.called() == "sudo -v\n"


MISSING = ("run one no-such-1", "run two file:/no/such/2", "test three no-such-3", "demo four no-such-4")


def test_what_is_missing_is_one_list_said_once(installation: Installation) -> None:
    installation.want(*MISSING, "demo two no-such-2")
    said = installation.install("--demo")
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr == "install: missing packages; as root: apt-get install one two four\n"
    assert installation.called() == "sudo -v\n"


def test_what_only_the_demonstration_needs_is_done_without(installation: Installation) -> None:
    installation.want(MISSING[-1])
    assert installation.install().stderr == ""
    said = installation.install("--demo")
    assert (said.returncode, said.stdout) == (0, "install: imgfs is ready\n")
    assert said.stderr == "install: missing packages; as root: apt-get install four (going on without them)\n"


@pytest.mark.parametrize(
    ("lines", "option", "code", "steps"),
    [
        (MISSING[:2], "--demo", 1, ["update -qq", "one two"]),
        (MISSING[2:3], "--test", 1, ["update -qq", "three"]),
        (MISSING[3:], "--demo", 0, ["update -qq", "four"]),
        (MISSING, "--demo", 1, ["update -qq", "one two"]),
    ],
)
def test_a_step_that_fails_is_not_run_again(
    installation: Installation, lines: list[str], option: str, code: int, steps: list[str]
) -> None:
    stub(installation.home / "stubs" / "sudo", '[ "$1" = -v ] || exec "$@"')
    refusing = (
        'echo "apt-get $*" >>"$HOME/called"; [ "$1" = update ] || { echo "no such package"; exit 100; }'
    )
    stub(installation.home / "stubs" / "apt-get", refusing)
    installation.want("# nothing", *lines)
    said = installation.install(option)
    assert said.returncode == code, said
    called = [line.removeprefix("apt-get ") for line in installation.called().splitlines()]
    install = "install -qq -y --no-install-recommends "
    assert [line.removeprefix(install) for line in called if not line.startswith("python")] == steps
    assert said.stderr.count("no such package") == 1


def test_a_machine_that_cannot_read_its_package_lists_is_told_once(installation: Installation) -> None:
    stub(installation.home / "stubs" / "sudo", '[ "$1" = -v ] || exec "$@"')
    installation.want(MISSING[-1])
    said = installation.install("--demo")  # apt-get fails, whatever it is asked for
    assert (said.returncode, installation.called()) == (0, "apt-get update -qq\n")
    assert said.stderr.splitlines()[-1] == "install: going on without them: four"


def test_the_environment_alone_asks_for_no_package_and_links_nothing(installation: Installation) -> None:
    installation.want(*MISSING, "build five no-such-5")
    (installation.checkout / "pyproject.toml").write_text("new")
    said = installation.install("--environment")
    assert (said.returncode, said.stderr) == (0, "")
    asked = "python -m pip install --quiet --disable-pip-version-check"
    assert installation.called() == f"{asked} pip>=25\n{asked} -e .[test]\n"
    assert not (installation.home / ".local").exists()
    assert installation.install("--environment").stdout == ""


@pytest.mark.parametrize("mode", [None, 0o644, 0o755])
def test_without_a_working_mmdebstrap_the_demonstration_is_of_files_of_this_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], mode: int | None
) -> None:
    stub(tmp_path / "bin/mmdebstrap", "echo it may not be read >&2; exit 2")
    (tmp_path / "bin/mmdebstrap").chmod(mode or 0o644)
    if mode is None:
        (tmp_path / "bin/mmdebstrap").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(demo, "OWN", ("usr/share/common-licenses",))  # all of them take seconds
    image = demo.build_demo(tmp_path / "cache")
    assert "taking files of this system" in capfd.readouterr().err
    assert len(image.layers) == 2


@pytest.mark.parametrize("name", ["install", "quickstart", "test", "bench", "../.ci/run"])
def test_a_script_is_executable_and_valid_bash(name: str) -> None:
    path = SCRIPTS / name
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", path], check=True, timeout=allowed(20))


@pytest.mark.parametrize("name", ["install", "quickstart"])
def test_a_script_asked_for_something_unknown_says_how_it_is_used(name: str) -> None:
    said = subprocess.run(
        [SCRIPTS / name, "--nonsense"], capture_output=True, text=True, check=False, timeout=allowed(20)
    )
    assert said.returncode == 2
    assert f"scripts/{name}" in said.stdout + said.stderr


def test_quickstart_explains_itself() -> None:
    said = subprocess.run(
        [SCRIPTS / "quickstart", "--help"], capture_output=True, text=True, check=True, timeout=allowed(20)
    )
    for form in ("scripts/quickstart  ", "scripts/quickstart IMAGE MOUNTPOINT", "scripts/quickstart --stop"):
        assert form in said.stdout
    assert said.stderr == ""


SKIPPING = """
import pytest
def test_that_skips(): pytest.skip("no such tool")
@pytest.mark.skipif(True, reason="no such user")
def test_that_is_marked(): pass
@pytest.mark.xfail
def test_known_to_fail(): assert False
def test_that_passes(): pass
"""


def pytest_in(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the tests in a directory, with this checkout's plugins."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "."]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    limit = allowed(60)
    return subprocess.run(
        words, cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=limit
    )


@pytest.mark.parametrize(
    ("options", "code", "closing"),
    [
        ([], 0, "1 passed, 2 skipped, 1 xfailed"),
        (["-p", "tests.support.no_skips"], 1, "1 failed, 1 passed, 1 xfailed, 1 error"),
    ],
)
def test_a_skipped_test_fails_only_where_nothing_may_be_skipped(
    tmp_path: Path, options: list[str], code: int, closing: str
) -> None:
    (tmp_path / "test_skipping.py").write_text(SKIPPING)
    said = pytest_in(tmp_path, *options)
    assert said.returncode == code
    assert closing in said.stdout.splitlines()[-1]
    assert ("not to be skipped here: no such tool" in said.stdout) == bool(options)


@pytest.mark.parametrize(
    ("command", "code"), [("echo well", 0), ("sh -c 'echo ill; exit 3'", 1), ("sh -c 'kill -TERM $$'", 1)]
)
def test_a_command_beside_the_tests_fails_with_them_and_is_heard(
    tmp_path: Path, command: str, code: int
) -> None:
    (tmp_path / "test_one.py").write_text("def test_that_passes(): pass\n")
    said = pytest_in(tmp_path, "-p", "tests.support.beside", "--beside", command, "--beside", "pwd")
    assert (said.returncode, said.stderr) == (code, "")
    assert said.stdout.count(f"beside the tests: {command}: exit code") == 1
    assert ("\nwell\n" in said.stdout) == (command == "echo well")
    assert f"\n{CHECKOUT}\n" in said.stdout
    assert said.stdout.splitlines()[-1].startswith("1 passed")


INTERRUPTED = """
import pathlib, time
def test_that_is_interrupted():
    while not pathlib.Path("pid").exists(): time.sleep(0.01)
    raise KeyboardInterrupt
"""


def test_a_command_beside_the_tests_does_not_outlive_them(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(INTERRUPTED)
    script = f"echo $$ >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 1000"
    said = pytest_in(tmp_path, "-p", "tests.support.beside", "--beside", f"sh -c '{script}'")
    assert said.returncode == pytest.ExitCode.INTERRUPTED
    assert not is_alive(int((tmp_path / "pid").read_text()))
