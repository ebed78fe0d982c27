"""The snapshotter's unit of systemd (systemd.service(5))."""

from __future__ import annotations

from collections.abc import Sequence

MARK = "# Written by `imgfs snapshotter install`. What you change, put into a drop-in (systemctl edit).\n"
NAME = "imgfs-snapshotter.service"
# KillMode: the mounts' processes are in this unit, and containers need them.
_UNIT = """\
[Unit]
Description=Images for containerd, mounted by imgfs
Documentation=man:imgfs-snapshotter(1)
Before=containerd.service k3s.service k3s-agent.service rke2-server.service rke2-agent.service

[Service]
Type=notify
ExecStart={command}
Restart=always
RestartSec=1
KillMode=process
OOMScoreAdjust=-999
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
"""


def unit(command: Sequence[str]) -> str:
    """Return the unit that runs a command."""
    return f"{MARK}{_UNIT.format(command=' '.join(map(_word, command)))}"


def _word(text: str) -> str:
    """Return an argument as systemd reads it back: quoted, `%` and `$` doubled (systemd.syntax(7))."""
    doubled = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{doubled}"' if any(sign in text for sign in " \t'\"\\;") else doubled
