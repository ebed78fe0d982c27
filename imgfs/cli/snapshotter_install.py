"""imgfs snapshotter install and uninstall: containerd and systemd are told of imgfs, or no more."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

from imgfs.cli.engine_server import checked_path, socket_path
from imgfs.cli.node_units import (
    absolute,
    carry_out,
    command_words,
    removed_units,
    say_how_to_stop,
    unit_options,
    written_units,
)
from imgfs.cli.options import Commands, add_command, store_option, store_root
from imgfs.cli.output import say, warn

ROOT, ADDRESS = "/var/lib/imgfs/snapshotter", "/run/imgfs/snapshotter.sock"
_PULLS = """\
kubelet pulls images for another snapshotter, unless it has the feature gate RuntimeClassInImageCriApi,
or the pod the annotation io.containerd.cri.runtime-handler: imgfs (until containerd 2.5)."""
_RUNTIME_CLASS = """\
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: imgfs
handler: imgfs
"""


def add_setup(actions: Commands) -> None:
    """`imgfs snapshotter install` and `uninstall`."""
    command = add_command(
        actions,
        "install",
        install,
        "have containerd use the snapshotter",
        """\
Adds the snapshotter to containerd's configuration, and writes units for systemd. What is there stays; the
first state of the configuration is kept beside it. Nothing is started: what to do next is shown.

Examples:
  imgfs snapshotter install --dry-run
  imgfs snapshotter install
  imgfs snapshotter install --runtime-class     only for pods with `runtimeClassName: imgfs`
""",
    )
    _file_options(command)
    command.add_argument(
        "--runtime-class", action="store_true", help="not for all pods, but for those of a RuntimeClass"
    )
    command.add_argument("--address", metavar="SOCKET", default=ADDRESS, help="where the snapshotter answers")
    command.add_argument("--root", metavar="DIR", default=ROOT, help="where the snapshotter keeps snapshots")
    store_option(command)
    command = add_command(
        actions,
        "uninstall",
        uninstall,
        "take out what install has added",
        """\
Takes out of containerd's configuration what was added, and removes the units. Images that were pulled through
imgfs have to be removed before: no other snapshotter has their layers.

Examples:
  imgfs snapshotter uninstall --dry-run
  imgfs snapshotter uninstall
""",
    )
    _file_options(command)


def _file_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--containerd",
        metavar="FILE",
        help="containerd's configuration (default: /etc/containerd/config.toml, or that of k3s, RKE2 or "
        "MicroK8s; beside one that is written anew at each start goes a file that it imports)",
    )
    unit_options(command, "imgfs-snapshotter")


def install(options: argparse.Namespace) -> int:
    """Add imgfs to this machine's containerd."""
    from imgfs.engines.node.changed_files import FileChange, backup_of, text_of
    from imgfs.engines.node.config_places import drop_in_of, files_beside, main_of
    from imgfs.engines.node.containerd_config import NodeSetup, with_imgfs
    from imgfs.engines.node.toml_edit import undone
    from imgfs.engines.node.unit import SNAPSHOTTER
    from imgfs.oci.descriptor import Platform

    main, (address, root) = _config(options), _places(options)
    setup = NodeSetup(
        str(address), str(root), str(Platform.host()), options.runtime_class, _containerds_version()
    )
    config = drop_in_of(text_of(main), main) or main
    before = text_of(config)
    beside = files_beside(config, main_of(main) if config == main else main)
    after = with_imgfs(before or "", setup, str(config), beside)
    changes = [
        FileChange(config, before, after),
        *written_units(SNAPSHOTTER, options.unit, _command(options), address),
    ]
    is_first = before is not None and before == undone(before) != after
    if is_first and not backup_of(config).exists():
        changes.insert(0, FileChange(backup_of(config), None, before, like=config))
    if carry_out(changes, is_dry=options.dry_run):
        _show_next(options, main)
    _warn_of_disks(options, text_of(main), main)
    return 0


def uninstall(options: argparse.Namespace) -> int:
    """Take imgfs out of this machine's containerd."""
    from imgfs.engines.node.changed_files import FileChange, backup_of, text_of
    from imgfs.engines.node.config_places import drop_in_of, service_of
    from imgfs.engines.node.toml_edit import undone
    from imgfs.engines.node.unit import SNAPSHOTTER

    main = _config(options)
    config = drop_in_of(text_of(main), main) or main
    before, backup = text_of(config), backup_of(config)
    after = None if before is None else undone(before)
    changes = [
        FileChange(config, before, after or (after if backup.exists() or before == after else None)),
        *removed_units(SNAPSHOTTER, options.unit),
    ]
    if backup.exists() and text_of(backup) == after:
        changes.append(FileChange(backup, after, None))
    if carry_out(changes, is_dry=options.dry_run):
        say_how_to_stop(SNAPSHOTTER, service_of(main))
    return 0


def _config(options: argparse.Namespace) -> Path:
    from imgfs.engines.node.config_places import usual_config

    return Path(os.path.abspath(options.containerd)) if options.containerd else usual_config()


def _places(options: argparse.Namespace) -> tuple[Path, Path]:
    """Return where the snapshotter answers and keeps snapshots: containerd and systemd want whole paths."""
    return socket_path(options.address), checked_path(Path(options.root))


def _command(options: argparse.Namespace) -> list[str]:
    address, root = map(str, _places(options))
    return command_words(
        "snapshotter",
        {
            "--address": (address, ADDRESS),
            "--root": (root, ROOT),
            "--store": (absolute(options.store), None),
        },
    )


def _warn_of_disks(options: argparse.Namespace, config: str | None, path: Path) -> None:
    """Say so if kubelet will not see how full the store's disk is."""
    from imgfs.engines.node.containerd_config import root_of
    from imgfs.engines.node.disks import unseen_disk

    seen = root_of(config or "", str(path)) if options.runtime_class else Path(options.root)
    if said := unseen_disk(store_root(options), seen):
        warn(said)


def _containerds_version() -> int:
    """Return the version of the configuration that the installed containerd writes; 3 if there is none."""
    try:
        said = subprocess.run(
            ["containerd", "--version"], capture_output=True, text=True, check=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 3
    return 2 if " v1." in said or " 1." in said else 3


def _show_next(options: argparse.Namespace, config: Path) -> None:
    from imgfs.engines.node.config_places import service_of
    from imgfs.engines.node.unit import SNAPSHOTTER

    name, _ = SNAPSHOTTER.units
    say(
        f"""
Next:   systemctl daemon-reload && systemctl enable --now {name} && systemctl restart {service_of(config)}
Check:  systemctl status {name}
        ctr plugins ls | grep imgfs                        has to say ok
        crictl pull debian:12 && imgfs ps                  shows the image as a mount
        ctr -n k8s.io snapshots --snapshotter imgfs ls     lists its layers"""
    )
    if options.runtime_class:
        say(f"\n{_PULLS}\n\nFor Kubernetes (kubectl apply -f -):\n\n{_RUNTIME_CLASS}", flush=True)
