"""Run a command in a root file system: `python -m scripts.fresh.contained ROOT DIRECTORY COMMAND...`.

`words` is how: in mount, process, IPC and host name namespaces of its own, which end with their first
process; that one ends when its parent does, by whatever signal. So no mount and no process is left.
The command finds /proc, /sys with the cgroups, and a /dev of what every container has, /dev/fuse, and what a
machine has beside it for those who ask: /dev/net/tun and loop devices.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
# Documentation/admin-guide/devices.txt
FUSE, TUN, LOOP_CONTROL, LOOP = (10, 229), (10, 200), (10, 237), 7
LOOPS = 16
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
MNT_DETACH = 2


def words(command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` so that nothing of it outlives its parent."""
    bound = ["setpriv", "--pdeathsig", "KILL", "--"]
    alone = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL", "--mount-proc"]
    return [*bound, *alone, "--propagation", "private", "--", *command]


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def _fill_dev(dev: Path) -> None:
    _mount("-t", "tmpfs", "-o", "mode=755,nosuid", "dev", dev)
    (dev / "net").mkdir()
    for name, numbers in {**NODES, "fuse": FUSE, "net/tun": TUN}.items():
        os.mknod(dev / name, 0o666 | stat.S_IFCHR, os.makedev(*numbers))
        (dev / name).chmod(0o666)
    os.mknod(dev / "loop-control", 0o600 | stat.S_IFCHR, os.makedev(*LOOP_CONTROL))
    for number in range(LOOPS):
        os.mknod(dev / f"loop{number}", 0o600 | stat.S_IFBLK, os.makedev(LOOP, number))
    for name, target in LINKS.items():
        (dev / name).symlink_to(target)
    for name, options in {"pts": "newinstance,ptmxmode=0666,mode=620,gid=5", "shm": "mode=1777"}.items():
        (dev / name).mkdir()
        _mount("-t", "devpts" if name == "pts" else "tmpfs", "-o", options, name, dev / name)


def enter(root: Path) -> None:
    """Make `root` the root of this mount namespace: by pivot_root, for chroot(2) forbids user namespaces."""
    _mount("--bind", root, root)
    _mount("-t", "proc", "proc", root / "proc")
    _mount("-t", "sysfs", "sys", root / "sys")
    if Path("/sys/fs/cgroup").is_mount():
        _mount("--rbind", "/sys/fs/cgroup", root / "sys/fs/cgroup")
    _mount("-t", "tmpfs", "-o", "mode=755", "run", root / "run")
    _fill_dev(root / "dev")
    os.chdir(root)
    libc = ctypes.CDLL(None, use_errno=True)
    subprocess.run(
        ["pivot_root", ".", "."], check=True
    )  # pivot_root(2), NOTES: the old root lies on the new one
    if libc.umount2(b".", MNT_DETACH):
        raise OSError(ctypes.get_errno(), "the machine's own root cannot be unmounted")
    os.chdir("/")


def attend(process: subprocess.Popen[bytes]) -> int:
    """Reap whatever ends, as process 1, until `process` has; its exit code, or 128 + the signal."""
    while True:
        pid, status = os.wait()
        if pid == process.pid:
            code = os.waitstatus_to_exitcode(status)
            process.returncode = code
            return code if code >= 0 else 128 - code


def main(arguments: Sequence[str]) -> int:
    """Do what the module's docstring says."""
    root, directory, *command = arguments
    socket.sethostname("fresh")
    enter(Path(root))
    return attend(subprocess.Popen(command, cwd=directory))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
