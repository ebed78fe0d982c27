"""What run and bundle do alike in the mounted image: what of a container is found in it."""

from __future__ import annotations

from imgfs.cli.output import warn
from imgfs.errors import UsageError
from imgfs.runtime.host import RuntimeCommand
from imgfs.runtime.host_facts import HostFacts, IdMaps, has_id, has_single_id
from imgfs.runtime.mount_targets import make_workdir, read_accounts, resolve_mounts
from imgfs.runtime.request import ContainerRequest, ImageDefaults
from imgfs.runtime.rootfs import Rootfs
from imgfs.runtime.spec import Container, RuntimeConfig, with_nodev_root
from imgfs.runtime.user import User, find_user


def settled(
    config: RuntimeConfig, rootfs: Rootfs, host: HostFacts, runtime: RuntimeCommand | None = None
) -> RuntimeConfig:
    """Return a config.json as the mounted image, and the `runtime` that is to run it, need it.

    A hook costs a start two programs more, so a runtime has none that leaves the image's mount `nodev`.
    """
    config = {**config, "mounts": resolve_mounts(rootfs, config["mounts"])}
    if host.mount_program is None or (runtime and runtime.binds_as_mounted(config)):
        return config
    return with_nodev_root(config, rootfs.top, host.mount_program)


def container_in(
    name: str,
    rootfs: Rootfs,
    defaults: ImageDefaults,
    request: ContainerRequest,
    host: HostFacts,
    maps: IdMaps | None,
) -> Container:
    """Look the user up in the mounted image, and make the working directory there."""
    text = defaults.user if request.user is None else request.user
    accounts = read_accounts(rootfs, "/etc/passwd"), read_accounts(rootfs, "/etc/group")
    groups = (*request.security.groups, *map(str, host.edits.groups))
    user = _mapped(find_user(text, *accounts, groups), maps, text)
    owner = None if maps and has_single_id(maps) else (user.uid, user.gid)
    make_workdir(rootfs, request.workdir_over(defaults), owner)
    return Container(name, user)


def _mapped(user: User, maps: IdMaps | None, text: str) -> User:
    """Return the user as the user namespace maps it; a namespace with a single id has only a root."""
    if maps is None:
        return user
    if has_single_id(maps):
        if user.uid or user.gid:
            warn(f"user {text!r} runs as root, which is you: there are no ids for others in /etc/subuid")
        return User(0, 0, (), user.home)
    for ids, numbers in ((maps[0], (user.uid,)), (maps[1], (user.gid, *user.groups))):
        missing = [number for number in numbers if not has_id(ids, number)]
        if missing:
            raise UsageError(f"user {text!r}: /etc/subuid and /etc/subgid give you no id for {missing[0]}")
    return user
