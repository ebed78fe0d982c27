"""The options of run and bundle for what a container may do, and how much it may use."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from imgfs.cli.options import memory, refusal
from imgfs.errors import UsageError
from imgfs.runtime.cdi_names import gpu_names, is_cdi_name
from imgfs.runtime.resources import ULIMITS, UNLIMITED, Resources, Ulimit
from imgfs.runtime.security import DeviceRequest, Security, capability

if TYPE_CHECKING:
    import argparse

_ULIMIT = re.compile(r"([a-z]+)=(-1|[0-9]{1,18}|unlimited)(?::(-1|[0-9]{1,18}|unlimited))?")


_ACCESS = re.compile(r"[rwm]{1,3}")


_AS_IT_IS = ("apparmor=unconfined", "label=disable")  # there are no labels and no profiles of AppArmor's


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Turn a UsageError into argparse's error for a value."""
    try:
        yield
    except UsageError as error:
        raise refusal(str(error)) from error


def rights_options(command: argparse.ArgumentParser) -> None:
    """Add the options for capabilities, devices, groups, seccomp and masked paths."""
    command.add_argument(
        "--cap-add",
        metavar="NAME",
        action="extend",
        type=_capabilities,
        default=[],
        help="add a capability: NET_ADMIN, or ALL",
    )
    command.add_argument(
        "--cap-drop",
        metavar="NAME",
        action="extend",
        type=_capabilities,
        default=[],
        help="drop a capability, or ALL",
    )
    _device_options(command)
    command.add_argument(
        "--group-add",
        metavar="GROUP",
        action="append",
        default=[],
        help="add a supplementary group, by name or number",
    )
    command.add_argument(
        "--security-opt",
        metavar="OPT",
        action="append",
        type=_security,
        default=[],
        help="seccomp=FILE (default: podman's on this machine), seccomp=unconfined, no-new-privileges, "
        "mask=PATH, unmask=PATH, unmask=ALL",
    )
    command.add_argument(
        "--privileged",
        action="store_true",
        help="no seccomp filter, all capabilities and devices, /proc and /sys unmasked: started by root, it "
        "can do anything to this machine",
    )


def _device_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device",
        metavar="SRC[:DST][:rwm]|NAME",
        action="extend",
        type=_devices,
        default=[],
        help="let it use a device of this machine: /dev/fuse, or one described in /etc/cdi or /var/run/cdi: "
        "nvidia.com/gpu=all",
    )
    command.add_argument(
        "--gpus",
        metavar="all|ID,…",
        action="extend",
        type=_gpus,
        default=[],
        help="the same as --device nvidia.com/gpu=ID",
    )
    command.add_argument(
        "--cdi-spec-dir",
        metavar="DIR",
        action="append",
        default=[],
        help="where devices with names are described, instead of /etc/cdi and /var/run/cdi",
    )


def limit_options(command: argparse.ArgumentParser) -> None:
    """Add the options for memory, processors, processes and ulimits."""
    add = command.add_argument
    add("-m", "--memory", metavar="SIZE", type=memory, help="limit its memory: 512m, 2g")
    add("--cpus", metavar="N", type=_cpus, help="limit its CPU time, in processors: 0.5, 2")
    add(
        "--pids-limit",
        metavar="N",
        type=_count,
        help="limit its number of processes (default: 2048; -1: no limit)",
    )
    add("--shm-size", metavar="SIZE", type=memory, help="the size of /dev/shm (default: 64m)")
    add(
        "--ulimit",
        metavar="NAME=SOFT[:HARD]",
        action="append",
        type=_ulimit,
        default=[],
        help="set a limit of each process: nofile=1024:4096, core=-1",
    )


def security_of(options: argparse.Namespace) -> Security:
    """Read the options of `rights_options`; raises UsageError."""
    said: list[tuple[str, str]] = options.security_opt
    return Security(
        added=tuple(options.cap_add),
        dropped=tuple(options.cap_drop),
        privileged=options.privileged,
        seccomp=dict(said).get("seccomp"),
        no_new_privileges=dict(said).get("no-new-privileges") == "true",
        masked=_paths(said, "mask"),
        unmasked=_paths(said, "unmask"),
        groups=tuple(options.group_add),
        devices=tuple(one for one in options.device if isinstance(one, DeviceRequest)),
        named=(*(one for one in options.device if isinstance(one, str)), *options.gpus),
        cdi_directories=tuple(options.cdi_spec_dir),
    )


def resources_of(options: argparse.Namespace) -> Resources:
    """Read the options of `limit_options`; of a limit given twice the last counts."""
    by_name = {ulimit.name: ulimit for ulimit in options.ulimit}
    return Resources(
        options.memory, options.cpus, options.pids_limit, options.shm_size, tuple(by_name.values())
    )


def _capabilities(text: str) -> list[str]:
    with checked():
        return [capability(name) for name in text.split(",")]


def _paths(said: list[tuple[str, str]], wanted: str) -> tuple[str, ...]:
    return tuple(path for name, value in said if name == wanted for path in value.split(":"))


def _security(text: str) -> tuple[str, str]:
    """NAME=VALUE, or as docker has it, NAME:VALUE."""
    name, _, value = text.replace(":", "=", 1).partition("=") if "=" not in text else text.partition("=")
    if (name, value) == ("systempaths", "unconfined"):
        return "unmask", "ALL"
    is_path = name in ("mask", "unmask") and all(path.startswith("/") for path in value.split(":"))
    if is_path or (name == "seccomp" and value) or f"{name}={value}" in (*_AS_IT_IS, "unmask=ALL"):
        return name, value
    if name == "no-new-privileges" and value in ("", "true", "false"):
        return name, value or "true"
    raise refusal(f"{text!r} is none of imgfs's: there are no labels and no profiles here")


def _gpus(text: str) -> list[str]:
    with checked():
        return gpu_names(text)


def _devices(text: str) -> list[DeviceRequest | str]:
    """Several with commas between, as podman has it."""
    return [_device(word) for word in text.split(",")]


def _device(text: str) -> DeviceRequest | str:
    """SRC[:DST][:rwm], or a name that is described elsewhere."""
    if is_cdi_name(text):
        return text
    source, *rest = text.split(":")
    access = rest.pop() if rest and _ACCESS.fullmatch(rest[-1]) else "rwm"
    target = rest.pop() if rest else source
    if rest or not (source.startswith("/") and target.startswith("/")):
        raise refusal(f"{text!r} is not SRC, SRC:DST or SRC:DST:rwm, from the root")
    return DeviceRequest(source, target, access)


def _ulimit(text: str) -> Ulimit:
    """NAME=SOFT[:HARD]."""
    match = _ULIMIT.fullmatch(text)
    if not match or match[1] not in ULIMITS:
        raise refusal(f"{text!r} is not a limit, like nofile=1024:4096 or core=-1")
    soft, hard = (
        UNLIMITED if word in ("-1", "unlimited") else int(word) for word in (match[2], match[3] or match[2])
    )
    if hard != UNLIMITED and (soft == UNLIMITED or soft > hard):
        raise refusal(f"{text!r}: the soft limit is above the hard one")
    return Ulimit(match[1], soft, hard)


def _count(text: str) -> int:
    if not re.fullmatch(r"-1|0|[1-9][0-9]{0,8}", text):
        raise refusal(f"{text!r} is not a number of processes")
    return int(text) or UNLIMITED


def _cpus(text: str) -> float:
    try:
        count = float(text)
    except ValueError:
        count = 0.0
    if not 0.01 <= count <= 100_000:
        raise refusal(f"{text!r} is not a number of processors, like 0.5 or 2")
    return count
