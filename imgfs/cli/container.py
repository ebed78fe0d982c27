"""imgfs run, the child's part: mount a bundle in a private mount namespace, where `container_run` goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from imgfs.cli.container_mount import bundle_mount_options, scratch_of
from imgfs.cli.container_request import Start
from imgfs.cli.output import warn
from imgfs.cli.selection import ImageSelection, select_image
from imgfs.cli.tag_question import TagQuestion
from imgfs.image.resolve import Resolved
from imgfs.mount.daemon import Mounting
from imgfs.mounts.mountpoint import check_mountable
from imgfs.oci.reference import FileReference, LayoutReference
from imgfs.overlay.scratches import make_upper
from imgfs.runtime.bundle import Bundle, bundle_of, new_bundle
from imgfs.runtime.devices import complete_host_facts
from imgfs.runtime.host import (
    Cgroups,
    RuntimeCommand,
    cgroups_of_this_machine,
    find_runtime,
    no_device_cgroup,
    unmet_requests,
)
from imgfs.runtime.host_facts import HostFacts, has_single_id
from imgfs.runtime.named_volumes import placed
from imgfs.runtime.names import SHORT
from imgfs.runtime.namespace import detach_other_mounts
from imgfs.runtime.request import ContainerRequest, ImageDefaults, Network
from imgfs.runtime.signals import SignalRelay
from imgfs.runtime.teardown import Stopper, unmounting

_SHORT_LIVED = 1.0  # seconds: a container that ends sooner needs no process that has its image served again


def run_container(start: Start, mounting: Mounting, question: TagQuestion | None) -> int:
    """Run a container to its end; return its exit code, or the one for a command that could not be run.

    What a tag resolved to the last time is mounted while the registry is asked whether it still does, by
    `question` if there is one. The container only begins once that is known.
    """
    request, options = start.request, start.options
    if request.network is Network.PASTA:
        from imgfs.runtime.pasta import find_pasta  # here: few containers have a network of their own

        find_pasta()
    runtime, cgroups = find_runtime(options.runtime), cgroups_of_this_machine()
    image = replace(select_image(options, start.environment), must_run=True)
    ready = image.open_early(mounting, question)
    host = _host_facts(start, runtime, cgroups)
    for warning in unmet_requests(request, host, cgroups):
        warn(warning)
    request = replace(request, binds=tuple(placed(one, image.store.root) for one in request.binds))
    start = start._replace(request=request)
    detach_other_mounts(_needed(image, request, host))
    plan = ContainerPlan(start, image, runtime, cgroups, host, question)
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


class ContainerPlan(NamedTuple):
    """A container, except for its resolved image."""

    start: Start
    image: ImageSelection
    runtime: RuntimeCommand
    cgroups: Cgroups
    host: HostFacts
    question: TagQuestion | None


class _Outdated(Exception):
    """The reference resolves to another image now."""

    def __init__(self, meant: Resolved) -> None:
        super().__init__(str(meant.digest))
        self.meant = meant


def _contain(plan: ContainerPlan, resolved: Resolved, mounting: Mounting, *, is_guess: bool = False) -> int:
    """Mount `resolved` and run a container in it; if it was a guess, and wrong, raise _Outdated instead."""
    start, image = plan.start, plan.image
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
            from imgfs.cli import container_run  # here: it is loaded while the daemon mounts

            meant = image.prepare(question=plan.question, ready=resolved) if is_guess else resolved
        finally:
            mounting.wait()
        if plan.question:
            plan.question.close()
        if meant.digest != resolved.digest:
            raise _Outdated(meant)
        return container_run.run_mounted(plan, resolved, bundle, relay, mounting.pid)


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


def _host_facts(start: Start, runtime: RuntimeCommand, cgroups: Cgroups) -> HostFacts:
    maps = start.maps
    bare = HostFacts(
        cgroup=None if cgroups.parent is None else f"{cgroups.parent}/imgfs-{start.id[:SHORT]}",
        controllers=cgroups.controllers,
        own_cgroup_namespace=cgroups.unified and cgroups.parent is not None,
        user_namespace=maps is not None,
        single_id=maps is not None and has_single_id(maps),
        no_device_cgroup=None if maps else no_device_cgroup(runtime, cgroups),
    )
    return complete_host_facts(bare, start.request)
