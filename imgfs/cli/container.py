"""imgfs run, the child's part: mount a bundle in a private mount namespace, and run an OCI runtime on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from imgfs.cli.container_life import ContainerLife
from imgfs.cli.container_request import Start
from imgfs.cli.container_setup import bundle_mount_options, container_in, scratch_of, settled
from imgfs.cli.output import complain, warn
from imgfs.cli.selection import ImageSelection, select_image
from imgfs.cli.tag_question import TagQuestion
from imgfs.errors import UsageError
from imgfs.image.resolve import Resolved
from imgfs.mount.daemon import Mounting
from imgfs.mounts.mountpoint import check_mountable
from imgfs.oci.descriptor import Platform
from imgfs.oci.reference import FileReference, LayoutReference
from imgfs.overlay.scratches import make_upper
from imgfs.runtime.bundle import Bundle, bundle_of, new_bundle
from imgfs.runtime.devices import complete_host_facts
from imgfs.runtime.emulation import emulators_to_show
from imgfs.runtime.exposed_ports import with_exposed_ports
from imgfs.runtime.host import (
    RuntimeCommand,
    cgroups_of_this_machine,
    find_runtime,
    remove_cgroup,
    unmet_requests,
)
from imgfs.runtime.host_facts import HostFacts, has_single_id
from imgfs.runtime.named_volumes import NamedVolume, placed
from imgfs.runtime.names import SHORT
from imgfs.runtime.namespace import detach_other_mounts
from imgfs.runtime.oci_runtime import OciRuntime, start_failure
from imgfs.runtime.output_log import LARGEST, LogWriter
from imgfs.runtime.pasta import find_pasta, pasta_network
from imgfs.runtime.request import ContainerRequest, ImageDefaults, Network
from imgfs.runtime.rootfs import Refused, Rootfs, check_command
from imgfs.runtime.signals import Ended, SignalRelay
from imgfs.runtime.spec import RuntimeConfig, runtime_config
from imgfs.runtime.stdio import StdioPipes
from imgfs.runtime.teardown import Stopper, unmounting
from imgfs.runtime.user import User

_SHORT_LIVED = 1.0  # seconds: a container that ends sooner needs no process that has its image served again


@contextlib.contextmanager
def _network(request: ContainerRequest, bundle: Bundle) -> Iterator[int | None]:
    """The pid of the process that connects a container's own network, if it has one."""
    if request.network is not Network.PASTA:
        yield None
        return
    with pasta_network(find_pasta(), bundle.network, request.ports) as pid:
        yield pid


def run_container(start: Start, mounting: Mounting, question: TagQuestion | None) -> int:
    """Run a container to its end; return its exit code, or the one for a command that could not be run.

    What a tag resolved to the last time is mounted while the registry is asked whether it still does, by
    `question` if there is one. The container only begins once that is known.
    """
    request, options = start.request, start.options
    if request.network is Network.PASTA:
        find_pasta()
    runtime = OciRuntime(find_runtime(options.runtime), cgroups_of_this_machine())
    image = replace(select_image(options, start.environment), must_run=True)
    ready = image.open_early(mounting)
    host = _host_facts(start, runtime)
    for warning in unmet_requests(request, host, runtime.cgroups):
        warn(warning)
    request = replace(request, binds=tuple(placed(one, image.store.root) for one in request.binds))
    start = replace(start, request=request)
    detach_other_mounts(_needed(image, request, host))
    plan = _Plan(start, image, runtime, host, question)
    if ready is None or options.scratch is not None:
        resolved = image.prepare(mounting=mounting, question=question, ready=ready)
        return _contain(plan, resolved, mounting)
    try:
        return _contain(plan, ready, mounting, is_guess=True)
    except _Outdated as outdated:
        with Mounting.fork(writable=True) as another:
            return _contain(plan, outdated.meant, another)


def _needed(image: ImageSelection, request: ContainerRequest, host: HostFacts) -> Iterator[Path]:
    """Yield the directories and files of this machine that are read while the container runs."""
    yield image.store.root
    yield Path.cwd()
    if isinstance(image.reference, LayoutReference | FileReference):
        yield image.reference.path
    for bind in request.binds:
        yield Path(bind.source)
    yield from (Path(one.source) for one in host.edits.mounts if one.kind == "bind")
    yield from (Path(one.path) for one in host.edits.hooks)


class _Plan(NamedTuple):
    """A container, except for its resolved image."""

    start: Start
    image: ImageSelection
    runtime: OciRuntime
    host: HostFacts
    question: TagQuestion | None


class _Outdated(Exception):
    """The reference resolves to another image now."""

    def __init__(self, meant: Resolved) -> None:
        super().__init__(str(meant.digest))
        self.meant = meant


def _contain(plan: _Plan, resolved: Resolved, mounting: Mounting, *, is_guess: bool = False) -> int:
    """Mount `resolved` and run a container in it; if it was a guess, and wrong, raise _Outdated instead."""
    start, image, host = plan.start, plan.image, plan.host
    with contextlib.ExitStack() as stack:
        defaults = ImageDefaults.parse(resolved.config.config)
        stopper = Stopper(
            bundle_of(image.store.root, start.name).pid_file,
            start.request.stop_signal or defaults.stop_signal,
            start.options.stop_timeout,
        )
        # First: a signal must not end this between a directory that is made and its removal.
        relay = stack.enter_context(SignalRelay(stopper, stopper.kill_later))
        bundle = stack.enter_context(new_bundle(image.store.root, start.name))
        stack.enter_context(unmounting(bundle.rootfs, _SHORT_LIVED))
        if plan.question:  # a child, too, which waits to be told what to ask
            stack.callback(plan.question.close)
        stack.push(mounting)  # a daemon that has nothing to serve has to go before what waits for it
        _begin_mount(start, resolved, image, bundle, mounting)
        try:
            meant = image.prepare(question=plan.question, ready=resolved) if is_guess else resolved
        finally:
            mounting.wait()
        if plan.question:
            plan.question.close()
        if meant.digest != resolved.digest:
            raise _Outdated(meant)
        try:
            start = replace(start, request=with_exposed_ports(start.request, defaults))
            network = stack.enter_context(_network(start.request, bundle))
            joined = replace(host, network=str(bundle.network)) if network else host
            with relay.ends_work():  # volumes are filled
                config, user = _write(start, resolved, bundle, joined, plan.runtime.command)
        except Ended:
            return 128 + (relay.ending or 0)
        except Refused as refused:
            complain(refused)
            return refused.code
        life = ContainerLife(start, bundle, mounting.pid, network)
        stop_signal = start.request.stop_signal or defaults.stop_signal
        life.begin(resolved, config, plan.runtime.command.path, stop_signal)
        code = _run(plan._replace(start=start), bundle, relay, user, life)
        reason = start_failure(bundle) if code else None
        if reason is None:
            life.ended(code)
            return code
        if host.cgroup:
            remove_cgroup(host.cgroup)
        return 128 + relay.ending if relay.ending else reason


def _run(plan: _Plan, bundle: Bundle, relay: SignalRelay, user: User, life: ContainerLife) -> int:
    """Run the container on its terminal, or on pipes."""
    start, owner = plan.start, (user.uid, user.gid)
    if start.options.detach:
        with contextlib.closing(LogWriter(bundle.directory, start.options.log_opt or LARGEST)) as log:
            if start.request.terminal:
                pipes = StdioPipes.of_terminal(owner, log)
            else:
                pipes = StdioPipes(owner, has_input=start.options.interactive, log=log)
            with pipes:
                return plan.runtime.run(bundle, start.name, relay, pipes, life.started)
    if start.request.terminal:
        return plan.runtime.run(bundle, start.name, relay, None, life.started)
    with StdioPipes(owner, has_input=start.options.interactive) as pipes:
        return plan.runtime.run(bundle, start.name, relay, pipes, life.started)


def _write(
    start: Start, resolved: Resolved, bundle: Bundle, host: HostFacts, runtime: RuntimeCommand
) -> tuple[RuntimeConfig, User]:
    """Complete a bundle; return its config.json, and the user it runs as. Raises Refused."""
    rootfs, request = Rootfs(bundle.rootfs), start.request
    defaults = ImageDefaults.parse(resolved.config.config)
    try:
        found = container_in(start.name, rootfs, defaults, request, host, start.maps)
    except UsageError as error:
        raise Refused(str(error)) from error
    for one in request.binds:
        if one.volume:
            NamedVolume(Path(one.source).parent).fill(rootfs.host_path(one.target))
    files = bundle.write_files(start.name, request)
    volumes = bundle.make_volumes(request.volumes_over(defaults), rootfs)
    host = replace(host, emulators=emulators_to_show(resolved.config.platform, Platform.host()))
    config = runtime_config(resolved.config, request, replace(found, files=(*files, *volumes)), host)
    check_command(rootfs, config, request, is_covered=bool(host.edits.mounts))
    config = settled(config, rootfs, host, runtime)
    bundle.write_config(config)
    return config, found.user


def _begin_mount(
    start: Start, resolved: Resolved, image: ImageSelection, bundle: Bundle, mounting: Mounting
) -> None:
    scratch, tree = scratch_of(start.options, image), image.store.tree(resolved.tree)
    if start.maps and tree:
        make_upper(scratch, tree)
    owner = (0, 0) if start.maps and has_single_id(start.maps) else None
    check_mountable(bundle.rootfs, nonempty=False)
    how = bundle_mount_options(
        bundle, scratch, owner, start.options, for_all=True, restart_after=_SHORT_LIVED
    )
    mounting.begin(resolved, image.connect, image.store, how)


def _host_facts(start: Start, runtime: OciRuntime) -> HostFacts:
    cgroups, maps = runtime.cgroups, start.maps
    bare = HostFacts(
        cgroup=None if cgroups.parent is None else f"{cgroups.parent}/imgfs-{start.id[:SHORT]}",
        controllers=cgroups.controllers,
        own_cgroup_namespace=cgroups.unified and cgroups.parent is not None,
        user_namespace=maps is not None,
        single_id=maps is not None and has_single_id(maps),
        no_device_cgroup=None if maps else runtime.no_device_cgroup,
    )
    return complete_host_facts(bare, start.request)
