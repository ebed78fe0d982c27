"""The process that asks, by /proc: whether the server may stand for it, and what a command takes over of it.

Nothing of this is what the caller says: one that is confined, and has the server's socket, could say that it
is not.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

# By which processes are confined, or see another machine (namespaces(7)); `/` beside them.
_NAMESPACES = (
    *("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children"),
    *("time", "time_for_children", "user", "uts"),
)
# Of /proc/PID/status (proc(5)).
_RIGHTS = (
    *("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    *("NoNewPrivs", "Seccomp", "Seccomp_filters"),
)
_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
_CGROUPS = Path("/sys/fs/cgroup")


class Differs(Exception):
    """The caller is not like the server: `str()` says in what."""


def check_likeness(pid: int) -> None:
    """Raise Differs if the process `pid` may do, or sees, anything else than this one."""
    own, other = _confinement("self"), _confinement(str(pid))
    for name, value in own.items():
        if other[name] != value:
            raise Differs(f"{name}: {other[name]}, not {value}")
    if own["NoNewPrivs"] != "0":
        raise Differs("NoNewPrivs: by what such processes are confined, /proc does not tell (landlock(7))")


def take_over(pid: int) -> None:
    """Take over what a process inherits: the file mode mask, limits, priority, processors. Raises Differs.

    The cgroup too, where that is allowed; else the command stays in the server's.
    """
    try:
        os.umask(int(_status(str(pid))["Umask"], 8))
        for limit in set(_LIMITS):
            if (value := resource.prlimit(pid, limit)) != resource.getrlimit(limit):
                resource.setrlimit(limit, value)
        if (nice := os.getpriority(os.PRIO_PROCESS, pid)) != os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        if (processors := os.sched_getaffinity(pid)) != os.sched_getaffinity(0):
            os.sched_setaffinity(0, processors)
        adjustment = Path(f"/proc/{pid}/oom_score_adj").read_text()
        if adjustment != Path("/proc/self/oom_score_adj").read_text():
            Path("/proc/self/oom_score_adj").write_text(adjustment)
    except (OSError, ValueError) as error:
        raise Differs(f"what it inherits: {error}") from error
    _join_cgroup(pid)


def _confinement(process: str) -> dict[str, str]:
    """What a process may do and sees. Raises Differs if this one may not know."""
    place = f"/proc/{process}"
    try:
        root, status = os.stat(f"{place}/root"), _status(process)
        found = {name: status.get(name, "") for name in _RIGHTS}
        for name in _NAMESPACES:
            with suppress(FileNotFoundError):  # an older kernel has fewer
                found[name] = os.readlink(f"{place}/ns/{name}")
        found["security label"] = _label(place)
    except OSError as error:
        raise Differs(f"{error.filename}: {error.strerror}") from error
    return found | {"root": f"{root.st_dev}:{root.st_ino}"}


def _status(process: str) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _label(place: str) -> str:
    """The label of SELinux or AppArmor; nothing where there is none."""
    try:
        return Path(f"{place}/attr/current").read_text(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError:  # EINVAL: no security module has labels
        return ""


def _join_cgroup(pid: int) -> None:
    """Go into the caller's cgroup (version 2), which an ordinary user often may not."""
    own, other = (Path(f"/proc/{process}/cgroup").read_text() for process in ("self", str(pid)))
    if own != other and other.startswith("0::/"):
        with suppress(OSError):
            (_CGROUPS / other[4:].strip() / "cgroup.procs").write_text(str(os.getpid()))
