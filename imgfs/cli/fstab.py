"""Translate `mount.fuse.imgfs IMAGE MOUNTPOINT [-sfnv] [-o OPTIONS]`, of mount(8), into `imgfs mount`."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from imgfs import syscalls
from imgfs.errors import ImgfsError, MountError, UsageError
from imgfs.mounts.status_client import read_status
from imgfs.mounts.table import imgfs_mount_at, mount_at
from imgfs.oci.reference import parse_reference

# Options of `imgfs mount`, with a value and without; dashes may stand for underscores. Only `scratch` makes a
# scratch: mount(8) adds `rw` by itself.
_VALUES = {
    "platform",
    "store",
    "log_level",
    "read_timeout",
    "scratch",
    "upto_layer",
    "index",
    "record",
    "replay",
    "limit_rate",
    "metrics",
    "tls_ca",
    "driver",
    "exit_idle",
    "peers",
}
_FLAGS = {
    "plain_http",
    "insecure",
    "squash_owner",
    "write_through",
    "no_predict",
    "fill",
    "offline",
    "restart",
}
OPTIONS = sorted(_VALUES | _FLAGS)  # of `imgfs mount`, as -o of mount(8) has them
# Meant for mount(8) or systemd, not for a file system (mount(8), fstab(5), systemd.mount(5)).
_FOR_OTHERS = {
    "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev", "rw",
}  # fmt: skip


# The kernel's, that a remount may change, and what takes each of them back (mount(8), "Filesystem-independent
# mount options").
_KERNELS = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "nosymfollow": syscalls.MS_NOSYMFOLLOW,
    "nodiratime": syscalls.MS_NODIRATIME,
    "noatime": syscalls.MS_NOATIME,
    "relatime": syscalls.MS_RELATIME,
    "strictatime": syscalls.MS_STRICTATIME,
}
_ATIMES = {"noatime", "relatime", "strictatime"}  # of these a mount has one
_BACK = {
    "rw": "ro",
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "symfollow": "nosymfollow",
    "diratime": "nodiratime",
    "atime": "noatime",
    "norelatime": "relatime",
    "nostrictatime": "strictatime",
}


def mount_arguments(arguments: Sequence[str], *, privileged: bool = False) -> list[str]:
    """Return the arguments of `imgfs mount` that do what mount(8) asks for; raises UsageError.

    mount(8) does not pass `suid` and `dev` on, its defaults: a `privileged` mount has
    them unless the options say `nosuid`, `nodev`, as with mount.fuse(8).
    """
    names, given = _split(arguments)
    if len(names) != 2:
        raise UsageError("usage: mount.fuse.imgfs IMAGE MOUNTPOINT [-o OPTIONS]")
    if privileged:
        given += [name for name in ("suid", "dev") if f"no{name}" not in given]
    return ["mount", *_translated(given), "--", *names]


def remount(arguments: Sequence[str]) -> bool:
    """Change a mount's flags, if mount(8) asks for that with `remount`; raises UsageError, MountError.

    Those of the kernel's flags change that are named. The other options of fstab were read when the image was
    mounted, and stay: mount(8) without this helper (`-i`) hands them to the kernel again, which refuses them
    by fsconfig(2), as util-linux has it since 2.39. Without a scratch a mount stays read-only.
    """
    names, given = _split(arguments)
    if "remount" not in given:
        return False
    mount = imgfs_mount_at(Path(names[-1]))
    writable = [name for name in given if name in ("ro", "rw")][-1:] == ["rw"]
    if writable and not read_status(mount).scratch:
        raise MountError(f"{mount.mountpoint}: has no scratch, so it stays read-only (-o scratch makes one)")
    flags = flags_after(mount.flags, given)
    try:
        syscalls.remount(str(mount.mountpoint), sum(_KERNELS[name] for name in flags))
    except OSError as error:
        reason = "busy: a file is open for writing" if error.errno == errno.EBUSY else error.strerror
        raise MountError(f"{mount.mountpoint}: cannot remount: {reason}") from error
    return True


def flags_after(shown: Iterable[str], given: Iterable[str]) -> set[str]:
    """Return the kernel's flags of a mount, `shown` by mountinfo, after a remount was `given` options."""
    flags = _KERNELS.keys() & set(shown)
    flags |= set() if flags & _ATIMES else {"strictatime"}  # which mountinfo does not name
    for name in given:
        if name in _KERNELS:
            flags = (flags - _ATIMES if name in _ATIMES else flags) | {name}
        elif _BACK.get(name) in flags:
            flags -= {_BACK[name]}
            flags |= set() if flags & _ATIMES else {"relatime"}  # the kernel's default
    return flags


def umount_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of `imgfs umount` that do what umount(8) asks for; raises UsageError.

    It passes -f (force), -l (lazy), -n (no mtab), -r (read-only if busy), -v (verbose), -t and -N on.
    """
    names, flags = [], set()
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-t", "-N"):
            next(rest, None)
        elif argument.startswith("-"):
            flags |= set(argument[1:])
        else:
            names.append(argument)
    if len(names) != 1 or not flags <= set("flnrv"):
        raise UsageError("usage: umount.fuse.imgfs MOUNTPOINT [-flnrv]")
    given = [long for short, long in (("f", "--force"), ("l", "--lazy")) if short in flags]
    return ["umount", *given, "--", *names]


def is_mounted(arguments: Sequence[str]) -> bool:
    """Return True if the image is at the mountpoint already, so that `mount -a` has nothing to do.

    mount(8) compares the source that the kernel shows, which by EROFS is a path and in short names longer.
    """
    names, _ = _split(arguments)
    if len(names) != 2:
        return False
    mount = mount_at(Path(names[1]))
    if mount is None or not mount.is_imgfs:
        return False
    with suppress(ImgfsError):
        return mount.name in (names[0], str(parse_reference(names[0])))
    return False


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names and the options among mount(8)'s arguments; raises UsageError."""
    names: list[str] = []
    given: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-o", "-t", "-N"):
            value = next(rest, None)
            if value is None:
                raise UsageError(f"{argument} needs a value")
            given += value.split(",") if argument == "-o" else []
        elif argument.startswith("-"):
            _check_flags(argument)
        else:
            names.append(argument)
    return names, given


def _check_flags(argument: str) -> None:
    """mount(8) passes -s (sloppy), -f (fake), -n (no mtab), -v (verbose) on."""
    if not set(argument[1:]) <= set("sfnv"):
        raise UsageError(f"mount.fuse.imgfs does not know {argument}")


def is_option(name: str) -> bool:
    """Return True for an option of `imgfs mount` that -o of mount(8) takes."""
    name = name.replace("-", "_")
    return name in _VALUES or name in _FLAGS or name.removeprefix("no_") in _FLAGS


def _translated(options: Sequence[str]) -> Iterator[str]:
    for option in options:
        name, has_value, value = option.partition("=")
        if not option or name in _FOR_OTHERS or name.startswith(("x-", "comment")):
            continue
        if option == "scratch":
            yield "--rw"
        elif is_option(name):
            yield f"--{name.replace('_', '-')}{has_value}{value}"
        else:
            yield f"-o{option}"
