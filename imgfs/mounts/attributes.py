"""The options of mount(8) that the kernel has for every mount, as attributes (mount_setattr(2))."""

from __future__ import annotations

from collections.abc import Iterable

from imgfs.syscalls import (
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME,
)

_SETTING = {
    "ro": MOUNT_ATTR_RDONLY,
    "nosuid": MOUNT_ATTR_NOSUID,
    "nodev": MOUNT_ATTR_NODEV,
    "noexec": MOUNT_ATTR_NOEXEC,
    "noatime": MOUNT_ATTR_NOATIME,
    "nodiratime": MOUNT_ATTR_NODIRATIME,
    "strictatime": MOUNT_ATTR_STRICTATIME,
    "nosymfollow": MOUNT_ATTR_NOSYMFOLLOW,
}
_CLEARING = {"suid": MOUNT_ATTR_NOSUID, "dev": MOUNT_ATTR_NODEV, "exec": MOUNT_ATTR_NOEXEC}


def attributes_of(options: Iterable[str]) -> tuple[int, set[str]]:
    """Return the attributes (MOUNT_ATTR_*) of options, by default `nosuid,nodev`; and the other options.

    What restricts counts more than what allows.
    """
    names = set(options)
    attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    for name in names & _CLEARING.keys():
        attributes &= ~_CLEARING[name]
    for name in names & _SETTING.keys():
        attributes |= _SETTING[name]
    return attributes, names - _SETTING.keys() - _CLEARING.keys()
