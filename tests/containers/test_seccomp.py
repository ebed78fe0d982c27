"""Seccomp profiles: what rules mean on a machine, with these capabilities; hostile ones; where it is."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import UsageError
from imgfs.runtime.devices import find_profile, this_machine
from imgfs.runtime.seccomp import Machine, SeccompFilter, built_in, parse_profile
from imgfs.runtime.security import UNCONFINED, Security

PC = Machine("x86_64", (6, 1))
PHONE = Machine("aarch64", (4, 7))
MAP = [
    {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
    {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
]


def profile(*syscalls: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls, **fields}).encode()


def allow(*names: str, **fields: Any) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW", **fields}


def allowed(body: bytes, machine: Machine, *capabilities: str) -> list[str]:
    """The names in the rules that hold."""
    found = parse_profile(body, "p", machine).filter(frozenset(capabilities))
    return [name for rule in found["syscalls"] for name in rule["names"]]


def test_rules_for_other_architectures_are_left_out() -> None:
    body = profile(
        allow("arch_prctl", includes={"arches": ["amd64", "x32"]}),
        allow("set_tls", includes={"arches": ["arm", "arm64"]}),
        allow("open", excludes={"arches": ["arm64"]}),
        allow("read"),
    )
    assert allowed(body, PC) == ["arch_prctl", "open", "read"]
    assert allowed(body, PHONE) == ["set_tls", "read"]
    assert allowed(body, Machine("vax", (6, 1))) == ["open", "read"]


def test_rules_depend_on_all_and_on_none_of_the_capabilities_they_name() -> None:
    both = ["CAP_SYS_ADMIN", "CAP_BPF"]
    body = profile(allow("bpf", includes={"caps": both}), allow("nope", excludes={"caps": both}))
    assert allowed(body, PC) == ["nope"]
    assert allowed(body, PC, "CAP_BPF") == []
    assert allowed(body, PC, *both) == ["bpf"]


def test_rules_depend_on_the_kernels_version_as_a_number() -> None:
    body = profile(
        allow("ptrace", includes={"minKernel": "4.8"}),
        allow("newer", includes={"minKernel": "4.10"}),
        allow("older", excludes={"minKernel": "4.8"}),
    )
    assert allowed(body, Machine("x86_64", (4, 9))) == ["ptrace"]
    assert allowed(body, PC) == ["ptrace", "newer"]
    assert allowed(body, PHONE) == ["older"]


def test_the_architectures_are_those_whose_programs_run_here() -> None:
    body = profile(archMap=MAP)
    by_machine = {
        name: parse_profile(body, "p", Machine(name, (6, 1))).settings.get("architectures")
        for name in ("x86_64", "aarch64", "s390x", "vax")
    }
    assert by_machine == {
        "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "s390x": None,
        "vax": None,
    }
    named = profile(architectures=["SCMP_ARCH_X86"])
    assert parse_profile(named, "p", PC).settings["architectures"] == ["SCMP_ARCH_X86"]


def test_errors_have_names_and_numbers_of_which_the_name_counts() -> None:
    body = profile(
        {"names": ["a"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "errno": "EINVAL"},
        {"names": ["b"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7},
        allow("c", errnoRet=7),
        defaultErrno="ENOSYS",
        defaultErrnoRet=1,
    )
    found = parse_profile(body, "p", PC).filter(frozenset())
    assert found["defaultErrnoRet"] == errno.ENOSYS
    assert [rule.get("errnoRet") for rule in found["syscalls"]] == [errno.EINVAL, 7, None]


def test_arguments_are_handed_on_without_what_says_nothing() -> None:
    masked = {"index": 1, "value": 8, "valueTwo": 9, "op": "SCMP_CMP_MASKED_EQ"}
    body = profile(
        allow("clone", args=[{"op": "SCMP_CMP_NE", "value": 1 << 63, "valueTwo": 0}, masked]),
        allow("read", args=None, comment="", includes={}, excludes=None),
        {"name": "old", "action": "SCMP_ACT_ALLOW"},
    )
    first, second, third = parse_profile(body, "p", PC).filter(frozenset())["syscalls"]
    assert first["args"] == [{"index": 0, "value": 1 << 63, "op": "SCMP_CMP_NE"}, masked]
    assert second == {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
    assert third["names"] == ["old"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "p: no seccomp profile: not JSON"),
        (b"[]", "p: no seccomp profile: expected an object"),
        (b"{}", "p: no seccomp profile.defaultAction: expected a string"),
        (profile(defaultAction="NO"), "p: no seccomp profile.defaultAction: 'NO' is not known here"),
        (
            profile(defaultErrno="ENO"),
            "p: no seccomp profile.defaultErrno: 'ENO' is not the name of an error",
        ),
        (profile(defaultErrno="errorcode"), "'errorcode' is not the name of an error"),
        (profile(defaultErrnoRet=5000), "profile.defaultErrnoRet: expected a number from 0 to 4095"),
        (profile(architectures=["A"], archMap=MAP), "either architectures or archMap, not both"),
        (profile(archMap=["x"]), "profile.archMap[0]: expected an object"),
        (profile({}), "profile.syscalls[0].names: a rule without system calls"),
        (profile(allow("")), "profile.syscalls[0].names: a rule without system calls"),
        (profile(allow("a", action="SCMP_ACT_NOTIFY")), "syscalls[0].action: 'SCMP_ACT_NOTIFY' is not known"),
        (profile(allow("a"), allow("b", args=[{"op": 1}])), "syscalls[1].args[0].op: expected a string"),
        (profile(allow("a", args=[{"op": "SCMP_CMP_EQ", "index": 6}])), "args[0].index: expected a number"),
        (
            profile(allow("a", args=[{"op": "SCMP_CMP_EQ", "value": True}])),
            "args[0].value: expected a number",
        ),
        (
            profile(allow("a", includes={"minKernel": "new"})),
            "includes.minKernel: 'new' is not a kernel version",
        ),
        (profile(allow("a", includes={"caps": "X"})), "syscalls[0].includes.caps: expected an array"),
        (b'{"defaultAction":' + b"[" * 100_000, "p: no seccomp profile: not JSON"),
    ],
)
def test_what_is_no_profile_is_one_line_that_says_where(body: bytes, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_profile(body, "p", PC)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


WORDS = (
    "defaultAction defaultErrno defaultErrnoRet archMap architectures subArchitectures architecture syscalls "
    "names name action args index value valueTwo op includes excludes caps arches minKernel errno errnoRet"
)
KEYS = st.sampled_from(WORDS.split())
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["SCMP_ACT_ERRNO", "SCMP_CMP_EQ", "EPERM", "4.8", "amd64", "SCMP_ARCH_X86_64", "\ud800"]
    )
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=30,
)


@given(fields=st.dictionaries(KEYS, JSON, max_size=8), machine=st.sampled_from([PC, PHONE]))
def test_a_profile_is_read_or_refused_in_one_line(fields: dict[str, Any], machine: Machine) -> None:
    body = json.dumps({"defaultAction": "SCMP_ACT_ERRNO", **fields}).encode()
    said = "p: no seccomp profile"
    found: SeccompFilter = {"defaultAction": "", "syscalls": []}
    try:
        found = parse_profile(body, "p", machine).filter(frozenset({"CAP_CHOWN"}))
    except UsageError as error:
        said = str(error)
    assert said.startswith("p: no seccomp profile")
    assert len(said.splitlines()) == 1
    json.dumps(found, ensure_ascii=False).encode()
    assert all(rule["names"] and rule["action"] for rule in found["syscalls"])


@given(body=st.binary(max_size=80))
def test_bytes_that_are_no_profile_are_refused(body: bytes) -> None:
    with pytest.raises(UsageError):
        parse_profile(body, "p", PC)


def test_without_a_profile_what_needs_a_capability_is_refused_without_it() -> None:
    def refused(*capabilities: str) -> set[str]:
        found = built_in(PC).filter(frozenset(capabilities))
        assert found["defaultAction"] == "SCMP_ACT_ALLOW"
        assert found["architectures"][0] == "SCMP_ARCH_X86_64"
        return {name for rule in found["syscalls"] for name in rule["names"]}

    assert {"keyctl", "kexec_load", "bpf", "init_module"} <= refused()
    assert "bpf" not in refused("CAP_SYS_ADMIN")
    assert "keyctl" in refused("CAP_SYS_ADMIN")
    assert "architectures" not in built_in(Machine("vax", (1, 0))).filter(frozenset())


def test_the_profile_is_the_one_named_else_the_first_on_this_machine_else_the_built_in(
    tmp_path: Path,
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(profile(allow(name)))
    here = (str(tmp_path / "none"), str(tmp_path / "one"), str(tmp_path / "two"))
    assert names(find_profile(Security(), here)) == ["one"]
    assert names(find_profile(Security(seccomp=here[2]), here)) == ["two"]
    assert find_profile(Security(), here[:1]) == built_in(this_machine())
    assert find_profile(Security(seccomp=UNCONFINED), here) is None
    assert find_profile(Security(privileged=True), here) is None


def names(found: Any) -> list[str]:
    return [name for rule in found.rules for name in rule.syscalls["names"]]


@pytest.mark.parametrize(
    ("path", "said"),
    [("/nowhere/p.json", "no such seccomp profile"), ("/", "/: Is a directory")],
)
def test_a_named_profile_that_cannot_be_read_is_one_line(path: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_profile(Security(seccomp=path))
