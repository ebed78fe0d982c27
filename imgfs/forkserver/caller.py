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
from imgfs.variables import lasting_variables, variables

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
_THIS = 0  # in the place of a pid: this process (prlimit(2), sched_setscheduler(2))


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


def check_variables(pid: int) -> None:
    """Raise Differs if a process has other variables: by them registries, proxies and secrets are found."""
    body = Path(f"/proc/{pid}/environ").read_bytes()
    entries = (os.fsdecode(entry).partition("=") for entry in body.split(b"\0") if entry)
    theirs = lasting_variables({name: value for name, _, value in entries})
    own = lasting_variables(variables())
    if other := {name for name in theirs.keys() | own.keys() if theirs.get(name) != own.get(name)}:
        raise Differs(f"variables: {min(other)}")


def take_over(pid: int, *, whole_cgroup: bool) -> None:
    """Take over what a process inherits: the file mode mask, limits, priorities, processors, signals.

    The cgroups too, where that is allowed; else the command stays in the server's, which with `whole_cgroup`
    it may not. Raises Differs.
    """
    try:
        status = _status(str(pid))
        os.umask(int(status["Umask"], 8))
        _copy_inherited(pid, _THIS)
        _copy_file(pid, _THIS, "loginuid")  # the login that audit logs name
        _take_over_signals(int(status["SigIgn"], 16), int(status["SigBlk"], 16))
    except (OSError, ValueError, KeyError) as error:
        raise Differs(f"what it inherits: {error}") from error
    if not _join_cgroups(pid, _THIS) and whole_cgroup:
        raise Differs("cgroup: the server may not enter the command's")


def give_over(pid: int) -> None:
    """Give a process what it would have inherited of this one: limits, priorities, processors, cgroups.

    The file mode mask and signals a process has to see to itself. Raises Differs.
    """
    try:
        _copy_inherited(_THIS, pid)
        if _read(pid, "loginuid") != _read(_THIS, "loginuid"):
            raise Differs("loginuid")
    except (OSError, ValueError) as error:
        raise Differs(f"what it inherits: {error}") from error
    if not _join_cgroups(_THIS, pid):
        raise Differs("cgroup: it may not enter this process's")


def own_umask() -> int:
    """Return this process's file mode mask, which can be asked for without setting it (proc(5))."""
    return int(_status("self")["Umask"], 8)


def _copy_inherited(source: int, target: int) -> None:
    """Give one process the limits, scheduling (sched(7)) and the like of another, by their pids."""
    for limit in set(_LIMITS):
        if (value := resource.prlimit(source, limit)) != resource.prlimit(target, limit):
            resource.prlimit(target, limit, value)
    policy, wanted = os.sched_getscheduler(source), os.sched_getparam(source)
    if (policy, wanted) != (os.sched_getscheduler(target), os.sched_getparam(target)):
        os.sched_setscheduler(target, policy, wanted)
    if (nice := os.getpriority(os.PRIO_PROCESS, source)) != os.getpriority(os.PRIO_PROCESS, target):
        os.setpriority(os.PRIO_PROCESS, target, nice)
    if (processors := os.sched_getaffinity(source)) != os.sched_getaffinity(target):
        os.sched_setaffinity(target, processors)
    if (priority := syscalls.io_priority(source)) != syscalls.io_priority(target):
        syscalls.set_io_priority(target, priority)
    _copy_file(source, target, "oom_score_adj")
    _copy_file(source, target, "coredump_filter", base="0x")


def _copy_file(source: int, target: int, name: str, base: str = "") -> None:
    """Copy the number in a file of /proc/PID (proc(5)), which is written with `base` before it."""
    value = _read(source, name)
    if value != _read(target, name):
        _of_process(target, name).write_text(base + value)


def _read(pid: int, name: str) -> str:
    """Return what a file of /proc/PID says, nothing where the kernel has none of that name."""
    try:
        return _of_process(pid, name).read_text()
    except FileNotFoundError:
        return ""


def _of_process(pid: int, name: str) -> Path:
    return Path("/proc", "self" if pid == _THIS else str(pid), name)


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


def _join_cgroups(source: int, target: int) -> bool:
    """Put a process into another's cgroups, which an ordinary user often may not; return if it is there."""
    there, other = _cgroups(target), _cgroups(source)
    for hierarchy, path in other.items():
        if there.get(hierarchy) != path:
            with suppress(OSError):
                procs = _place(hierarchy) / path[1:] / "cgroup.procs"
                procs.write_text(str(target or os.getpid()))
    return there == other or _cgroups(target) == other


def _cgroups(pid: int) -> dict[str, str]:
    """Return the cgroup of a process in each hierarchy, by its controllers.

    Version 2 has no name (cgroups(7)).
    """
    lines = _of_process(pid, "cgroup").read_text(errors="replace").splitlines()
    return {name: path for _, name, path in (line.split(":", 2) for line in lines)}


def _place(hierarchy: str) -> Path:
    """Return where a hierarchy of cgroups is mounted, as systemd does it."""
    if hierarchy:
        return _CGROUPS / hierarchy.removeprefix("name=")
    beside = _CGROUPS / "unified"  # with those of version 1
    return beside if beside.exists() else _CGROUPS
