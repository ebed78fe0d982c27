"""Files that describe devices (CDI): read, refused with the place of a fault, and chosen by directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imgfs.errors import UsageError
from imgfs.runtime.cdi import CdiFault, CdiRegistry, parse_file
from imgfs.runtime.cdi_names import gpu_names, is_cdi_name
from imgfs.runtime.devices import find_devices
from imgfs.runtime.edits import ContainerEdits, DeviceNode, EditMount, Hook
from imgfs.runtime.host_facts import HostFacts
from imgfs.runtime.request import Bind, ContainerRequest
from imgfs.runtime.rootfs import Refused
from imgfs.runtime.security import Security
from imgfs.runtime.spec import requested_mounts

YAML = """\
cdiVersion: "0.7.0"
kind: acme.com/gizmo
containerEdits:
  env: [SPEC=1, FOO=spec]
  additionalGids: [0, 44]
devices:
- name: "0"
  containerEdits:
    env: [FOO=device]
    deviceNodes:
    - {path: /dev/gizmo, hostPath: /dev/zero, permissions: rw, fileMode: 0640, uid: 5}
    mounts:
    - {hostPath: /usr/lib/gizmo, containerPath: /opt/gizmo, options: [ro, bind]}
    hooks:
    - {hookName: createContainer, path: /bin/true, args: [true, x], env: [A=B], timeout: 3}
    intelRdt: {closID: class, enableCMT: true}
- name: all
"""
EDITS = ContainerEdits(
    {"SPEC": "1", "FOO": "device"},
    (DeviceNode("/dev/gizmo", "/dev/zero", "", 0, 0, 0o640, 5, None, "rw"),),
    (EditMount("/opt/gizmo", "/usr/lib/gizmo", "bind", ("ro", "bind")),),
    (Hook("createContainer", "/bin/true", ("true", "x"), ("A=B",), 3),),
    (44,),
    {"closID": "class", "enableCMT": True},
)


def file(kind: str = "acme.com/gizmo", name: str = "one", **edits: Any) -> dict[str, Any]:
    return {"cdiVersion": "0.6.0", "kind": kind, "devices": [{"name": name, "containerEdits": edits}]}


def put(directory: Path, name: str, document: object) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(document if isinstance(document, str) else json.dumps(document))
    return directory


def test_a_files_edits_are_made_once_and_the_devices_after_them(tmp_path: Path) -> None:
    text = YAML.replace("[true, x]", '["true", x]')
    registry = CdiRegistry.read([str(put(tmp_path / "a", "gizmo.yaml", text))])
    assert registry.faults == []
    assert registry.edits(["acme.com/gizmo=0", "acme.com/gizmo=all", "acme.com/gizmo=0"]) == EDITS
    assert registry.edits(["acme.com/gizmo=all", "acme.com/gizmo=0"]).env["FOO"] == "device"
    assert EDITS.hooks_by_time() == {
        "createContainer": [{"path": "/bin/true", "args": ["true", "x"], "env": ["A=B"], "timeout": 3}]
    }


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    import yaml

    document = yaml.safe_load(YAML.replace("[true, x]", '["true", x]'))
    registry = CdiRegistry.read([str(put(tmp_path / "a", "gizmo.json", document))])
    assert registry.edits(["acme.com/gizmo=0"]) == EDITS


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no version": ({"cdiVersion": None}, "cdiVersion: a version"),
    "version as a number": ({"cdiVersion": 0.5}, "cdiVersion: expected text"),
    "a later version": ({"cdiVersion": "2.0.0"}, "cdiVersion: a version"),
    "kind": ({"kind": "acme"}, "kind: 'acme' is not vendor.com/class"),
    "unknown field": ({"extra": 1}, "extra: no such field"),
    "no list": ({"devices": {}}, "devices: expected a list"),
    "no object": ({"devices": ["x"]}, "devices[0]: expected an object"),
    "name": ({"devices": [{"name": "a b"}]}, "devices[0].name: 'a b' is not a name"),
    "name with a NUL": ({"devices": [{"name": "a\0"}]}, "devices[0].name: expected text"),
    "twice": ({"devices": [{"name": "a"}, {"name": "a"}]}, "devices[1].name: 'a' is there twice"),
    "env": ({"containerEdits": {"env": ["X"]}}, "containerEdits.env: a variable is"),
    "env no text": ({"containerEdits": {"env": [1]}}, "containerEdits.env[0]: expected text"),
    "relative node": (
        {"containerEdits": {"deviceNodes": [{"path": "x"}]}},
        "deviceNodes[0].path: expected a path",
    ),
    "type": ({"containerEdits": {"deviceNodes": [{"path": "/x", "type": "d"}]}}, "type: 'd' is not"),
    "access": ({"containerEdits": {"deviceNodes": [{"path": "/x", "permissions": "x"}]}}, "permissions: 'x'"),
    "number": ({"containerEdits": {"deviceNodes": [{"path": "/x", "uid": -1}]}}, "uid: expected a number"),
    "truth": (
        {"containerEdits": {"deviceNodes": [{"path": "/x", "major": True}]}},
        "major: expected a number",
    ),
    "group": ({"containerEdits": {"additionalGids": [2**32]}}, "additionalGids[0]: expected a number"),
    "mount": ({"containerEdits": {"mounts": [{"containerPath": "/x"}]}}, "mounts[0].hostPath: it is missing"),
    "hook": (
        {"containerEdits": {"hooks": [{"hookName": "before", "path": "/x"}]}},
        "hookName: 'before' is none",
    ),
    "hook's path": (
        {"containerEdits": {"hooks": [{"hookName": "prestart", "path": "x"}]}},
        "path: expected a path",
    ),
    "interfaces": ({"containerEdits": {"netDevices": [{"name": "x"}]}}, "netDevices: a container has no"),
    "rdt": ({"containerEdits": {"intelRdt": {"enableCMT": "x"}}}, "enableCMT: expected true or false"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_told_with_its_place(case: str) -> None:
    change, said = FAULTS[case]
    with pytest.raises(CdiFault) as caught:
        parse_file("x.json", {**file(), **change})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "body", ["{", "[]", "", '{"a": \xff}', "[" * 100_000, "a: *b", "a: !!python/object:x {}"]
)
@pytest.mark.parametrize("name", ["x.json", "x.yaml"])
def test_a_file_that_is_none_is_passed_over(tmp_path: Path, name: str, body: str) -> None:
    put(tmp_path / "a", "good.json", file(env=["A=1"]))
    (tmp_path / "a" / name).write_bytes(body.encode("latin-1"))
    registry = CdiRegistry.read([str(tmp_path / "a")])
    assert registry.edits(["acme.com/gizmo=one"]).env == {"A": "1"}
    assert [fault.partition(":")[0] for fault in registry.faults] == [f"{tmp_path}/a/{name} is passed over"]
    with pytest.raises(Refused) as caught:
        registry.edits(["acme.com/gizmo=two"])
    assert "\n" not in str(caught.value)


def test_the_later_directory_goes_first_and_two_in_one_are_none(tmp_path: Path) -> None:
    put(tmp_path / "etc", "a.json", file(env=["FROM=etc"]))
    put(tmp_path / "run", "b.json", file(env=["FROM=run"]))
    places = [str(tmp_path / "etc"), str(tmp_path / "nowhere"), str(tmp_path / "run")]
    assert CdiRegistry.read(places).edits(["acme.com/gizmo=one"]).env == {"FROM": "run"}
    put(tmp_path / "etc", "c.json", file(env=["FROM=etc"]))
    with pytest.raises(
        Refused, match=r"unresolvable CDI devices acme.com/gizmo=one .*a.json and .*c.json both"
    ):
        CdiRegistry.read(places).edits(["acme.com/gizmo=one"])


def test_an_unknown_device_is_told_with_those_that_are_known(tmp_path: Path) -> None:
    here = put(tmp_path / "a", "a.json", file())
    with pytest.raises(Refused) as caught:
        CdiRegistry.read([str(here)]).edits(["acme.com/gizmo=2", "acme.com/x=1"])
    said = (
        "setting up CDI devices: unresolvable CDI devices acme.com/gizmo=2, acme.com/x=1 "
        "(known: acme.com/gizmo=one)"
    )
    assert (str(caught.value), caught.value.code) == (said, 126)
    with pytest.raises(Refused, match=r"\(none are described on this machine\)"):
        CdiRegistry.read([]).edits(["acme.com/gizmo=2"])


def test_what_names_a_device_and_what_is_a_path() -> None:
    names = ["nvidia.com/gpu=all", "a/b=0", "vendor.com/my-class_x=GPU-1:2.3"]
    paths = ["/dev/null", "/dev/a=b", "a/b=", "a/=x", "/b=x", "1a/b=x", "a/b=x:", "a/b=x y", "a/b/c=x"]
    assert [one for one in (*names, *paths) if is_cdi_name(one)] == names


def test_gpus_are_devices_of_nvidias() -> None:
    assert gpu_names("all") == ["nvidia.com/gpu=all"]
    assert (
        gpu_names("0,GPU-a1")
        == gpu_names('"device=0,GPU-a1"')
        == ["nvidia.com/gpu=0", "nvidia.com/gpu=GPU-a1"]
    )
    for wrong in ("", "0,", "a b", "capabilities=utility"):
        with pytest.raises(UsageError, match="names no GPUs"):
            gpu_names(wrong)


def test_what_a_node_does_not_say_is_as_on_this_machine() -> None:
    null, fifo = DeviceNode("/dev/x", "/dev/null"), DeviceNode("/dev/f", "/nowhere", "p")
    made = find_devices(Security(), [null, fifo], is_root=True)
    assert [(one.kind, one.major, one.minor, one.mode, one.uid) for one in made] == [
        ("c", 1, 3, 0o666, None),
        ("p", 0, 0, 0o666, None),
    ]
    explicit = DeviceNode("/dev/x", "/nowhere", "c", 1, 5)
    assert find_devices(Security(), [explicit], is_root=True)[0].minor == 5
    with pytest.raises(Refused, match="/nowhere: No such file") as caught:
        find_devices(Security(), [explicit], is_root=False)  # it is shown, not made
    assert caught.value.code == 127
    with pytest.raises(Refused, match="not a device file of type b"):
        find_devices(Security(), [null._replace(kind="b")], is_root=True)
    with pytest.raises(Refused, match=r"not a device file$"):
        find_devices(Security(), [null._replace(host_path="/etc/passwd")], is_root=True)


def test_a_devices_mount_goes_before_all_others_at_its_place() -> None:
    request = ContainerRequest(binds=(Bind("/mine", "/opt"), Bind("/mine", "/opt/a/b")))
    edits = (EditMount("/opt", "/theirs", "bind", ("ro", "bind")), EditMount("/opt/a", "none", "tmpfs", ()))
    found = [(one["destination"], one["source"]) for one in requested_mounts(request, (), edits)]
    assert found == [("/opt", "/theirs"), ("/opt/a", "none"), ("/opt/a/b", "/mine")]
    assert not HostFacts().edits
