"""What an image or a container tries against the machine that runs it, and that it gets nowhere."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from imgfs.mounts.table import mounts
from tests.support import containers
from tests.support import tarmake as tar
from tests.support.containers import (
    PODMAN,
    RUNTIMES,
    busybox,
    busybox_layer,
    installed,
    needs_podman,
    podman_is_5,
    shell,
)
from tests.support.mounted import Imgfs, gzipped, write_image

pytestmark = containers.marks
layout, image, run, podman = containers.layout, containers.image, containers.run, containers.podman

DRIVERS = ["fuse", "kernel"]
MANY_FLAGS = "busybox awk '$5 == \"%s\" { print $6 }' /proc/self/mountinfo"


TAGS = itertools.count()


def hostile(layout: Path, *members: bytes, whiteouts: Sequence[str] = (), **config: Any) -> str:
    """An image with these members over the usual ones."""
    layers = [busybox_layer(), gzipped(tar.archive(*map(tar.whiteout, whiteouts)))]
    fields = {"Env": ["PATH=/bin"], "Cmd": ["pwd"], **config}
    return write_image(
        layout, [*layers, gzipped(tar.archive(*members))], {"config": fields}, f"hostile-{next(TAGS)}"
    )


def flags(run: Imgfs, image: str, place: str, *options: str | Path) -> set[str]:
    """The flags that something is mounted with in a container."""
    ran = shell(run, image, MANY_FLAGS % place, *options)
    assert (ran.code, ran.err) == (0, "")
    return set(ran.text.split()[-1].split(","))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "labels",
    [
        {"run.oci.seccomp.plugins": "/nowhere/x.so", "run.oci.seccomp.receiver": "/nowhere/socket"},
        {"run.oci.handler": "nonsense", "module.wasm.image/variant": "compat"},
        {"run.oci.seccomp_bpf_data": "bm9uc2Vuc2U=", "run.oci.mount_context_type": "nonsense"},
        {"run.oci.pidfd_receiver": "/nowhere/socket", "run.oci.systemd.subgroup": "x/../.."},
    ],
)
def test_no_label_of_an_image_is_obeyed(
    run: Imgfs, layout: Path, runtime: str, labels: dict[str, str]
) -> None:
    image = hostile(layout, Labels=labels)
    ran = shell(run, image, "echo runs", "--runtime", runtime)
    assert (ran.code, ran.text, ran.err) == (0, "runs\n", "")


DEVICES = [tar.device("zero", "c", 1, 5, mode=0o666), tar.device("disk", "b", 7, 0, mode=0o666)]
LOOK = "for d in /zero /disk; do busybox head -c 1 $d 2>&1 | busybox cut -d: -f 3; done; ls /zero /disk"
REFUSED = [" Permission denied", " Permission denied", "/disk", "/zero"]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("by", DRIVERS)
@pytest.mark.parametrize("options", [["--cap-add", "MKNOD"], ["--read-only"]])
def test_the_images_devices_cannot_be_opened(
    run: Imgfs, layout: Path, runtime: str, by: str, options: list[str]
) -> None:
    image = hostile(layout, *DEVICES)
    how = ("--runtime", runtime, "--driver", by, *options)
    ran = shell(run, image, LOOK, *how)
    assert sorted(ran.text.splitlines()) == REFUSED, ran
    found = flags(run, image, "/", *how)
    assert "nodev" in found
    assert "nosuid" not in found
    assert ("ro" in found) == ("--read-only" in options)


WITHOUT = {
    "unmounted": ("umount /sys/fs/cgroup/*", "cgroups cannot be written"),
    "without devices": ("umount /sys/fs/cgroup/devices", "its cgroup controller is not here"),
    "read-only": ("{closed}", "cgroups cannot be written"),
}


@pytest.mark.parametrize("case", WITHOUT)
@pytest.mark.skipif(not installed("crun"), reason="crun is not installed")
@pytest.mark.skipif(not Path("/sys/fs/cgroup/devices").exists(), reason="no cgroups of version 1")
def test_without_a_device_cgroup_they_cannot_either_and_that_is_said(
    run: Imgfs, layout: Path, case: str
) -> None:
    """With crun: runc does not start where cgroups are not mounted."""
    script, reason = WITHOUT[case]
    places = [str(one.mountpoint) for one in mounts() if one.filesystem in ("cgroup", "cgroup2")]
    script = script.format(closed=" && ".join(f"mount -o remount,ro,bind {place}" for place in places))
    words = run.command("run", "--runtime", "crun", hostile(layout, *DEVICES), "sh", "-c", LOOK)
    ran = run.program("unshare", "-m", "sh", "-c", f'{script} && exec "$@"', "sh", *words)
    assert sorted(ran.text.splitlines()) == REFUSED, ran
    assert ran.err == f"imgfs: warning: no access to devices is limited: {reason}\n"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_images_bundle_keeps_its_devices_closed_too(
    run: Imgfs, layout: Path, runtime: str, tmp_path: Path
) -> None:
    image = hostile(layout, *DEVICES)
    run.ok("bundle", image, tmp_path / "box", "sh", "-c", LOOK)
    words = (runtime, "--root", tmp_path / "state", "run", "-b", tmp_path / "box", f"imgfs-test-{runtime}")
    hide = "umount -R /sys/fs/cgroup/unified 2>/dev/null"  # crun wants one version of cgroups only
    ran = run.program("unshare", "-m", "sh", "-c", f'{hide}; exec "$@"', "sh", *words)
    run.ok("umount", tmp_path / "box/rootfs")
    assert sorted(ran.text.splitlines()) == REFUSED, ran


VOLUME = [
    tar.device("srv/disk", "b", 7, 0, mode=0o666),
    tar.file("srv/su", b"#!/bin/sh\n", mode=0o6755),
    tar.hardlink("srv/su2", "srv/su"),
    tar.symlink("srv/away", "../../../../etc/shadow"),
    tar.fifo("srv/pipe"),
    tar.directory("srv/deep", uid=33, gid=34, mode=0o1770),
    tar.file("srv/deep/holes", bytes(3 << 20) + b"x", uid=33),
]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("by", DRIVERS)
def test_an_images_volume_has_what_the_image_has_but_devices(
    run: Imgfs, layout: Path, runtime: str, by: str
) -> None:
    image = hostile(layout, *VOLUME, Volumes={"/srv": {}})
    script = (
        "cd /srv; ls; stat -c '%n %a %u:%g %h %F' . su deep deep/holes pipe; test su -ef su2 && echo same; "
        "busybox readlink away; busybox md5sum <deep/holes"
    )
    ran = shell(run, image, script, "--runtime", runtime, "--driver", by)
    assert (ran.code, ran.err) == (0, "")
    assert ran.text.splitlines() == [
        *["away", "deep", "file", "pipe", "su", "su2"],
        ". 750 33:34 3 directory",
        "su 6755 0:0 2 regular file",
        "deep 1770 33:34 2 directory",
        "deep/holes 644 33:0 1 regular file",
        "pipe 644 0:0 1 fifo",
        "same",
        "../../../../etc/shadow",
        f"{hashlib.md5(bytes(3 << 20) + b'x').hexdigest()}  -",
    ]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_in_volumes_and_binds_devices_and_set_user_id_bits_count_for_nothing(
    run: Imgfs, layout: Path, runtime: str, tmp_path: Path
) -> None:
    image = busybox(layout, "flags", Volumes={"/srv": {}})
    how = ("--runtime", runtime)
    assert flags(run, image, "/srv", *how) >= {"nosuid", "nodev", "rw"}
    assert flags(run, image, "/etc/hosts", *how) >= {"nosuid", "nodev"}
    assert flags(run, image, "/x", *how, "-v", f"{tmp_path}:/x") >= {"nosuid", "nodev", "rw"}
    assert flags(run, image, "/x", *how, "-v", f"{tmp_path}:/x:ro,noexec") >= {"nosuid", "noexec", "ro"}
    assert flags(run, image, "/x", *how, "--mount", f"type=bind,src={tmp_path},dst=/x") >= {"nosuid", "nodev"}
    assert flags(run, image, "/x", *how, "--tmpfs", "/x") >= {"nosuid", "nodev"}
    for lifted in (
        ("-v", f"{tmp_path}:/x:dev,suid"),
        ("--mount", f"type=bind,src={tmp_path},dst=/x,dev,suid"),
    ):
        assert not flags(run, image, "/x", *how, *lifted) & {"nosuid", "nodev"}
    shown = shell(run, image, "busybox head -c 2 /x | busybox wc -c", *how, "-v", "/dev/zero:/x")
    assert shown.text == "2\n"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_with_privileges_the_images_devices_can_be_opened(run: Imgfs, layout: Path, runtime: str) -> None:
    image = hostile(layout, *DEVICES)
    script = "busybox mount -t tmpfs none /srv && busybox mknod /srv/z c 1 5 && busybox head -c 2 /srv/z"
    assert shell(run, image, f"{script} | busybox wc -c", "--runtime", runtime, "--privileged").text == "2\n"


# What an image says of users, volumes and directories.

LINKS = [
    tar.symlink("dangling", "/nowhere/deep"),
    tar.symlink("loop", "loop"),
    tar.symlink("to-proc", "/proc"),
    tar.symlink("to-passwd", "/etc/passwd"),
    tar.symlink("out", "../../../../tmp"),
    tar.symlink("to-srv", "/srv"),
]


PASSWD: dict[str, tuple[bytes, str, int, str]] = {
    "directory": (tar.directory("etc/passwd"), "1000", 126, "/etc/passwd of the image: it is a directory"),
    "directory, root": (tar.directory("etc/passwd"), "", 126, "/etc/passwd of the image: it is a directory"),
    "fifo": (tar.fifo("etc/passwd"), "1000", 126, "/etc/passwd of the image: it is a FIFO"),
    "device": (tar.device("etc/passwd", "c", 1, 5), "web", 126, "/etc/passwd of the image: it is a device"),
    "into proc": (tar.symlink("etc/passwd", "/proc/self/mem"), "1000", 127, "leads to /proc/self/mem"),
    "into dev": (tar.symlink("etc/passwd", "../dev/zero"), "1000", 127, "leads to /dev/zero"),
    "out": (tar.symlink("etc/passwd", "../../../../etc/passwd"), "1000", 126, "Too many levels"),
    "loop": (tar.symlink("etc/passwd", "passwd"), "1000", 126, "Too many levels of symbolic links"),
    "dangling": (tar.symlink("etc/passwd", "/nowhere"), "1000", 0, ""),
    "dangling, by name": (tar.symlink("etc/passwd", "/nowhere"), "web", 126, "user 'web' is not in"),
    "huge": (tar.file("etc/passwd", b"x" * (4 << 20) + b":x:0:0"), "1000", 126, "it is larger than 4 MiB"),
    "a long line": (tar.file("etc/passwd", b"x" * 65_536), "1000", 126, "a line of more than 65535 bytes"),
    "a line": (tar.file("etc/passwd", b"x" * 65_535 + b"\n"), "1000", 0, ""),
    "other line ends": (tar.file("etc/passwd", b"a\x85web:x:0:0\r\x0cweb:x:0:0"), "web", 126, "user 'web'"),
}


@pytest.mark.parametrize("case", PASSWD)
def test_whatever_is_in_the_place_of_passwd_ends_in_a_line(run: Imgfs, layout: Path, case: str) -> None:
    member, user, code, said = PASSWD[case]
    image = hostile(layout, member, whiteouts=["etc/passwd"], User=user)
    if code:  # before there is a runtime
        assert said in run.run("run", image).complaint(code)
        return
    for runtime in filter(installed, ("crun", "runc")):
        ran = run.run("run", "--runtime", runtime, image)
        assert (ran.code, ran.text, ran.err) == (0, "/\n", "")


def test_a_group_that_is_no_file_ends_in_a_line_as_well(run: Imgfs, layout: Path) -> None:
    image = hostile(layout, tar.fifo("etc/group"), whiteouts=["etc/group"], User="1000:web")
    said = run.run("run", image).complaint(126)
    assert said == "/etc/group of the image: it is a FIFO, not a regular file"


CONFIGS: dict[str, tuple[str, str, int]] = {  # a volume or a directory, and the exit code
    "volume /proc": ("Volumes", "/proc", 126),
    "volume in /proc": ("Volumes", "/proc/sys", 126),
    "new volume in /proc": ("Volumes", "/proc/x", 126),
    "volume that leads to /proc": ("Volumes", "/to-proc", 126),
    "volume below a link to /proc": ("Volumes", "/to-proc/x", 126),
    "volume /dev": ("Volumes", "/dev", 127),
    "volume in /dev": ("Volumes", "/dev/x", 0),
    "volume /sys": ("Volumes", "/sys", 0),
    "volume /dev/shm": ("Volumes", "/dev/shm", 0),
    "volume /etc": ("Volumes", "/etc", 0),
    "volume that is a file": ("Volumes", "/etc/passwd", 126),
    "volume that leads to a file": ("Volumes", "/to-passwd", 126),
    "volume below a file": ("Volumes", "/etc/passwd/x", 126),
    "volume at a dangling link": ("Volumes", "/dangling", 0),
    "volume below a dangling link": ("Volumes", "/dangling/x", 0),
    "volume at a loop": ("Volumes", "/loop", 126),
    "volume below a loop": ("Volumes", "/loop/x", 126),
    "volume that leads to a directory": ("Volumes", "/to-srv", 0),
    "volume of a long name": ("Volumes", "/" + "a" * 300, 126),
    "volume like an option": ("Volumes", "/-rf", 0),
    "directory that is a file": ("WorkingDir", "/etc/passwd", 126),
    "directory below a file": ("WorkingDir", "/etc/passwd/x", 126),
    "directory at a loop": ("WorkingDir", "/loop", 126),
    "directory out of the image": ("WorkingDir", "/out/x", 0),
    "directory below a link": ("WorkingDir", "/to-srv/new", 0),
    "directory of a long name": ("WorkingDir", "/" + "a" * 300, 126),
    "directory in /proc": ("WorkingDir", "/proc/x", 127),
    "directory in /sys": ("WorkingDir", "/sys/x", 126),
    "directory in /dev": ("WorkingDir", "/dev/x", 0),
    "directory that is a device": ("WorkingDir", "/dev/null", 126),
    "directory of a descriptor": ("WorkingDir", "/proc/self/fd/7", 126),
    "directory that leads to /proc": ("WorkingDir", "/to-proc", 0),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_volume_or_a_directory_that_cannot_be_is_one_line_whichever_the_runtime(
    run: Imgfs, layout: Path, case: str
) -> None:
    image, code = configured(layout, case), CONFIGS[case][2]
    if code:  # before there is a runtime
        said = run.run("run", "--network", "none", image).complaint(code)
        assert said.startswith(("the volume /", "the working directory /", "the mount at /"))
        return
    for runtime in filter(installed, ("crun", "runc")):
        ran = run.run("run", "--network", "none", "--runtime", runtime, image)
        assert (ran.code, ran.err) == (0, ""), ran


@needs_podman
@pytest.mark.parametrize("case", CONFIGS)
def test_its_exit_code_is_podmans(run: Imgfs, podman: Sequence[str], layout: Path, case: str) -> None:
    image = configured(layout, case)
    pulled = run.program(*podman, "pull", "-q", image).text.strip()
    assert run.program(*podman, "run", *PODMAN, pulled).code == CONFIGS[case][2]


def configured(layout: Path, case: str) -> str:
    field, path, _ = CONFIGS[case]
    config: dict[str, Any] = {field: {path: {}} if field == "Volumes" else path}
    return hostile(layout, *LINKS, **config)


@pytest.mark.parametrize(
    "path",
    [
        "/proc/self/fd/3",
        "/proc/1/cwd",
        "/proc/thread-self/root",
        "/l/deep",
        "/dev/fd/7",
        "/d/fd/7",
        "/dev/stdin",
    ],
)
def test_no_directory_of_a_process_is_worked_in(run: Imgfs, layout: Path, path: str) -> None:
    """Runtimes have been led out of containers so (CVE-2024-21626)."""
    image = hostile(layout, tar.symlink("l", "proc/self/fd/8"), tar.symlink("d", "/dev"), WorkingDir=path)
    assert "it is a process's" in run.run("run", image).complaint(126)
    assert "it is a process's" in run.run("run", "-w", path, image).complaint(126)


@pytest.mark.parametrize("place", ["proc", "sys"])
def test_what_hides_files_of_the_kernels_leads_nowhere_else(run: Imgfs, layout: Path, place: str) -> None:
    said = run.run("run", hostile(layout, tar.symlink(place, "srv"))).complaint(126)
    assert said == f"/{place} of the image is a symbolic link: it has to be a directory"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_is_shown_goes_where_links_of_the_image_lead(
    run: Imgfs, layout: Path, runtime: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("here")
    image = hostile(layout, *LINKS)
    script = "cat /nowhere/deep /tmp/new/file /srv/x/file"
    shown = ("-v", f"{tmp_path}/file:/dangling", "-v", f"{tmp_path}:/out/new", "-v", f"{tmp_path}:/to-srv/x")
    ran = shell(run, image, script, "--runtime", runtime, *shown)
    assert (ran.code, ran.text, ran.err) == (0, "hereherehere", "")
    for wrong in (
        f"{tmp_path}:/etc/passwd",
        f"{tmp_path}/file:/srv",
        f"{tmp_path}:/loop",
        f"{tmp_path}:/proc",
    ):
        assert "the mount at /" in run.run("run", "--runtime", runtime, "-v", wrong, image).complaint(126)


BESIDE = (
    "busybox awk '{ print \"mount\", $5, $6 }' /proc/self/mountinfo; "
    "for d in $(busybox find /dev /zero /disk -type c -o -type b); "
    "do (: <$d) 2>/dev/null && echo opened $d; done; "
    "busybox find /proc/$$/fd -type l -exec echo open {} \\;; "
    "grep -e ^Cap -e ^NoNewPrivs -e ^Seccomp: -e ^Groups /proc/self/status | busybox sed 's/^/right /'"
)
STRICTER = {"/": {"nodev"}, **{key: {"nosuid", "nodev"} for key in ("/etc/hosts", "/etc/hostname")}}
STRICTER_THAN_5 = {  # which has no longer a /dev without programs, nor a mask on /sys/dev/block
    **STRICTER,
    "/dev": {"noexec"},
    "/sys/dev/block": {"ro", "relatime"},
}
NULL_OF_DEV = {
    key: {"noexec"} for key in ("/proc/keys", "/proc/timer_list")
}  # runc hides files by the container's
ONE_VERSION = ("unshare", "-m", "sh", "-c", 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"', "sh")


def beside(run: Imgfs, podman: Sequence[str], image: str, runtime: str, *options: str) -> list[str]:
    """What a container of podman's sees. crun wants cgroups of one version; imgfs sees to that by itself."""
    pulled = run.program(*podman, "pull", "-q", image).text.strip()
    words = [f"--runtime={runtime}" if word.startswith("--runtime=") else word for word in PODMAN]
    ran = run.program(*ONE_VERSION, *podman, "run", *words, *options, pulled, "sh", "-c", BESIDE)
    assert ran.code == 0, ran
    return ran.text.splitlines()


@needs_podman
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_rights_mounts_devices_and_descriptors_are_those_of_podman_run_or_fewer(
    run: Imgfs, podman: Sequence[str], layout: Path, runtime: str
) -> None:
    image = hostile(layout, *DEVICES, Volumes={"/srv": {}})
    theirs = beside(run, podman, image, runtime)
    ours = shell(run, image, BESIDE, "--network", "none", "--runtime", runtime).text.splitlines()
    assert set(listed(ours, "opened")) == set(listed(theirs, "opened")) - {"/zero"}  # by the cgroup alone
    descriptors, allowed = ({Path(path).name for path in listed(lines, "open")} for lines in (ours, theirs))
    assert {"0", "1", "2"} == descriptors <= allowed
    assert listed(ours, "right") == listed(theirs, "right")
    flags = {place: set(given.split(",")) for place, given in map(str.split, listed(theirs, "mount"))}
    stricter = STRICTER
    if podman_is_5():
        stricter = STRICTER_THAN_5 | (NULL_OF_DEV if runtime == "runc" else {})
    expected = {place: flags.get(place, set()) | stricter.get(place, set()) for place in {*flags, *stricter}}
    expected["/proc/interrupts"] = expected["/proc/keys"]  # newer engines hide it, too
    del expected["/run/.containerenv"]
    found = {place: set(given.split(",")) for place, given in map(str.split, listed(ours, "mount"))}
    assert found == expected


@needs_podman
@pytest.mark.skipif(not installed("crun"), reason="crun is not installed")
def test_without_a_device_cgroup_fewer_devices_can_be_opened_than_by_podman(
    run: Imgfs, podman: Sequence[str], layout: Path
) -> None:
    image = hostile(layout, *DEVICES)
    theirs = beside(run, podman, image, "crun", "--cgroups=disabled")
    words = run.command("run", "--runtime", "crun", "--network", "none", image, "sh", "-c", BESIDE)
    script = 'umount /sys/fs/cgroup/*; exec "$@"'
    ran = run.program("unshare", "-m", "sh", "-c", script, "sh", *words)
    assert ran.code == 0, ran
    ours = ran.text.splitlines()
    opened = listed(ours, "opened")
    assert set(opened) == {one for one in listed(theirs, "opened") if one.startswith("/dev/")}
    assert "/zero" in listed(theirs, "opened")  # which a device cgroup does not bar either
    assert listed(ours, "right") == listed(theirs, "right")


LABELS = {
    "run.oci.handler": "krun",
    "io.podman.annotations.privileged": "TRUE",
    "io.podman.annotations.seccomp": "unconfined",
    "io.containers.capabilities": "CAP_SYS_ADMIN",
    "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel": "true",
    "io.crun.keep_original_groups": "1",
    "org.systemd.property.TimeoutStopUSec": "uint64 1",
    "org.criu.config": "/x",
    "org.opencontainers.image.stopSignal": "KILL",
}
PODMANS = ("io.podman.", "io.kubernetes.cri-o.", "io.container.manager", "org.opencontainers.image.")
STOPPING_BY_5 = ("org.systemd.property.KillSignal", "org.systemd.property.TimeoutStopUSec")


@needs_podman
def test_annotations_are_those_of_podman_run(
    run: Imgfs, podman: Sequence[str], layout: Path, tmp_path: Path
) -> None:
    image = hostile(layout, Labels=LABELS, StopSignal="SIGQUIT")
    options = ("--annotation", "a=b", "--label", "c=d")
    pulled = run.program(*podman, "pull", "-q", image).text.strip()
    words = [word for word in PODMAN if word != "--rm"]
    made = run.program(*podman, "create", *words, "--annotation", "a=b", pulled).text.strip()
    try:
        assert run.program(*podman, "init", made).code == 0
        path = run.program(*podman, "inspect", "-f", "{{.OCIConfigPath}}", made).text.strip()
        theirs = json.loads(Path(path).read_text())["annotations"]
    finally:
        run.program(*podman, "rm", "-f", "-t", "0", made)
    run.ok("bundle", *options, image, tmp_path / "box")
    ours = json.loads((tmp_path / "box/config.json").read_text())["annotations"]
    run.ok("umount", tmp_path / "box/rootfs")
    assert ours["org.opencontainers.image.stopSignal"] == "SIGQUIT"
    assert not any(text in ours.values() for text in LABELS.values())
    assert {key: text for key, text in ours.items() if not key.startswith(PODMANS)} == {
        **{key: text for key, text in theirs.items() if not key.startswith((*PODMANS, *STOPPING_BY_5))},
        "c": "d",
    }


def listed(lines: Sequence[str], what: str) -> list[str]:
    return [line.removeprefix(f"{what} ") for line in lines if line.startswith(f"{what} ")]
