"""The snapshotter's units of systemd (systemd.service(5), systemd.socket(5))."""

from __future__ import annotations

from collections.abc import Sequence

MARK = "# Written by `imgfs snapshotter install`. What you change, put into a drop-in (systemctl edit).\n"
NAME, SOCKET = "imgfs-snapshotter.service", "imgfs-snapshotter.socket"
# KillMode: the mounts' processes are in this unit, and containers need them.
_UNIT = """\
[Unit]
Description=Images for containerd, mounted by imgfs
Documentation=man:imgfs-snapshotter(1)
Before=containerd.service k3s.service k3s-agent.service rke2-server.service rke2-agent.service
Wants={socket}

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

# systemd keeps the socket while the service is started anew: containerd waits, and is not refused.
_SOCKET = """\
[Unit]
Description=Where containerd asks imgfs
Documentation=man:imgfs-snapshotter(1)

[Socket]
ListenStream={address}
SocketMode=0600

[Install]
WantedBy=sockets.target
"""


def unit(command: Sequence[str], socket: str = SOCKET) -> str:
    """Return the unit that runs a command, and wants the unit `socket`."""
    return f"{MARK}{_UNIT.format(command=' '.join(map(_word, command)), socket=socket)}"


def socket_unit(address: str) -> str:
    """Return the unit that listens at a path for the other of its name."""
    return f"{MARK}{_SOCKET.format(address=address.replace('%', '%%'))}"


def _word(text: str) -> str:
    """Return an argument as systemd reads it back: quoted, `%` and `$` doubled (systemd.syntax(7))."""
    doubled = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{doubled}"' if any(sign in text for sign in " \t'\"\\;") else doubled
