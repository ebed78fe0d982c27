"""The units of systemd that run imgfs's servers for engines (systemd.service(5), systemd.socket(5)).

Each server has two: a service, and the socket that it answers at. systemd keeps the socket while the service
is started anew: containerd and kubelet wait then, and are not refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# KillMode: the mounts' processes are in this unit, and containers need them.
_KEEPS_MOUNTS = """\
KillMode=process
OOMScoreAdjust=-999
LimitNOFILE=1048576
"""
_UNIT = """\
[Unit]
Description={description}
Documentation=man:{name}(1)
{order}
Wants={socket}

[Service]
Type=notify
ExecStart={command}
Restart=always
RestartSec=1
{more}
[Install]
WantedBy=multi-user.target
"""
_SOCKET = """\
[Unit]
Description={description}
Documentation=man:{name}(1)

[Socket]
ListenStream={address}
SocketMode=0600

[Install]
WantedBy=sockets.target
"""
_VARIABLE = """\
[Service]
Environment={word}
"""


class ServerUnits(NamedTuple):
    """A server of imgfs: its units' `name`, what they are described as, and what each says of its order."""

    name: str
    service: str
    socket: str
    order: str
    keeps_mounts: bool

    @property
    def mark(self) -> str:
        """Return the line that its units begin with."""
        return (
            f"# Written by `{self.name.replace('-', ' ')} install`. "
            "What you change, put into a drop-in (systemctl edit).\n"
        )

    @property
    def units(self) -> tuple[str, str]:
        """Return the names of its units: the service's, and the socket's."""
        return f"{self.name}.service", f"{self.name}.socket"

    def service_unit(self, command: Sequence[str], socket: str = "") -> str:
        """Return the unit that runs a command, and wants the unit `socket`, if not that of its own name."""
        return self.mark + _UNIT.format(
            description=self.service,
            name=self.name,
            order=self.order,
            socket=socket or self.units[1],
            command=" ".join(map(_word, command)),
            more=_KEEPS_MOUNTS if self.keeps_mounts else "",
        )

    def socket_unit(self, address: str) -> str:
        """Return the unit that listens at a path for the service of its name."""
        where = address.replace("%", "%%")
        return self.mark + _SOCKET.format(description=self.socket, name=self.name, address=where)

    def variable(self, name: str, value: str) -> str:
        """Return a drop-in that has another unit run with a variable."""
        return self.mark + _VARIABLE.format(word=_quoted(f"{name}={value}".replace("%", "%%")))


SNAPSHOTTER = ServerUnits(
    "imgfs-snapshotter",
    "Images for containerd, mounted by imgfs",
    "Where containerd asks imgfs",
    "Before=containerd.service k3s.service k3s-agent.service rke2-server.service rke2-agent.service",
    keeps_mounts=True,
)
CRI = ServerUnits(
    "imgfs-cri",
    "Passwords of pulls for imgfs",
    "Where kubelet asks for images",
    "After=containerd.service\nBefore=kubelet.service",
    keeps_mounts=False,
)
CSI = ServerUnits(
    "imgfs-csi",
    "Images as volumes of pods, mounted by imgfs",
    "Where kubelet asks for volumes",
    "Before=kubelet.service",
    keeps_mounts=True,
)


def _word(text: str) -> str:
    """Return an argument as systemd reads it back: `%` and `$` doubled, quoted if it has to be."""
    return _quoted(text.replace("%", "%%").replace("$", "$$"))


def _quoted(text: str) -> str:
    """Return a word as systemd reads it back (systemd.syntax(7), "Quoting")."""
    if not any(sign in text for sign in " \t'\"\\;"):
        return text
    return '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))
