"""From an image's config to a config.json: commands, users, variables, mounts, limits; nothing runs."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from imgfs.errors import ImgfsError, InvalidImage, UsageError
from imgfs.oci.descriptor import Platform
from imgfs.oci.image import ImageConfig
from imgfs.owned.opening import NotRegular
from imgfs.runtime.host import Cgroups, bounding, find_cgroups, unenforced_limits, unmet_requests
from imgfs.runtime.host_facts import HostFacts, IdRange, id_ranges
from imgfs.runtime.request import Bind, ContainerRequest, ImageDefaults, Network, Tmpfs, check_name
from imgfs.runtime.resources import Resources, Ulimit
from imgfs.runtime.rootfs import Refused, Rootfs, check_command
from imgfs.runtime.security import CAPABILITIES, EVERY_CAPABILITY, Device, Security
from imgfs.runtime.signals import find_signal, signal_number
from imgfs.runtime.spec import Container, RuntimeConfig, runtime_config, with_nodev_root
from imgfs.runtime.user import User, find_user

PASSWD = b"root:x:0:0:root:/root:/bin/sh\n# web:x:1:1\nweb:x:33:34:web:/srv:/bin/sh\nbroken:x:a:b\n\nno:x:5\n"
GROUP = b"root:x:0:\nadm:x:4:root\nweb:x:34:\nextra:x:44:other,web\nbad:x:y:web\n"


def spec(
    config: Mapping[str, Any],
    request: ContainerRequest | None = None,
    *,
    user: User | None = None,
    host: HostFacts | None = None,
) -> dict[str, Any]:
    """The config.json of an image with this runtime part."""
    image = ImageConfig(Platform("linux", "amd64"), (), (), "2024-01-01T00:00:00Z", config, {})
    found = runtime_config(
        image, request or ContainerRequest(), Container("box", user or User(0, 0)), host or HostFacts()
    )
    return cast(dict[str, Any], found)


def args(config: Mapping[str, Any], **request: Any) -> list[str]:
    found: list[str] = spec(config, ContainerRequest(**request))["process"]["args"]
    return found


def env(config: Mapping[str, Any], **request: Any) -> dict[str, str]:
    pairs = (
        text.partition("=")
        for text in spec({"Cmd": ["a"], **config}, ContainerRequest(**request))["process"]["env"]
    )
    return {name: value for name, _, value in pairs}


def mounts(
    request: ContainerRequest | None = None, host: HostFacts | None = None
) -> dict[str, dict[str, Any]]:
    return {one["destination"]: one for one in spec({"Cmd": ["a"]}, request, host=host)["mounts"]}


@pytest.mark.parametrize(
    ("config", "requested", "expected"),
    [
        ({"Cmd": ["a", "b"]}, {}, ["a", "b"]),
        ({"Entrypoint": ["a"]}, {}, ["a"]),
        ({"Entrypoint": None, "Cmd": ["a"]}, {}, ["a"]),
        ({"Entrypoint": ["a"], "Cmd": ["b"]}, {}, ["a", "b"]),
        ({"Cmd": ["/bin/sh", "-c", "echo $HOME"]}, {}, ["/bin/sh", "-c", "echo $HOME"]),
        ({"Entrypoint": ["a"], "Cmd": ["b"]}, {"command": ("c",)}, ["a", "c"]),
        ({"Entrypoint": ["a"], "Cmd": ["b"]}, {"entrypoint": ("d",)}, ["d"]),
        ({"Entrypoint": ["a"], "Cmd": ["b"]}, {"entrypoint": ("d", "e"), "command": ("c",)}, ["d", "e", "c"]),
        ({"Entrypoint": ["a"], "Cmd": ["b"]}, {"entrypoint": (), "command": ("c",)}, ["c"]),
    ],
)
def test_the_command_is_made_of_entrypoint_and_cmd(
    config: dict[str, Any], requested: dict[str, Any], expected: list[str]
) -> None:
    assert args(config, **requested) == expected


@pytest.mark.parametrize(
    ("config", "requested"),
    [({}, {}), ({"Cmd": []}, {}), ({"Cmd": [""]}, {}), ({"Cmd": ["a"]}, {"entrypoint": ()})],
)
def test_without_a_command_the_user_is_asked_for_one(
    config: dict[str, Any], requested: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="names no command"):
        args(config, **requested)


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"Cmd": "sh"}, "config.config.Cmd"),
        ({"Entrypoint": [1]}, "config.config.Entrypoint"),
        ({"Cmd": ["a"], "Env": {"A": "1"}}, "config.config.Env"),
        ({"Cmd": ["a"], "Env": ["A=\0"]}, "config.config.Env"),
        ({"Cmd": ["a"], "User": 3}, "config.config.User"),
        ({"Cmd": ["a"], "Volumes": ["/a"]}, "config.config.Volumes"),
        ({"Cmd": ["a"], "Volumes": {"/x/..": {}}}, "config.config.Volumes"),
        ({"Cmd": ["a"], "WorkingDir": ["/"]}, "config.config.WorkingDir"),
    ],
)
def test_a_malformed_config_is_refused_with_its_place(config: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        spec(config)
    assert caught.value.where == where


def test_the_command_lines_variables_go_before_the_images_and_those_before_the_usual() -> None:
    found = env({"Env": ["A=1", "B=x=y", "C", "=z", "A=2", "E="]}, env={"B": "3", "D": ""})
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    usual = {"PATH": path, "TERM": "xterm", "container": "imgfs", "HOSTNAME": "box", "HOME": "/"}
    assert found == {**usual, "A": "2", "B": "3", "E": "", "D": ""}
    assert env({"Env": ["PATH=/bin", "HOME=/h", "HOSTNAME=n"]}).items() >= {
        ("PATH", "/bin"),
        ("HOME", "/h"),
        ("HOSTNAME", "n"),
    }


@pytest.mark.parametrize(
    ("workdir", "requested", "cwd"),
    [
        ("", None, "/"),
        ("srv/app", None, "/srv/app"),
        ("/a/../b//c/", None, "/b/c"),
        ("../..", None, "/"),
        ("//x", None, "/x"),
        ("/a", "/w", "/w"),
    ],
)
def test_the_working_directory_starts_from_the_images_root(
    workdir: str, requested: str | None, cwd: str
) -> None:
    assert (
        spec({"Cmd": ["a"], "WorkingDir": workdir}, ContainerRequest(workdir=requested))["process"]["cwd"]
        == cwd
    )


LABELS: Any = [
    {"a": "b", "org.opencontainers.image.created": "mine"},
    {"run.oci.seccomp.plugins": "/x.so", "run.oci.hooks.stdout": "/x", "run.oci.handler": "krun"},
    {"module.wasm.image/variant": "compat", "org.systemd.property.X": "'y'", "org.criu.config": "/x"},
    {"": None, "a": 1},
    ["no object"],
]


@pytest.mark.parametrize("labels", LABELS)
def test_no_label_of_an_image_becomes_an_annotation(labels: Any) -> None:
    assert spec({"Cmd": ["a"], "Labels": labels, "StopSignal": "SIGQUIT"})["annotations"] == {
        "org.opencontainers.image.created": "2024-01-01T00:00:00Z",
        "org.opencontainers.image.os": "linux",
        "org.opencontainers.image.architecture": "amd64",
        "org.opencontainers.image.stopSignal": "SIGQUIT",
    }


def test_only_root_has_capabilities_from_the_start_and_none_that_are_not_ours_to_give() -> None:
    host = HostFacts(capabilities=frozenset(CAPABILITIES) - {"CAP_CHOWN"})
    bounding_set = [name for name in CAPABILITIES if name != "CAP_CHOWN"]
    root = spec({"Cmd": ["a"]}, host=host)["process"]["capabilities"]
    assert root == {"bounding": bounding_set, "effective": bounding_set, "permitted": bounding_set}
    user = spec({"Cmd": ["a"]}, user=User(33, 34, (34, 44)), host=host)["process"]
    assert user["capabilities"] == {"bounding": bounding_set, "effective": [], "permitted": []}
    assert user["user"] == {"uid": 33, "gid": 34, "additionalGids": [34, 44], "umask": 0o022}


def test_limits_are_set_where_a_cgroup_can_hold_them() -> None:
    request = ContainerRequest(resources=Resources(memory=1 << 20, cpus=0.5))
    assert "resources" not in spec({"Cmd": ["a"]}, request)["linux"]
    host = HostFacts(cgroup="/imgfs-box", controllers=frozenset({"memory", "pids"}))
    linux = spec({"Cmd": ["a"]}, request, host=host)["linux"]
    assert linux["cgroupsPath"] == "/imgfs-box"
    assert set(linux["resources"]) == {"devices", "pids", "memory"}
    full = HostFacts(cgroup="/x", controllers=frozenset({"cpu"}))
    assert spec({"Cmd": ["a"]}, request, host=full)["linux"]["resources"]["cpu"] == {
        "quota": 50_000,
        "period": 100_000,
    }


def test_a_network_of_its_own_is_a_namespace() -> None:
    assert {"type": "network"} not in spec({"Cmd": ["a"]})["linux"]["namespaces"]
    alone = spec({"Cmd": ["a"]}, ContainerRequest(network=Network.NONE))["linux"]
    assert {"type": "network"} in alone["namespaces"]


def test_in_a_user_namespace_the_machines_network_means_its_sys() -> None:
    host = HostFacts(user_namespace=True, single_id=True)
    assert mounts(host=host)["/sys"]["type"] == "none"
    assert "gid=5" not in mounts(host=host)["/dev/pts"]["options"]
    assert mounts(ContainerRequest(network=Network.NONE), host)["/sys"]["type"] == "sysfs"
    assert "gid=5" in mounts()["/dev/pts"]["options"]


def test_a_user_namespace_to_be_made_maps_its_ids() -> None:
    host = HostFacts(maps=((IdRange(0, 1000, 1),), (IdRange(0, 100, 1), IdRange(1, 5000, 9))))
    linux = spec({"Cmd": ["a"]}, host=host)["linux"]
    assert {"type": "user"} in linux["namespaces"]
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 1000, "size": 1}]
    assert linux["gidMappings"][1] == {"containerID": 1, "hostID": 5000, "size": 9}


def test_mounts_lie_on_each_other_in_the_order_of_their_depth_and_the_users_win() -> None:
    request = ContainerRequest(
        binds=(Bind("/1", "/a/b/c"), Bind("/2", "/a", read_only=True), Bind("/3", "/etc/hosts")),
        tmpfs=(Tmpfs("/a/b", ("size=1m",)),),
    )
    image = ImageConfig(Platform("linux", "amd64"), (), (), None, {"Cmd": ["a"]}, {})
    container = Container("box", User(0, 0), (Bind("/ours", "/etc/hosts"), Bind("/vol", "/v")))
    found = runtime_config(image, request, container, HostFacts())["mounts"]
    requested = [
        one["destination"] for one in found if not one["destination"].startswith(("/proc", "/dev", "/sys"))
    ]
    assert requested.index("/a") < requested.index("/a/b") < requested.index("/a/b/c")
    by_place = {one["destination"]: one for one in found}
    assert by_place["/etc/hosts"]["source"] == "/3"
    assert by_place["/a"]["options"][-1] == "ro"
    assert by_place["/a/b"]["options"][-1] == "size=1m"


def test_a_read_only_container_has_places_to_write_as_podman_gives_it() -> None:
    found = mounts(ContainerRequest(read_only=True, binds=(Bind("/x", "/tmp"),)))
    assert found["/run"]["type"] == found["/var/tmp"]["type"] == "tmpfs"
    assert found["/tmp"]["source"] == "/x"


def test_volumes_that_something_else_is_mounted_on_are_not_made() -> None:
    defaults = ImageDefaults.parse({"Volumes": {"/a/": {}, "b": {}, "/c": None}})
    request = ContainerRequest(binds=(Bind("/x", "/a/"),), tmpfs=(Tmpfs("/c"),))
    assert request.volumes_over(defaults) == [Bind("", "/b")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", User(0, 0, (4,), "/root")),
        ("root", User(0, 0, (0, 4), "/root")),
        ("0", User(0, 0, (0, 4), "/root")),
        ("web", User(33, 34, (34, 44), "/srv")),
        ("33", User(33, 34, (34, 44), "/srv")),
        ("web:extra", User(33, 44, (44,), "/srv")),
        ("web:7", User(33, 7, (7,), "/srv")),
        ("1234", User(1234, 0, (0,), "/")),
        ("1234:extra", User(1234, 44, (44,), "/")),
        (":44", User(0, 44, (44,), "/root")),
        ("2147483647", User(2147483647, 0, (0,), "/")),
    ],
)
def test_users_are_found_by_name_and_by_number(text: str, expected: User) -> None:
    assert find_user(text, PASSWD, GROUP) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nobody", "user 'nobody' is not in the image's /etc/passwd"),
        ("broken", "user 'broken' is not in the image's /etc/passwd"),
        ("# web", "is not in the image's /etc/passwd"),
        ("web:nogroup", "group 'nogroup' is not in the image's /etc/group"),
        ("web:bad", "group 'bad' is not in the image's /etc/group"),
        ("2147483648", "user 2147483648 is larger than any"),
        ("0:" + "9" * 5000, "group 99999999999999999999 is larger than any"),
        ("-1", "user '-1' is not in the image's /etc/passwd"),
    ],
)
def test_users_and_groups_that_are_not_there_are_named(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_user(text, PASSWD, GROUP)
    assert said in str(caught.value)


def test_an_image_without_a_passwd_knows_numbers_only() -> None:
    assert find_user("", b"", b"") == User(0, 0, (), "/")
    assert find_user("5:6", b"", b"\xff\xfe:x:\n") == User(5, 6, (6,), "/")
    with pytest.raises(UsageError):
        find_user("root", b"", b"")


@pytest.fixture
def rootfs(tmp_path: Path) -> Rootfs:
    """An image with symlinks in all directions, and a file outside that nobody is to reach."""
    top = tmp_path / "top"
    (top / "etc").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    (top / "etc/real").write_bytes(b"inside")
    for name, target in {
        "etc/absolute": "/etc/real",
        "etc/up": "../../../../secret",
        "etc/outside": str(tmp_path / "secret"),
        "etc/loop": "loop",
        "dir": "etc/../etc/./",
        "etc/chain": "../dir/absolute",
    }.items():
        (top / name).symlink_to(target)
    os.mkfifo(top / "etc/fifo")
    return Rootfs(top)


def test_symlinks_are_followed_inside_the_image_only(rootfs: Rootfs) -> None:
    assert rootfs.read("/etc/absolute") == rootfs.read("etc/chain") == rootfs.read("/dir/real") == b"inside"
    assert rootfs.read("/etc/up") == rootfs.read("/etc/outside") == b""
    assert rootfs.host_path("/etc/up") == rootfs.top / "secret"
    assert rootfs.host_path("/../../x/../y") == rootfs.top / "y"


def test_what_is_missing_reads_as_nothing_and_what_is_no_file_or_a_circle_is_an_error(rootfs: Rootfs) -> None:
    assert rootfs.read("/nowhere/x") == rootfs.read("/etc/real/x") == b""
    for path, said in {"/etc/fifo": "a FIFO", "/dir": "a directory"}.items():
        with pytest.raises(NotRegular, match=f"it is {said}, not a regular file"):
            rootfs.read(path)
    with pytest.raises(OSError, match="symbolic links") as caught:
        rootfs.read("/etc/loop")
    assert caught.value.errno == errno.ELOOP


def test_a_directory_is_made_inside_the_image(rootfs: Rootfs, tmp_path: Path) -> None:
    rootfs.make_directory("/dir/new/deep", None)
    assert (rootfs.top / "etc/new/deep").is_dir()
    rootfs.make_directory("/etc/outside/x", None)
    assert (tmp_path / "secret").read_bytes() == b"secret"
    with pytest.raises(FileExistsError):
        rootfs.make_directory("/etc/real", None)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("run", None),
        ("/bin/run", None),
        ("../bin/run", None),
        ("data", 127),
        ("/bin/data", 126),
        ("/bin", 126),
        ("no", 127),
    ],
)
def test_a_command_is_looked_for_before_it_is_started(
    tmp_path: Path, command: str, expected: int | None
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/run").touch(0o755)
    (tmp_path / "bin/data").touch(0o644)
    config = {"process": {"args": [command], "cwd": "/srv", "env": ["PATH=/sbin:/bin"]}}
    code = None
    try:
        check_command(Rootfs(tmp_path), cast(RuntimeConfig, config), ContainerRequest())
    except Refused as refused:
        code = refused.code
    assert code == expected
    check_command(Rootfs(tmp_path), cast(RuntimeConfig, config), ContainerRequest(binds=(Bind("/x", "/y"),)))


V1 = "30 25 0:26 / {at} rw shared:9 - cgroup cgroup rw,{name}\n"
V2 = "31 25 0:27 / {at} rw - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    V1.format(at="/c/memory", name="memory")
    + V1.format(at="/c/cpu", name="cpu,cpuacct")
    + V2.format(at="/c/unified")
)


def test_with_version_1_cgroups_are_made_where_all_hierarchies_can_be_written() -> None:
    found = find_cgroups(HYBRID, "", lambda _: True, lambda _: None)
    assert (found.parent, found.unified, found.hidden) == ("", False, "/c/unified")
    assert {"memory", "cpu"} <= found.controllers
    assert find_cgroups(HYBRID, "", lambda path: path != "/c/cpu", lambda _: None).parent is None


def test_with_version_2_an_ordinary_user_has_what_is_delegated_to_him() -> None:
    mine = "/user.slice/user@7.service/app"
    files = {
        f"/c{mine}/cgroup.type": ["domain"],
        f"/c{mine}/cgroup.subtree_control": ["memory", "pids"],
        f"/c{mine}/cgroup.controllers": ["cpu", "memory", "pids"],
    }
    found = find_cgroups(V2.format(at="/c"), f"0::{mine}\n", lambda path: mine in path, files.get)
    assert found == Cgroups(mine, frozenset({"memory", "pids"}), unified=True)
    assert find_cgroups(V2.format(at="/c"), f"0::{mine}\n", lambda _: False, files.get) == Cgroups(
        unified=True
    )


def test_with_version_2_root_has_the_top() -> None:
    files = {"/c/cgroup.controllers": ["cpu", "memory"], "/c/cgroup.subtree_control": []}
    found = find_cgroups(V2.format(at="/c"), "0::/x\n", lambda _: True, files.get)
    assert found == Cgroups("", frozenset({"cpu", "memory"}), unified=True)
    assert find_cgroups("", "", lambda _: True, files.get) == Cgroups()


@pytest.mark.parametrize(
    ("cgroups", "said"),
    [
        (Cgroups(), "no limit of memory and cpu is enforced: cgroups cannot be written"),
        (
            Cgroups("", frozenset({"cpu"})),
            "no limit of memory is enforced: its cgroup controller is not here",
        ),
        (Cgroups("", frozenset({"cpu", "memory"})), None),
    ],
)
def test_limits_that_do_not_hold_are_named(cgroups: Cgroups, said: str | None) -> None:
    assert unenforced_limits({"memory": 1, "cpu": 0.5}, cgroups) == said
    assert unenforced_limits({"memory": None, "cpu": None}, cgroups) is None


def test_ranges_of_ids_are_laid_end_to_end() -> None:
    text = "root:1:1\nme:100000:1000\nyou:5:5\n1000:200000:70000\nme:x:y\nme:9:9\n"
    assert id_ranges(text, ("me", "1000")) == (IdRange(1, 100_000, 1000), IdRange(1001, 200_000, 64_536))
    assert id_ranges(text, ("nobody",)) == ()


def test_capabilities_come_from_the_bounding_set() -> None:
    assert bounding("Name:\tx\nCapBnd:\t00000000000000c1\n") == {"CAP_CHOWN", "CAP_SETGID", "CAP_SETUID"}
    assert bounding("CapBnd:\t000001ffffffffff\n") == set(EVERY_CAPABILITY) > set(CAPABILITIES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SIGQUIT", signal.SIGQUIT),
        ("int", signal.SIGINT),
        ("9", 9),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("RTMAX-1", signal.SIGRTMAX - 1),
        ("SIGRTMIN+99", signal.SIGTERM),
        ("", signal.SIGTERM),
        ("SIG_IGN", signal.SIGTERM),
        ("99999999", signal.SIGTERM),
    ],
)
def test_stop_signals_have_names_and_numbers(text: str, expected: int) -> None:
    assert signal_number(text) == expected


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a" * 64, "a b", "é"])
def test_what_is_no_name_for_a_container_is_refused(name: str) -> None:
    with pytest.raises(ImgfsError, match="is not a name for a container"):
        check_name(name)


def test_limits_of_processes_are_those_of_setrlimit() -> None:
    ulimits = (Ulimit("nofile", 10, 20), Ulimit("core", -1, -1))
    process = spec({"Cmd": ["a"]}, ContainerRequest(resources=Resources(ulimits=ulimits)))["process"]
    assert process["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
        {"type": "RLIMIT_CORE", "soft": (1 << 64) - 1, "hard": (1 << 64) - 1},
    ]
    assert "rlimits" not in spec({"Cmd": ["a"]})["process"]


def test_limits_that_cannot_be_raised_are_lowered_and_named() -> None:
    request = ContainerRequest(
        resources=Resources(ulimits=(Ulimit("nofile", 10, -1), Ulimit("nproc", 5, 6))),
        security=Security(added=("CAP_SYS_ADMIN", "ALL")),
    )
    resources = {"nofile": 15, "nproc": -1}
    host = HostFacts(ceilings=resources, capabilities=frozenset(), mount_program="/bin/mount")
    capped_ulimits = spec({"Cmd": ["a"]}, request, host=host)["process"]["rlimits"]
    assert [(one["soft"], one["hard"]) for one in capped_ulimits] == [(10, 15), (5, 6)]
    assert unmet_requests(request, host, Cgroups()) == [
        "CAP_SYS_ADMIN cannot be given: imgfs itself has no such capability",
        "the limit of nofile is 10:15: raising it needs CAP_SYS_RESOURCE",
    ]


def test_without_mount_8_it_is_said_that_the_images_devices_are_not_barred() -> None:
    line = "device files of the image are not barred: there is no mount(8) (Debian: apt install mount)"
    maps = ((IdRange(0, 1000, 1),), (IdRange(0, 1000, 1),))
    assert unmet_requests(ContainerRequest(), HostFacts(), Cgroups()) == [line]
    assert unmet_requests(ContainerRequest(), HostFacts(mount_program="/bin/mount"), Cgroups()) == []
    assert (
        unmet_requests(ContainerRequest(), HostFacts(maps=maps), Cgroups()) == []
    )  # the kernel opens none there
    assert unmet_requests(ContainerRequest(), HostFacts(user_namespace=True, single_id=True), Cgroups()) == []
    assert unmet_requests(ContainerRequest(security=Security(privileged=True)), HostFacts(), Cgroups()) == []


def test_how_many_processes_there_may_be_is_limited_by_itself() -> None:
    host = HostFacts(cgroup="/x", controllers=frozenset({"pids"}))

    def limit(pids: int | None) -> object:
        return spec({"Cmd": ["a"]}, ContainerRequest(resources=Resources(pids=pids)), host=host)["linux"][
            "resources"
        ].get("pids")

    assert (limit(None), limit(7), limit(-1)) == ({"limit": 2048}, {"limit": 7}, None)


HOLE = Device("/dev/null", "/dev/hole", "c", 1, 3, 0o20666, 0, 0, "rw")


def test_devices_are_made_or_in_a_user_namespace_shown() -> None:
    request, cgroup = ContainerRequest(), "/x"
    linux = spec({"Cmd": ["a"]}, request, host=HostFacts(devices=(HOLE,), cgroup=cgroup))["linux"]
    assert linux["devices"][0].items() >= {"path": "/dev/hole", "type": "c", "major": 1, "minor": 3}.items()
    assert linux["resources"]["devices"] == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
    ]
    host = HostFacts(devices=(HOLE,), user_namespace=True)
    assert mounts(request, host)["/dev/hole"]["source"] == "/dev/null"
    assert "devices" not in spec({"Cmd": ["a"]}, request, host=host)["linux"]
    no_device_cgroup = HostFacts(devices=(HOLE,), cgroup=cgroup, no_device_cgroup="cgroups cannot be written")
    assert "devices" not in spec({"Cmd": ["a"]}, request, host=no_device_cgroup)["linux"]["resources"]


def test_an_init_goes_before_the_command() -> None:
    host = HostFacts(init="/bin/tini")
    assert spec({"Cmd": ["a", "b"]}, ContainerRequest(init=True), host=host)["process"]["args"] == [
        "/run/imgfs-init",
        "--",
        "a",
        "b",
    ]
    shown = mounts(ContainerRequest(init=True), host)["/run/imgfs-init"]
    assert (shown["source"], shown["options"][-1]) == ("/bin/tini", "ro")


def test_what_the_user_notes_goes_before_what_the_image_says() -> None:
    request = ContainerRequest(annotations={"a": "mine", "c": "d"}, stop_signal="INT")
    annotations = spec({"Cmd": ["a"], "StopSignal": "QUIT"}, request)["annotations"]
    assert (
        annotations.items() >= {"a": "mine", "c": "d", "org.opencontainers.image.stopSignal": "INT"}.items()
    )


def test_further_groups_are_found_as_others_are() -> None:
    assert find_user("web", PASSWD, GROUP, ["extra", "7", "web"]).groups == (34, 44, 7)
    with pytest.raises(UsageError, match="group 'nogroup' is not in the image's"):
        find_user("web", PASSWD, GROUP, ["nogroup"])


def test_a_terminal_begins_with_the_size_of_ours() -> None:
    process = spec({"Cmd": ["a"]}, ContainerRequest(terminal=True), host=HostFacts(console=(80, 24)))[
        "process"
    ]
    assert process["consoleSize"] == {"width": 80, "height": 24}


@pytest.mark.parametrize("text", ["STOPPED", "", "0", "65", "-1", "٣", "SIG", "RTMIN+31", "_DFL"])
def test_what_is_no_signal_is_none(text: str) -> None:
    assert find_signal(text) is None


@pytest.mark.parametrize(
    "state", [b"", b"{}", b'{"id":"box"}\n', b'{"annotations":"' + b"x" * 100_000 + b'"}']
)
def test_the_hook_takes_the_whole_state_before_it_acts(tmp_path: Path, state: bytes) -> None:
    """crun starts no container whose hook ends before it has written the state: mount(8) is often faster."""
    program = tmp_path / "mount"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/said\n')
    program.chmod(0o755)
    config = cast(RuntimeConfig, spec({"Cmd": ["a"]}, ContainerRequest(read_only=True)))
    hooks = with_nodev_root(config, tmp_path / "a root", str(program)).get("hooks", {})
    hook = cast(dict[str, Any], hooks["createContainer"][0])
    with subprocess.Popen(hook["args"], executable=hook["path"], env={}, stdin=subprocess.PIPE) as running:
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(timeout=0.3)
        assert not (tmp_path / "said").exists()
        running.communicate(state, timeout=30)
    assert running.returncode == 0
    said = (tmp_path / "said").read_text().splitlines()
    assert said == ["-n", "-o", "remount,bind,nodev,ro", "none", f"{tmp_path}/a root"]
