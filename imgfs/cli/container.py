"""imgfs run, the child's part: mount a bundle in a private mount namespace, and run an OCI runtime on it."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from imgfs.cli.container_options import request_of
from imgfs.cli.run import complain, warn
from imgfs.cli.selection import ImageSelection, select_image
from imgfs.config import Environment
from imgfs.errors import UsageError
from imgfs.image.resolve import Resolved
from imgfs.mount.daemon import Mounting
from imgfs.mount.serving import MountOptions
from imgfs.mounts.mountpoint import check_mountable
from imgfs.mounts.table import imgfs_mount_at
from imgfs.mounts.unmount import unmount
from imgfs.oci.reference import LayoutReference
from imgfs.overlay.scratch import Scratch
from imgfs.overlay.scratches import find_scratch, volatile_scratch
from imgfs.runtime.bundle import Bundle, new_bundle
from imgfs.runtime.devices import complete_host_facts
from imgfs.runtime.host import cgroups_of_this_machine, find_runtime, unbarred_devices, unmet_requests
from imgfs.runtime.host_facts import HostFacts
from imgfs.runtime.ids import IdMaps, IdRange, has, has_single_id
from imgfs.runtime.mount_targets import make_workdir, read_accounts, resolve_mounts
from imgfs.runtime.namespace import detach_other_mounts
from imgfs.runtime.oci_runtime import OciRuntime, Stopper, start_failure, unmounting
from imgfs.runtime.preflight import Refused, check_command
from imgfs.runtime.request import ContainerRequest, ImageDefaults, check_name
from imgfs.runtime.rootfs import Rootfs
from imgfs.runtime.signals import SignalRelay
from imgfs.runtime.spec import Container, runtime_config, with_nodev_root
from imgfs.runtime.stdio import StdioPipes
from imgfs.runtime.upper import make_upper
from imgfs.runtime.user import User, find_user


@dataclass(frozen=True, slots=True)
class Start:
    """A container about to be started: what the command line and the environment say.

    `maps` are a user namespace's ids.
    """

    request: ContainerRequest
    name: str
    maps: IdMaps | None
    options: argparse.Namespace
    environment: Environment


def start_of(options: argparse.Namespace, maps: IdMaps | None, environment: Environment) -> Start:
    """Read what the command line says; raises UsageError."""
    if options.tty and not os.isatty(0):
        raise UsageError("-t: standard input is not a terminal")
    name = options.name or os.urandom(6).hex()
    check_name(name)
    return Start(request_of(options), name, maps, options, environment)


def run_container(start: Start, mounting: Mounting) -> int:
    """Run a container to its end; return its exit code, or the one for a command that could not be run.

    What a tag resolved to the last time is mounted while the registry is asked whether it still does. The
    container only begins once that is known.
    """
    request, options = start.request, start.options
    runtime = OciRuntime(find_runtime(options.runtime), cgroups_of_this_machine())
    host = _host_facts(start, runtime)
    for warning in unmet_requests(request, host, runtime.cgroups):
        warn(warning)
    image = select_image(options, start.environment)
    detach_other_mounts(_needed(image, request))
    plan = _Plan(start, image, runtime, host)
    guess = image.guess() if options.scratch is None else None
    if guess is None:
        return _contain(plan, image.prepare(), mounting)
    try:
        return _contain(plan, guess, mounting, is_guess=True)
    except _Outdated as outdated:
        with Mounting.fork() as another:
            return _contain(plan, outdated.meant, another)


def _needed(image: ImageSelection, request: ContainerRequest) -> Iterator[Path]:
    """Yield the directories and files of this machine that are read while the container runs."""
    yield image.store.root
    yield Path.cwd()
    if isinstance(image.reference, LayoutReference):
        yield image.reference.path
    for bind in request.binds:
        yield Path(bind.source)


class _Plan(NamedTuple):
    """A container, except for its resolved image."""

    start: Start
    image: ImageSelection
    runtime: OciRuntime
    host: HostFacts


class _Outdated(Exception):
    """The reference resolves to another image now."""

    def __init__(self, meant: Resolved) -> None:
        super().__init__(str(meant.digest))
        self.meant = meant


def _contain(plan: _Plan, resolved: Resolved, mounting: Mounting, *, is_guess: bool = False) -> int:
    """Mount `resolved` and run a container in it; if it was a guess, and wrong, raise _Outdated instead."""
    start, image, _, host = plan
    with contextlib.ExitStack() as stack:
        defaults = ImageDefaults.parse(resolved.config.config)
        bundle = stack.enter_context(new_bundle(image.store.root, start.name))
        stopper = Stopper(
            bundle.pid_file, start.request.stop_signal or defaults.stop_signal, start.options.stop_timeout
        )
        relay = stack.enter_context(SignalRelay(stopper, stopper.kill_later))
        stack.enter_context(unmounting(bundle.rootfs))
        stack.push(mounting)  # a daemon that has nothing to serve has to go before what waits for it
        _begin_mount(start, resolved, image, bundle, mounting)
        try:
            meant = image.prepare() if is_guess else resolved
        finally:
            mounting.wait()
        if meant.digest != resolved.digest:
            raise _Outdated(meant)
        try:
            owner = _write(start, resolved, bundle, host)
        except Refused as refused:
            complain(refused)
            return refused.code
        code = _run(plan, bundle, relay, owner)
        reason = start_failure(bundle) if code else None
        return code if reason is None else 128 + relay.ending if relay.ending else reason


def _run(plan: _Plan, bundle: Bundle, relay: SignalRelay, owner: tuple[int, int]) -> int:
    """Run the container on its terminal, or on pipes."""
    if plan.start.request.terminal:
        return plan.runtime.run(bundle, plan.start.name, relay, None)
    with StdioPipes(owner, has_input=plan.start.options.interactive) as pipes:
        return plan.runtime.run(bundle, plan.start.name, relay, pipes)


def _write(start: Start, resolved: Resolved, bundle: Bundle, host: HostFacts) -> tuple[int, int]:
    """Complete a bundle; return the (uid, gid) that the container runs as. Raises Refused."""
    rootfs, request = Rootfs(bundle.rootfs), start.request
    defaults = ImageDefaults.parse(resolved.config.config)
    try:
        found = _container(start.name, rootfs, defaults, request, start.maps)
    except UsageError as error:
        raise Refused(str(error)) from error
    files = bundle.write_files(start.name, request)
    volumes = bundle.make_volumes(request.volumes_over(defaults), rootfs)
    config = runtime_config(resolved.config, request, replace(found, files=(*files, *volumes)), host)
    check_command(rootfs, config, request)
    bundle.write_config(_settled(config, rootfs, host))
    return found.user.uid, found.user.gid


def _settled(config: dict[str, Any], rootfs: Rootfs, host: HostFacts) -> dict[str, Any]:
    """A config.json as the mounted image needs it."""
    config = {**config, "mounts": resolve_mounts(rootfs, config["mounts"])}
    return with_nodev_root(config, rootfs.top, host.mount_program) if host.mount_program else config


def _begin_mount(
    start: Start, resolved: Resolved, image: ImageSelection, bundle: Bundle, mounting: Mounting
) -> None:
    scratch, tree = _scratch(start.options, image), image.store.tree(resolved.tree)
    if start.maps and tree:
        make_upper(scratch, tree)
    owner = (0, 0) if start.maps and has_single_id(start.maps) else None
    check_mountable(bundle.rootfs, nonempty=False)
    how = _how(bundle, scratch, owner, start.options, for_all=True)
    mounting.begin(resolved, image.connect, image.store, how)


def _host_facts(start: Start, runtime: OciRuntime) -> HostFacts:
    cgroups, maps = runtime.cgroups, start.maps
    bare = HostFacts(
        cgroup=None if cgroups.parent is None else f"{cgroups.parent}/imgfs-{start.name}",
        controllers=cgroups.controllers,
        own_cgroup_namespace=cgroups.unified and cgroups.parent is not None,
        user_namespace=maps is not None,
        single_id=maps is not None and has_single_id(maps),
        no_device_cgroup=None if maps else runtime.no_device_cgroup,
    )
    return complete_host_facts(bare, start.request)


def bundle(options: argparse.Namespace) -> int:
    """Write a bundle with the image mounted in it, for another engine; raises ImgfsError."""
    request = request_of(options)
    made = Bundle(Path(options.directory).absolute())
    made.rootfs.mkdir(parents=True, exist_ok=True)
    check_mountable(made.rootfs, nonempty=False)
    uid, gid, is_root = os.getuid(), os.getgid(), os.geteuid() == 0
    maps: IdMaps | None = None if is_root else ((IdRange(0, uid, 1),), (IdRange(0, gid, 1),))
    with Mounting.fork() as mounting:
        image = select_image(options)
        resolved = image.prepare()
        how = _how(made, _scratch(options, image), (uid, gid) if maps else None, options, for_all=is_root)
        mounting.mount(resolved, image.connect, image.store, how)
    try:
        defaults = ImageDefaults.parse(resolved.config.config)
        rootfs = Rootfs(made.rootfs)
        container = _container(made.directory.name, rootfs, defaults, request, maps)
        host = complete_host_facts(HostFacts(maps=maps, single_id=maps is not None), request)
        if unbarred := unbarred_devices(request, host):
            warn(unbarred)
        made.write_config(_settled(runtime_config(resolved.config, request, container, host), rootfs, host))
    except BaseException:
        unmount(imgfs_mount_at(made.rootfs))
        raise
    return 0


def _container(
    name: str, rootfs: Rootfs, defaults: ImageDefaults, request: ContainerRequest, maps: IdMaps | None
) -> Container:
    """Look the user up in the mounted image, and make the working directory there."""
    text = defaults.user if request.user is None else request.user
    accounts = read_accounts(rootfs, "/etc/passwd"), read_accounts(rootfs, "/etc/group")
    user = _mapped(find_user(text, *accounts, request.security.groups), maps, text)
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
        missing = [number for number in numbers if not has(ids, number)]
        if missing:
            raise UsageError(f"user {text!r}: /etc/subuid and /etc/subgid give you no id for {missing[0]}")
    return user


def _how(
    bundle: Bundle,
    scratch: Scratch,
    owner: tuple[int, int] | None,
    options: argparse.Namespace,
    *,
    for_all: bool,
) -> MountOptions:
    fuse = frozenset({"suid", "allow_other"} if for_all else ())
    driver = options.driver
    return MountOptions(mountpoint=bundle.rootfs, fuse=fuse, owner=owner, scratch=scratch, driver=driver)


def _scratch(options: argparse.Namespace, image: ImageSelection) -> Scratch:
    if options.scratch is not None:
        return find_scratch(options.scratch, image.store.root)
    return volatile_scratch(image.store.root)
