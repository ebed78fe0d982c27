"""mount(8)'s way of asking: `mount.fuse.imgfs IMAGE MOUNTPOINT [-sfnv] [-o OPTIONS]`, turned into ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from imgfs.errors import UsageError

# Options of ours, with a value and without. Only that word makes a scratch: mount(8) says `rw` by itself.
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
}
_FLAGS = {"plain_http", "insecure", "squash_owner", "write_through", "fill", "offline"}
# Meant for mount(8) or systemd, not for a file system (mount(8), fstab(5), systemd.mount(5)).
_FOR_OTHERS = {
    "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev", "rw",
}  # fmt: skip


def mount_arguments(arguments: Sequence[str], *, privileged: bool = False) -> list[str]:
    """The arguments of `imgfs mount` that do what mount(8) asks for; raises UsageError.

    mount(8) does not pass `suid` and `dev` on, they being what it takes for granted: a `privileged` mount has
    them unless told `nosuid`, `nodev`, as with mount.fuse(8).
    """
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
    if len(names) != 2:
        raise UsageError("usage: mount.fuse.imgfs IMAGE MOUNTPOINT [-o OPTIONS]")
    if privileged:
        given += [name for name in ("suid", "dev") if f"no{name}" not in given]
    return ["mount", *_translated(given), "--", *names]


def _check_flags(argument: str) -> None:
    """mount(8) passes -s (sloppy), -f (fake), -n (no mtab), -v (verbose) on."""
    if not set(argument[1:]) <= set("sfnv"):
        raise UsageError(f"mount.fuse.imgfs does not know {argument}")


def _translated(options: Sequence[str]) -> Iterator[str]:
    for option in options:
        name, _, value = option.partition("=")
        if not option or name in _FOR_OTHERS or name.startswith(("x-", "comment")):
            continue
        if option == "scratch":
            yield "--rw"
        elif name in _VALUES:
            yield f"--{name.replace('_', '-')}={value}"
        elif name in _FLAGS:
            yield f"--{name.replace('_', '-')}"
        else:
            yield f"-o{option}"
