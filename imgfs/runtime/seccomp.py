"""Which system calls a container may make: a profile as podman and docker read it, turned into a runtime's.

A profile (containers-common's seccomp.json; docker's is a superset) lists rules, some of which hold only on
some architectures, kernels, or with or without some capabilities. What it means on this machine is a
`SeccompProfile`; with a container's capabilities that gives the `linux.seccomp` of the OCI runtime-spec
(config-linux.md, Seccomp). Nothing is looked at here: profiles are bytes.
"""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Mapping
from typing import NamedTuple, NotRequired, TypedDict

from imgfs.errors import InvalidImage, UsageError
from imgfs.oci.fields import list_in, object_at, parse_json, text_in, texts_in

PROFILES = ("/etc/containers/seccomp.json", "/usr/share/containers/seccomp.json")  # the first that exists
LARGEST = 4 << 20  # bytes of a profile: the usual ones have 16 KiB
_MOST_WORD, _MOST_ERRNO = (1 << 64) - 1, 4095  # MAX_ERRNO of linux/err.h
_KERNEL = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})")
_ARCHITECTURES = {  # uname(2)'s name: the profiles' name for it, which is mostly Go's, and libseccomp's
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "i686": ("x86", "SCMP_ARCH_X86"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "armv7l": ("arm", "SCMP_ARCH_ARM"),
    "armv6l": ("arm", "SCMP_ARCH_ARM"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
}
_ACTION_NAMES = "KILL KILL_PROCESS KILL_THREAD TRAP ERRNO TRACE ALLOW LOG"  # NOTIFY needs a listener
_ACTIONS = frozenset(f"SCMP_ACT_{name}" for name in _ACTION_NAMES.split())
_OPERATOR_NAMES = "NE LT LE EQ GE GT MASKED_EQ"
_OPERATORS = frozenset(f"SCMP_CMP_{name}" for name in _OPERATOR_NAMES.split())
_WITH_NUMBER = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
# The filter of machines that have no profile: what kernels have had holes in and no container needs, and what
# a capability is for, without it. Nothing else is refused.
_NEVER = (
    "add_key create_module get_kernel_syms keyctl kexec_file_load kexec_load migrate_pages move_pages "
    "nfsservctl query_module request_key swapoff swapon sysfs uselib userfaultfd ustat vm86 vm86old"
)
_WITHOUT = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": "bpf fanotify_init lookup_dcookie perf_event_open quotactl",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}
_FAMILIES = {  # whose programs a kernel of an architecture runs as well
    "SCMP_ARCH_X86_64": ("SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "SCMP_ARCH_AARCH64": ("SCMP_ARCH_ARM",),
    "SCMP_ARCH_S390X": ("SCMP_ARCH_S390",),
}


class Machine(NamedTuple):
    """What rules can depend on: uname(2)'s name of the architecture, and the kernel's version."""

    name: str
    kernel: tuple[int, int]

    @property
    def architecture(self) -> str:
        """What profiles call it."""
        return _ARCHITECTURES.get(self.name, (self.name, ""))[0]

    @property
    def libseccomp(self) -> str:
        """What libseccomp calls it, empty for an architecture not in the table."""
        return _ARCHITECTURES.get(self.name, ("", ""))[1]


class SeccompArgument(TypedDict):
    """What an argument of a system call is compared with."""

    index: int
    value: int
    op: str
    valueTwo: NotRequired[int]


class SeccompSyscalls(TypedDict):
    """What becomes of some system calls."""

    names: list[str]
    action: str
    errnoRet: NotRequired[int]
    args: NotRequired[list[SeccompArgument]]


class SeccompFilter(TypedDict):
    """The `linux.seccomp` of a config.json."""

    defaultAction: str
    defaultErrnoRet: NotRequired[int]
    architectures: NotRequired[list[str]]
    flags: NotRequired[list[str]]
    syscalls: list[SeccompSyscalls]


class SeccompRule(NamedTuple):
    """What becomes of system calls, with all of `needs` and none of `without` in the bounding set."""

    needs: frozenset[str]
    without: frozenset[str]
    syscalls: SeccompSyscalls


class SeccompProfile(NamedTuple):
    """A profile on one machine; `settings` are what does not depend on the container: no system calls."""

    settings: SeccompFilter
    rules: tuple[SeccompRule, ...]

    def filter(self, capabilities: frozenset[str]) -> SeccompFilter:
        """Return the `linux.seccomp` of a container with these capabilities in its bounding set."""
        held = [
            rule.syscalls
            for rule in self.rules
            if rule.needs <= capabilities and not rule.without & capabilities
        ]
        return {**self.settings, "syscalls": held}


def built_in(machine: Machine) -> SeccompProfile:
    """Return the filter where there is no profile: everything goes but what no container needs."""
    settings: SeccompFilter = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
    if machine.libseccomp:
        settings["architectures"] = [machine.libseccomp, *_FAMILIES.get(machine.libseccomp, ())]
    always = SeccompRule(frozenset(), frozenset(), _refused(_NEVER))
    others = (
        SeccompRule(frozenset(), frozenset({name}), _refused(names)) for name, names in _WITHOUT.items()
    )
    return SeccompProfile(settings, (always, *others))


@functools.lru_cache(maxsize=1)  # a server that forks for each container has read the usual one
def parse_profile(body: bytes, path: str, machine: Machine) -> SeccompProfile:
    """Return what a profile means on a machine; raises UsageError with its path and the place in it."""
    top = "profile"
    try:
        fields = object_at(parse_json(body, top), top)
        settings = _settings(fields, top, machine)
        found = [_rule(one, where, machine) for where, one in _objects(fields, "syscalls", top)]
    except InvalidImage as error:
        raise UsageError(f"{path}: no seccomp {error}") from error
    return SeccompProfile(settings, tuple(rule for rule in found if rule))


def _refused(names: str) -> SeccompSyscalls:
    return {"names": names.split(), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}


def _settings(fields: Mapping[str, object], top: str, machine: Machine) -> SeccompFilter:
    action = _one_of(_ACTIONS, fields, "defaultAction", top)
    found: SeccompFilter = {"defaultAction": action, "syscalls": []}
    number = _errno(fields, "defaultErrno", "defaultErrnoRet", top)
    if number is not None and found["defaultAction"] in _WITH_NUMBER:
        found["defaultErrnoRet"] = number
    named = texts_in(fields, "architectures", top)
    if named and list_in(fields, "archMap", top):
        raise InvalidImage("either architectures or archMap, not both", where=top)
    if architectures := named or _mapped(fields, top, machine):
        found["architectures"] = architectures
    if flags := texts_in(fields, "flags", top):
        found["flags"] = flags
    return found


def _mapped(fields: Mapping[str, object], top: str, machine: Machine) -> list[str]:
    """Return the architectures whose programs run here; without any libseccomp takes this machine's alone."""
    for where, one in _objects(fields, "archMap", top):
        name, others = text_in(one, "architecture", where), texts_in(one, "subArchitectures", where)
        if name == machine.libseccomp:
            return [name, *others]
    return []


class _Condition(NamedTuple):
    """When a rule holds, or does not; empty where it does not matter."""

    capabilities: frozenset[str]
    architectures: list[str]
    kernel: tuple[int, int] | None


def _rule(one: Mapping[str, object], where: str, machine: Machine) -> SeccompRule | None:
    """Return a rule, None if it does not hold on this machine."""
    wanted, unwanted = (_condition(one, name, f"{where}.{name}") for name in ("includes", "excludes"))
    syscalls = _syscalls(one, where)
    if wanted.architectures and machine.architecture not in wanted.architectures:
        return None
    if machine.architecture in unwanted.architectures:
        return None
    if machine.kernel < (wanted.kernel or (0, 0)) or (unwanted.kernel and machine.kernel >= unwanted.kernel):
        return None
    return SeccompRule(wanted.capabilities, unwanted.capabilities, syscalls)


def _condition(one: Mapping[str, object], name: str, where: str) -> _Condition:
    value = one.get(name)
    fields = {} if value is None else object_at(value, where)
    kernel = text_in(fields, "minKernel", where, default="")
    match = _KERNEL.match(kernel)
    if kernel and not match:
        raise InvalidImage(f"{kernel[:40]!r} is not a kernel version", where=f"{where}.minKernel")
    version = (int(match[1]), int(match[2])) if match else None
    return _Condition(frozenset(texts_in(fields, "caps", where)), texts_in(fields, "arches", where), version)


def _syscalls(one: Mapping[str, object], where: str) -> SeccompSyscalls:
    single = text_in(one, "name", where, default="")
    names = texts_in(one, "names", where) or ([single] if single else [])
    if not names or not all(names):
        raise InvalidImage("a rule without system calls", where=f"{where}.names")
    found: SeccompSyscalls = {"names": names, "action": _one_of(_ACTIONS, one, "action", where)}
    number = _errno(one, "errno", "errnoRet", where)
    if number is not None and found["action"] in _WITH_NUMBER:
        found["errnoRet"] = number
    if arguments := [_argument(value, place) for place, value in _objects(one, "args", where)]:
        found["args"] = arguments
    return found


def _argument(one: Mapping[str, object], where: str) -> SeccompArgument:
    found: SeccompArgument = {
        "index": _number(one, "index", where, 5) or 0,  # a system call has six arguments
        "value": _number(one, "value", where, _MOST_WORD) or 0,
        "op": _one_of(_OPERATORS, one, "op", where),
    }
    if second := _number(one, "valueTwo", where, _MOST_WORD):
        found["valueTwo"] = second
    return found


def _errno(fields: Mapping[str, object], name: str, number: str, where: str) -> int | None:
    """Return an error by its name, or by its number, which has a field of its own; the name counts."""
    text = text_in(fields, name, where, default="")
    if not text:
        return _number(fields, number, where, _MOST_ERRNO)
    found = getattr(errno, text, None) if text.startswith("E") else None
    if not isinstance(found, int):
        raise InvalidImage(f"{text[:40]!r} is not the name of an error", where=f"{where}.{name}")
    return found


def _one_of(known: frozenset[str], fields: Mapping[str, object], name: str, where: str) -> str:
    text = text_in(fields, name, where)
    if text not in known:
        raise InvalidImage(f"{text[:40]!r} is not known here", where=f"{where}.{name}")
    return text


def _number(fields: Mapping[str, object], name: str, where: str, most: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise InvalidImage(f"expected a number from 0 to {most}", where=f"{where}.{name}")
    return value


def _objects(fields: Mapping[str, object], name: str, where: str) -> list[tuple[str, Mapping[str, object]]]:
    """Return the objects of an array, each with its JSON path."""
    places = ((f"{where}.{name}[{n}]", value) for n, value in enumerate(list_in(fields, name, where)))
    return [(place, object_at(value, place)) for place, value in places]
