"""A network of a container's own, connected by pasta(1) (package passt): as root and as an ordinary user.

pasta copies the machine's addresses into the network namespace and carries what is sent there by sockets of
its own, so neither bridges nor rights are needed. What listens on the machine's loopback is not reached from
it, and the container is reached only by the ports that are published.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from imgfs import syscalls
from imgfs.errors import MountError, UsageError
from imgfs.runtime.process_id import end_process, held_process
from imgfs.runtime.request import PortMapping
from imgfs.starting import fork

_START = 30.0  # seconds that pasta may take to configure the namespace
_PATIENCE = 2.0  # seconds that pasta may take to end
_DNS = "169.254.1.1"  # where pasta answers for a name server that only this machine reaches; podman's
_NOISE = re.compile(r"Failed to send \d+ bytes to syslog|No routable interface.*disabled")
_NAMESERVER = re.compile(r"^\s*nameserver\s+(\S+)", re.MULTILINE)


def find_pasta() -> str:
    """Return the path of pasta; raises UsageError."""
    path = shutil.which("pasta") or shutil.which("pasta", path="/usr/local/bin:/usr/bin:/bin")
    if path is None:
        raise UsageError("a network with ports (-p, --network pasta) needs pasta (Debian: apt install passt)")
    return path


@contextlib.contextmanager
def pasta_network(pasta: str, namespace: Path, ports: Sequence[PortMapping]) -> Iterator[int]:
    """A connected network namespace at a new file `namespace` for the block; yields pasta's pid.

    Its ports are free again when the block ends. Raises MountError, with pasta's reason: a port that is
    taken, no /dev/net/tun.
    """
    namespace.touch()
    _make_namespace(namespace)
    pid_file = namespace.with_name("pasta.pid")
    try:
        _start(pasta_command(pasta, namespace, pid_file, ports, _resolv_conf()))
        pid = int(pid_file.read_text())
        with held_process(pid) as fd:
            try:
                yield pid
            finally:
                end_process(fd, _PATIENCE)
    finally:
        with contextlib.suppress(OSError):
            syscalls.detach_mount(str(namespace))


def pasta_command(
    pasta: str, namespace: Path, pid_file: Path, ports: Sequence[PortMapping], resolv_conf: str
) -> list[str]:
    """Return the words that start pasta: it goes into the background once the network is there."""
    words = [
        pasta,
        "--config-net",
        "--quiet",
        "--no-map-gw",
        "--pid",
        str(pid_file),
        "--netns",
        str(namespace),
    ]
    words += ["--runas", "0", "-T", "none", "-U", "none"]
    for protocol, option in (("tcp", "-t"), ("udp", "-u")):
        mapped = [one for one in ports if one.protocol == protocol]
        for one in mapped:
            at = f"{one.address}/" if one.address else ""
            words += [option, f"{at}{one.host}:{one.container}"]
        words += [] if mapped else [option, "none"]
    return [*words, "--dns-forward", _DNS] if _has_local_server(resolv_conf) else words


def resolv_conf_for_pasta(text: str) -> str:
    """This machine's resolv.conf as it serves a network of its own: no name server on loopback."""
    if not _has_local_server(text):
        return text
    kept = [line for line in text.splitlines() if not _NAMESERVER.match(line)]
    return "\n".join([f"nameserver {_DNS}", *kept, ""])


def _has_local_server(resolv_conf: str) -> bool:
    servers = _NAMESERVER.findall(resolv_conf)
    return not servers or any(one.startswith("127.") or one == "::1" for one in servers)


def _resolv_conf() -> str:
    with contextlib.suppress(OSError):
        return Path("/etc/resolv.conf").read_text(errors="replace")
    return ""


def _make_namespace(path: Path) -> None:
    """Have a new network namespace at a file: a child moves into it, and binds it there."""
    pid = fork()
    if pid == 0:
        code = 1
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            syscalls.bind_mount("/proc/self/ns/net", str(path))
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise MountError("this machine does not let you have a network namespace")


def _start(words: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_START, check=False, text=True
        )
    except subprocess.TimeoutExpired as error:
        raise MountError(f"pasta did not begin within {_START:.0f} s") from error
    except OSError as error:
        raise MountError(f"{words[0]}: {error.strerror}") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if not _NOISE.search(line)]
        raise MountError(f"pasta: {'; '.join(lines[-3:]) or f'it ended with {done.returncode}'}")
