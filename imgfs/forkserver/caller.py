"""The process that asks, by /proc: whether the server may stand for it, and what a command takes over of it.

Nothing of this is what the caller says: one that is confined, and has the server's socket, could say that it
is not.
"""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

from imgfs import syscalls

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


def check_rights(pid: int) -> None:
    """Raise Differs if ids, capabilities or filters of a process are others than this one's.

    One file tells that, so it is asked before anything is forked: a sandbox may connect as often as it likes.
    """
    try:
        _compare(_rights(_status("self")), _rights(_status(str(pid))))
    except OSError as error:
        raise Differs(f"{error.filename}: {error.strerror}") from error


def check_likeness(pid: int) -> None:
    """Raise Differs if the process `pid` may do, or sees, anything else than this one."""
    own = _confinement("self")
    _compare(own, _confinement(str(pid)))
    if own["NoNewPrivs"] != "0":
        raise Differs("NoNewPrivs: by what such processes are confined, /proc does not tell (landlock(7))")


def take_over(pid: int, *, whole_cgroup: bool) -> None:
    """Take over what a process inherits: the file mode mask, limits, priorities, processors, signals.

    The cgroups too, where that is allowed; else the command stays in the server's, which with `whole_cgroup`
    it may not. Raises Differs.
    """
    try:
        status = _status(str(pid))
        os.umask(int(status["Umask"], 8))
        for limit in set(_LIMITS):
            if (value := resource.prlimit(pid, limit)) != resource.getrlimit(limit):
                resource.setrlimit(limit, value)
        _take_over_scheduling(pid)
        _take_over_file(pid, "oom_score_adj")
        _take_over_file(pid, "coredump_filter", base="0x")
        _take_over_file(pid, "loginuid")  # the login that audit logs name
        _take_over_signals(int(status["SigIgn"], 16), int(status["SigBlk"], 16))
    except (OSError, ValueError, KeyError) as error:
        raise Differs(f"what it inherits: {error}") from error
    if not _join_cgroups(pid) and whole_cgroup:
        raise Differs("cgroup: the server may not enter the command's")


def _take_over_scheduling(pid: int) -> None:
    """Take over policy, priority, processors (sched(7)), and the priority of reads and writes."""
    policy, wanted = os.sched_getscheduler(pid), os.sched_getparam(pid)
    if (policy, wanted) != (os.sched_getscheduler(0), os.sched_getparam(0)):
        os.sched_setscheduler(0, policy, wanted)
    if (nice := os.getpriority(os.PRIO_PROCESS, pid)) != os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    if (processors := os.sched_getaffinity(pid)) != os.sched_getaffinity(0):
        os.sched_setaffinity(0, processors)
    if (priority := syscalls.io_priority(pid)) != syscalls.io_priority(0):
        syscalls.set_io_priority(priority)


def _take_over_file(pid: int, name: str, base: str = "") -> None:
    """Take over the number in a file of /proc/PID (proc(5)), which is written with `base` before it."""
    with suppress(FileNotFoundError):
        value = Path(f"/proc/{pid}", name).read_text()
        if value != Path("/proc/self", name).read_text():
            Path("/proc/self", name).write_text(base + value)


def _take_over_signals(ignored: int, blocked: int) -> None:
    """Ignore and block these signals, and no others: bit 0 is for signal 1."""
    for number in signal.valid_signals():
        is_ignored = signal.getsignal(number) is signal.SIG_IGN
        if bool(ignored & 1 << number - 1) is not is_ignored:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual if is_ignored else signal.SIG_IGN)
    masked = {number for number in signal.valid_signals() if blocked & 1 << number - 1}
    signal.pthread_sigmask(signal.SIG_SETMASK, masked)


def _compare(own: dict[str, str], other: dict[str, str]) -> None:
    for name, value in own.items():
        if other[name] != value:
            raise Differs(f"{name}: {other[name]}, not {value}")


def _rights(status: dict[str, str]) -> dict[str, str]:
    return {name: status.get(name, "") for name in _RIGHTS}


def _confinement(process: str) -> dict[str, str]:
    """Return what a process may do and sees. Raises Differs if this one may not know."""
    place = f"/proc/{process}"
    try:
        root, status = os.stat(f"{place}/root"), _status(process)
        found = _rights(status)
        for name in _NAMESPACES:
            with suppress(FileNotFoundError):  # an older kernel has fewer
                found[name] = os.readlink(f"{place}/ns/{name}")
        found["security label"] = _label(place)
        found["personality"] = Path(f"{place}/personality").read_text()
    except OSError as error:
        raise Differs(f"{error.filename}: {error.strerror}") from error
    return found | {"root": f"{root.st_dev}:{root.st_ino}"}


def _status(process: str) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _label(place: str) -> str:
    """Return the label of SELinux or AppArmor; nothing where there is none."""
    try:
        return Path(f"{place}/attr/current").read_text(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError:  # EINVAL: no security module has labels
        return ""


def _join_cgroups(pid: int) -> bool:
    """Go into the caller's cgroups, which an ordinary user often may not; return True if that was done."""
    own, other = _cgroups("self"), _cgroups(str(pid))
    for hierarchy, path in other.items():
        if own.get(hierarchy) != path:
            with suppress(OSError):
                (_place(hierarchy) / path[1:] / "cgroup.procs").write_text(str(os.getpid()))
    return own == other or _cgroups("self") == other


def _cgroups(process: str) -> dict[str, str]:
    """Return the cgroup of a process in each hierarchy, by its controllers.

    Version 2 has no name (cgroups(7)).
    """
    lines = Path(f"/proc/{process}/cgroup").read_text(errors="replace").splitlines()
    return {name: path for _, name, path in (line.split(":", 2) for line in lines)}


def _place(hierarchy: str) -> Path:
    """Return where a hierarchy of cgroups is mounted, as systemd does it."""
    if hierarchy:
        return _CGROUPS / hierarchy.removeprefix("name=")
    beside = _CGROUPS / "unified"  # with those of version 1
    return beside if beside.exists() else _CGROUPS
