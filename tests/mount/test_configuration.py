"""What the configuration files say, in commands: a mount of fstab, a container, a registry with TLS."""

from __future__ import annotations

import os
import re
import ssl
import sys
import tomllib
from pathlib import Path

import pytest

from imgfs import manual
from imgfs.cli.fstab import mount_arguments
from imgfs.cli.parser import parse
from tests.support import containers
from tests.support import tarmake as tar
from tests.support.authority import Authority, needs_openssl
from tests.support.containers import has_static_busybox
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, plain, serve, write_image

HELPER = "import sys; from imgfs.cli import mount_helper; sys.exit(mount_helper())"


def say(imgfs: Imgfs, text: str, *, system: bool = False) -> Path:
    """Write a configuration file."""
    place = imgfs.directory / "etc" if system else Path(imgfs.environment["HOME"]) / ".config"
    path = place / "imgfs/config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount by mount(8)")
def test_a_mount_of_fstab_is_as_the_files_say(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [plain(tar.archive(tar.file("f", b"x", uid=7, gid=7)))])
    say(imgfs, '[mount]\nsquash-owner = true\nlog-level = "debug"\n', system=True)
    say(imgfs, '[mount]\ndriver = "fuse"\nscratch = "kept"\n')
    ran = imgfs.program(
        sys.executable, "-c", HELPER, image, imgfs.mountpoint(), "-o", "log_level=info,nosuid"
    )
    assert (ran.code, ran.err) == (0, "")
    imgfs.watch(imgfs.mountpoint())
    assert (imgfs.mountpoint() / "f").stat().st_uid == 0
    (imgfs.mountpoint() / "new").write_text("kept")
    assert mount_arguments([image, "/mnt", "-o", "no_squash_owner"])[1] == "--no-squash-owner"
    imgfs.umount(imgfs.mountpoint())
    assert "kept" in imgfs.ok("scratch", "ls").split()
    assert not any(" DEBUG " in line for line in imgfs.logged())


def umount_with(imgfs: Imgfs, path: Path, text: str) -> str:
    """What umount says if a file is so."""
    path.write_text(text)
    return imgfs.run("umount", imgfs.mountpoint()).err


def test_a_wrong_file_stops_a_command_before_it_does_anything(imgfs: Imgfs, tmp_path: Path) -> None:
    path = say(imgfs, "[ls]\nlayers = 3\n")
    said = imgfs.run("ls", f"oci:{tmp_path}/nowhere").complaint(2)
    assert said == f"{path}: line 2: ls.layers: imgfs ls has no such option; did you mean layer?"
    assert f"imgfs: warning: {path}: line 2: umount.lazi" in umount_with(
        imgfs, path, "[umount]\nlazi = true\n"
    )
    path.write_text("[ls]\nlayers = 3\n")
    assert imgfs.run("--help").code == imgfs.run("ls", "--help").code == 0
    ran = imgfs.program(sys.executable, "-c", "import imgfs; imgfs.open('oci:/nowhere')")
    assert ran.code == 1  # [ls] is none of its business, the image is not there
    assert "config.toml" not in ran.err
    path.write_text("[all]\nplatfrom = 'x'\n")
    assert (
        f"{path}: line 2: all.platfrom"
        in imgfs.program(sys.executable, "-c", "import imgfs; imgfs.open('oci:/nowhere')").err
    )


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0 or not has_static_busybox(), reason="no container for this user")
def test_a_container_is_as_the_files_say(imgfs: Imgfs, tmp_path: Path) -> None:
    image = containers.busybox(tmp_path / "layout")
    say(imgfs, '[run]\nenv = ["A=1", "B=two words"]\nhostname = "configured"\nread-only = true\n')
    script = 'echo "$A $B $C $(hostname)"; touch /x 2>/dev/null || echo read-only'
    told = imgfs.ok("run", "-e", "C=3", image, "busybox", "sh", "-c", script)
    assert told == "1 two words 3 configured\nread-only\n"
    assert "read-only" not in imgfs.ok("run", "--no-read-only", image, "busybox", "sh", "-c", script)


class TlsRegistry(FaultServer):
    """A registry that speaks TLS only."""

    def __init__(self, certificate: Path, key: Path) -> None:
        super().__init__()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._web.socket = context.wrap_socket(self._web.socket, server_side=True)


@needs_openssl
def test_a_registry_is_asked_as_the_files_say(imgfs: Imgfs, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    with TlsRegistry(*authority.issue("127.0.0.1")) as server:
        name = serve(server, "app", "v1", [plain(tar.archive(tar.file("f", b"from a registry\n")))])
        assert "certificate" in imgfs.run("cat", name, "/f").complaint(1)
        assert "certificate" in imgfs.run("catalog", server.host).complaint(1)
        say(imgfs, f'[registry."{server.host}"]\ntls-ca = "{authority.file}"\n')
        assert "certificate" not in imgfs.run("catalog", server.host).complaint(1)
        assert imgfs.ok("cat", name, "/f") == "from a registry\n"
        assert imgfs.ok("tags", f"{server.host}/app").split() == ["v1"]
        program = f"import imgfs; print(imgfs.open({name!r}).read_text('f'), end='')"
        assert imgfs.program(sys.executable, "-c", program).out == b"from a registry\n"
        say(imgfs, f'[registry."{server.host}"]\ntls-ca = "/dev/null"\n', system=True)
        assert imgfs.ok("cat", name, "/f") == "from a registry\n"


def test_the_example_of_the_manual_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", manual.text("configuration"), re.DOTALL)
    (tmp_path / "imgfs").mkdir()
    (tmp_path / "imgfs/config.toml").write_text(example)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("IMGFS_ETC", str(tmp_path / "etc"))
    monkeypatch.delenv("IMGFS_STORE", raising=False)
    assert len(tomllib.loads(example)) == 5
    assert parse(["mount", "debian", "/mnt"]).fuse_options == ["noexec", "nosuid"]
    assert parse(["run", "debian"]).env == ["LANG=C.UTF-8", "TZ=Europe/Berlin"]
    assert parse(["store", "prune"]).store == "/data/imgfs"
