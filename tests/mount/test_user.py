"""Mounting without being root: through fusermount3, in a home directory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.support import tarmake as tar
from tests.support.mounted import Account, Imgfs, errno_of, gzipped, mount_flags, mount_of, until, write_image

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users"),
]

LAYER = tar.archive(
    tar.directory("closed", mode=0o700),
    tar.file("closed/inside", b"inside"),
    tar.file("shadow", b"secret", mode=0o640, uid=0, gid=42),
    tar.file("public", b"public", mode=0o644, uid=1000),
    tar.file("setuid", b"s", mode=0o4755),
)


@pytest.fixture
def image(nobody: Imgfs) -> str:
    return write_image(nobody.directory / "layout", [gzipped(LAYER)])


def read(nobody: Imgfs, path: Path) -> str:
    ran = nobody.program("cat", path)
    return ran.text if ran.code == 0 else ran.err.rpartition(": ")[2].strip()


def test_an_ordinary_user_mounts_reads_and_unmounts(nobody: Imgfs, image: str) -> None:
    at = nobody.mount(image)
    assert read(nobody, at / "public") == "public"
    assert {"nosuid", "nodev", "ro", "user_id=65534", "default_permissions"} <= mount_flags(at)
    assert stat.S_IMODE(os.stat(nobody.store).st_mode) == 0o700
    nobody.umount(at)
    assert mount_of(at) is None


def test_fusermount3_ends_it_too(nobody: Imgfs, image: str) -> None:
    at = nobody.mount(image)
    done = nobody.program("fusermount3", "-u", at)
    assert (done.code, done.err) == (0, "")
    until(lambda: mount_of(at) is None, "unmounted")
    nobody.gone(at)


def test_what_only_root_may_read_is_closed_to_a_user(nobody: Imgfs, image: str) -> None:
    at = nobody.mount(image)
    assert read(nobody, at / "shadow") == "Permission denied"
    assert read(nobody, at / "closed/inside") == "Permission denied"


def test_with_squash_owner_everything_is_the_users_own(nobody: Imgfs, image: str) -> None:
    at = nobody.mount(image, "--squash-owner")
    assert read(nobody, at / "shadow") == "secret"
    assert read(nobody, at / "closed/inside") == "inside"
    owners = nobody.program("find", at, "-printf", "%U:%G %m\n").text.splitlines()
    assert {owner.split()[0] for owner in owners} == {"65534:65534"}
    assert "65534:65534 4755" in owners


def test_another_user_is_kept_out(nobody: Imgfs, image: str) -> None:
    at = nobody.mount(image)
    assert errno_of(lambda: os.listdir(at)) == errno.EACCES  # even root


def test_allow_other_is_refused_clearly_where_the_system_forbids_it(nobody: Imgfs, image: str) -> None:
    if any(line.strip() == "user_allow_other" for line in Path("/etc/fuse.conf").read_text().splitlines()):
        pytest.skip("/etc/fuse.conf allows it")
    at = nobody.mountpoint()
    said = nobody.run("mount", "-o", "allow_other", image, at).complaint()
    assert "user_allow_other" in said
    assert "/etc/fuse.conf" in said
    assert mount_of(at) is None
    nobody.expected.append("ERROR imgfs\\.(daemonize|mount): .*user_allow_other")


def test_a_directory_of_somebody_elses_cannot_be_mounted_on(
    nobody: Imgfs, image: str, open_path: Path
) -> None:
    (open_path / "roots").mkdir()
    said = nobody.run("mount", image, open_path / "roots").complaint()
    assert said == f"{open_path}/roots: you may not write to it, so you may not mount on it"


def test_without_fusermount3_the_package_is_named(nobody: Imgfs, image: str) -> None:
    nobody.environment["PATH"] = "/nowhere"
    said = nobody.run("mount", image, nobody.mountpoint()).complaint()
    assert said == "fusermount3 is not installed (Debian: apt install fuse3)"


def test_a_store_that_cannot_be_written_is_named(nobody: Imgfs, image: str, open_path: Path) -> None:
    said = nobody.run("mount", "--store", open_path / "roots", image, nobody.mountpoint()).complaint()
    assert said.startswith(f"{open_path}/roots: Permission denied")
    assert said.endswith("name another directory: --store DIR, or $IMGFS_STORE")
    nobody.ok("ls", image)
    for top, _, _ in os.walk(nobody.store):
        os.chmod(top, 0o500)
    said = nobody.run("ls", write_image(nobody.directory / "other", [gzipped(LAYER[512:])])).complaint()
    assert str(nobody.store) in said
    assert "Permission denied" in said


def test_a_closed_device_is_named(nobody: Imgfs, image: str) -> None:
    script = (
        "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 600 /dev/fuse c 10 229;"
        f"exec setpriv --reuid 65534 --regid 65534 --clear-groups {' '.join(nobody.command('mount'))} $0 $1"
    )
    at, as_root = nobody.mountpoint(), Imgfs(nobody.directory / "root")
    as_root.environment = nobody.environment
    ran = as_root.program("unshare", "-m", "sh", "-c", script, image, at)
    assert ran.complaint().startswith("/dev/fuse: you may not open it: as root, chmod 0666 /dev/fuse")


def test_a_machine_without_a_mount_table_for_fusermount3_is_told_what_to_do(
    nobody: Imgfs, image: str
) -> None:
    script = (
        "cp /etc/passwd $2; mount -t tmpfs none /etc; cp $2/passwd /etc;"
        f"exec setpriv --reuid 65534 --regid 65534 --clear-groups {' '.join(nobody.command('mount'))} $0 $1"
    )
    at, as_root = nobody.mountpoint(), Imgfs(nobody.directory / "root")
    as_root.environment = nobody.environment
    ran = as_root.program("unshare", "-m", "sh", "-c", script, image, at, as_root.directory)
    assert ran.complaint() == (
        "there is no /etc/mtab, without which fusermount3 unmounts nothing: as root, "
        "ln -s /proc/self/mounts /etc/mtab"
    )


def test_root_lets_every_user_in(imgfs: Imgfs, nobody: Imgfs, image: str, open_path: Path) -> None:
    (open_path / "roots").mkdir()
    at = imgfs.mount(image, at=open_path / "roots")
    assert read(nobody, at / "public") == "public"
    assert read(nobody, at / "shadow") == "Permission denied"
    imgfs.umount(at)


def test_a_log_that_cannot_be_written_is_named(nobody: Imgfs, image: str) -> None:
    nobody.ok("ls", image)
    os.chown(nobody.store / "logs", 0, 0)
    os.chmod(nobody.store / "logs", 0o755)
    said = nobody.run("mount", image, nobody.mountpoint()).complaint()
    assert f"{nobody.store}/logs/" in said
    assert "Permission denied" in said


def test_a_user_without_a_name_is_told_before_anything_is_fetched(nobody: Imgfs, image: str) -> None:
    at = nobody.mountpoint()
    os.chown(at, 54_321, 54_321)
    stranger = Imgfs(nobody.directory / "stranger", user=Account(54_321, 54_321))
    said = stranger.run("mount", image, at).complaint()
    assert said == "uid 54321 has no entry in /etc/passwd, without which fusermount3 mounts nothing"
