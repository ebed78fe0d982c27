"""imgfs run, the child's part in the mounted image: complete the bundle, and run an OCI runtime on it.

What this takes is loaded while the daemon mounts: `container` imports nothing of it before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.cli.container_life import ContainerLife
from imgfs.cli.container_setup import container_in, settled
from imgfs.cli.output import complain
from imgfs.errors import UsageError
from imgfs.oci.descriptor import Platform
from imgfs.runtime.emulation import emulators_to_show
from imgfs.runtime.exposed_ports import with_exposed_ports
from imgfs.runtime.host import remove_cgroup
from imgfs.runtime.named_volumes import NamedVolume
from imgfs.runtime.oci_runtime import OciRuntime, start_failure
from imgfs.runtime.output_log import LARGEST, LogWriter
from imgfs.runtime.request import ContainerRequest, ImageDefaults, Network
from imgfs.runtime.rootfs import Refused, Rootfs, check_command
from imgfs.runtime.signals import Ended
from imgfs.runtime.spec import RuntimeConfig, runtime_config
from imgfs.runtime.stdio import StdioPipes

if TYPE_CHECKING:
    from imgfs.cli.container import ContainerPlan
    from imgfs.cli.container_request import Start
    from imgfs.image.resolve import Resolved
    from imgfs.runtime.bundle import Bundle
    from imgfs.runtime.host import RuntimeCommand
    from imgfs.runtime.host_facts import HostFacts
    from imgfs.runtime.signals import SignalRelay
    from imgfs.runtime.user import User


def run_mounted(
    plan: ContainerPlan, resolved: Resolved, bundle: Bundle, relay: SignalRelay, daemon: int
) -> int:
    """Run a container in its mounted image, which the process `daemon` serves; return its exit code."""
    start, defaults = plan.start, ImageDefaults.parse(resolved.config.config)
    with contextlib.ExitStack() as stack:
        try:
            start = start._replace(request=with_exposed_ports(start.request, defaults))
            network = stack.enter_context(_network(start.request, bundle))
            host = replace(plan.host, network=str(bundle.network)) if network else plan.host
            with relay.ends_work():  # volumes are filled
                config, user = _write(start, resolved, bundle, host, plan.runtime)
        except Ended:
            return 128 + (relay.ending or 0)
        except Refused as refused:
            complain(refused)
            return refused.code
        life = ContainerLife(start, bundle, daemon, network)
        life.begin(resolved, config, plan.runtime.path, start.request.stop_signal or defaults.stop_signal)
        code = _run(OciRuntime(plan.runtime, plan.cgroups), start, bundle, relay, user, life)
        reason = start_failure(bundle) if code else None
        if reason is None:
            life.ended(code)
            return code
        if host.cgroup:
            remove_cgroup(host.cgroup)
        return 128 + relay.ending if relay.ending else reason


@contextlib.contextmanager
def _network(request: ContainerRequest, bundle: Bundle) -> Iterator[int | None]:
    """The pid of the process that connects a container's own network, if it has one."""
    if request.network is not Network.PASTA:
        yield None
        return
    from imgfs.runtime.pasta import find_pasta, pasta_network  # here: few containers have one

    with pasta_network(find_pasta(), bundle.network, request.ports) as pid:
        yield pid


def _run(
    runtime: OciRuntime, start: Start, bundle: Bundle, relay: SignalRelay, user: User, life: ContainerLife
) -> int:
    """Run the container on its terminal, or on pipes."""
    owner = user.uid, user.gid
    if start.options.detach:
        with contextlib.closing(LogWriter(bundle.directory, start.options.log_opt or LARGEST)) as log:
            if start.request.terminal:
                pipes = StdioPipes.of_terminal(owner, log)
            else:
                pipes = StdioPipes(owner, has_input=start.options.interactive, log=log)
            with pipes:
                return runtime.run(bundle, start.name, relay, pipes, life.started)
    if start.request.terminal:
        return runtime.run(bundle, start.name, relay, None, life.started)
    with StdioPipes(owner, has_input=start.options.interactive) as pipes:
        return runtime.run(bundle, start.name, relay, pipes, life.started)


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
