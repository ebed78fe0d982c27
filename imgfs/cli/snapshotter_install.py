"""imgfs snapshotter install and uninstall: containerd and systemd are told of imgfs, or no more."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.cli.engine_server import socket_path
from imgfs.cli.options import Commands, add_command, store_option, store_root
from imgfs.cli.output import say, warn
from imgfs.errors import UsageError

if TYPE_CHECKING:
    from imgfs.engines.node.changed_files import FileChange

ROOT, ADDRESS = "/var/lib/imgfs/snapshotter", "/run/imgfs/snapshotter.sock"
_UNIT = "/etc/systemd/system/imgfs-snapshotter.service"
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
    command.add_argument(
        "--unit",
        metavar="FILE",
        default=_UNIT,
        help=f"the unit, and beside it its socket's (default: {_UNIT})",
    )
    command.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")


def install(options: argparse.Namespace) -> int:
    """Add imgfs to this machine's containerd."""
    from imgfs.engines.node.changed_files import FileChange, backup_of, text_of
    from imgfs.engines.node.config_places import drop_in_of
    from imgfs.engines.node.containerd_config import NodeSetup, with_imgfs
    from imgfs.engines.node.toml_edit import undone
    from imgfs.engines.node.unit import socket_unit, unit
    from imgfs.oci.descriptor import Platform

    main, (service, listening) = _config(options), _units(options)
    setup = NodeSetup(
        options.address, options.root, str(Platform.host()), options.runtime_class, _containerds_version()
    )
    importing = text_of(main)
    drop_in = drop_in_of(importing, main)
    config, importing = (drop_in, importing or "") if drop_in else (main, "")
    before = text_of(config)
    changes = [
        FileChange(config, before, with_imgfs(before or "", setup, str(config), importing)),
        FileChange(service, _own_text(service), unit(_command(options), listening.name)),
        FileChange(listening, _own_text(listening), socket_unit(str(socket_path(options.address)))),
    ]
    if changes[0].is_change and before and undone(before) and not backup_of(config).exists():
        changes.insert(0, FileChange(backup_of(config), None, before))
    if _carry_out(changes, options.dry_run):
        _show_next(options, main)
    _warn_of_disks(options, importing or before, main)
    return 0


def uninstall(options: argparse.Namespace) -> int:
    """Take imgfs out of this machine's containerd."""
    from imgfs.engines.node.changed_files import FileChange, backup_of, text_of
    from imgfs.engines.node.config_places import drop_in_of, service_of
    from imgfs.engines.node.toml_edit import undone
    from imgfs.engines.node.unit import MARK, NAME, SOCKET

    main = _config(options)
    config = drop_in_of(text_of(main), main) or main
    before, backup = text_of(config), backup_of(config)
    after = None if before is None else undone(before)
    changes = [FileChange(config, before, after or (after if backup.exists() else None))]
    for path in _units(options):
        if (known := text_of(path)) and known.startswith(MARK):
            changes.append(FileChange(path, known, None))
    if backup.exists() and text_of(backup) == after:
        changes.append(FileChange(backup, after, None))
    if _carry_out(changes, options.dry_run):
        units = f"{SOCKET} {NAME}"
        say(
            f"Next: systemctl stop {units}; systemctl disable {units}; "
            f"systemctl daemon-reload; systemctl restart {service_of(main)}"
        )
    return 0


def _config(options: argparse.Namespace) -> Path:
    from imgfs.engines.node.config_places import usual_config

    return Path(options.containerd) if options.containerd else usual_config()


def _units(options: argparse.Namespace) -> tuple[Path, Path]:
    """Return where the service's unit is, and its socket's."""
    service = Path(options.unit)
    return service, service.with_suffix(".socket")


def _own_text(path: Path) -> str | None:
    """Return what a unit of imgfs says; None if there is none. Raises UsageError if it is of another."""
    from imgfs.engines.node.changed_files import text_of
    from imgfs.engines.node.unit import MARK

    known = text_of(path)
    if known is not None and not known.startswith(MARK):
        raise UsageError(f"{path}: is there, and not of imgfs: move it away, or name another --unit")
    return known


def _carry_out(changes: Iterable[FileChange], is_dry: bool) -> bool:
    """Make the changes, or show them; return True if any was made."""
    found = [change for change in changes if change.is_change]
    for change in found:
        if is_dry:
            say("\n".join(_difference(change)))
        else:
            change.apply()
            say(f"{'removed' if change.after is None else 'wrote'} {change.path}")
    if not found:
        say("nothing to change")
    return bool(found) and not is_dry


def _difference(change: FileChange) -> Iterable[str]:
    if change.is_backup:
        return [f"{'remove' if change.after is None else 'write'} {change.path}"]
    before, after = ((text or "").splitlines() for text in (change.before, change.after))
    return difflib.unified_diff(before, after, str(change.path), str(change.path), lineterm="")


def _command(options: argparse.Namespace) -> list[str]:
    """Return the words that start the snapshotter: this very command, not another in the PATH."""
    called = os.path.abspath(sys.argv[0])
    program = called if os.path.basename(called) == "imgfs" else shutil.which("imgfs") or called
    chosen = {
        "--address": (options.address, ADDRESS),
        "--root": (options.root, ROOT),
        "--store": (options.store and os.path.abspath(options.store), None),
    }
    return [
        program,
        "snapshotter",
        *(word for option, (value, usual) in chosen.items() if value != usual for word in (option, value)),
    ]


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
    from imgfs.engines.node.unit import NAME

    say(
        f"""
Next:   systemctl daemon-reload && systemctl enable --now {NAME} && systemctl restart {service_of(config)}
Check:  systemctl status {NAME}
        ctr plugins ls | grep imgfs                        has to say ok
        crictl pull debian:12 && imgfs ps                  shows the image as a mount
        ctr -n k8s.io snapshots --snapshotter imgfs ls     lists its layers"""
    )
    if options.runtime_class:
        say(f"\n{_PULLS}\n\nFor Kubernetes (kubectl apply -f -):\n\n{_RUNTIME_CLASS}", flush=True)
