"""The options of run and bundle, and the ContainerRequest that they make."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from imgfs.cli.container_security import limit_options, resources_of, rights_options, security_of
from imgfs.cli.container_volumes import mount_options
from imgfs.cli.options import Commands, add_command, driver_option, image_options, in_image, lazily
from imgfs.config import variables
from imgfs.errors import UsageError
from imgfs.runtime.request import Bind, ContainerRequest, Network
from imgfs.runtime.signals import find_signal


def add_run(commands: Commands) -> None:
    """`imgfs run`."""
    command = add_command(
        commands,
        "run",
        lazily("run", "run"),
        "run a container of an image",
        """\
Runs a command, the image's own or CMD, in a container of IMAGE: nothing is pulled, bytes are fetched as they
are read. What the container changes goes with it, unless --scratch keeps it. Needs crun or runc.
The exit code is the command's; 125 if imgfs or the runtime failed or an option is wrong, 126 if the container
cannot be set up or the command cannot be executed, 127 if it is not found, 128+N if signal N ended it.

Examples:
  imgfs run debian:12 cat /etc/os-release
  imgfs run -it debian:12 bash
  imgfs run -v ./data:/data:ro -e MODE=test registry.example.com/team/app:v2
  imgfs run --scratch work debian:12 apt-get update     imgfs diff work says what it changed
  imgfs run --read-only --network none -u nobody debian:12 id
  imgfs run --cap-drop ALL --security-opt no-new-privileges --memory 512m --pids-limit 64 app:v2
  imgfs run --device /dev/fuse --cap-add SYS_ADMIN --ulimit nofile=4096 debian:12 bash
""",
    )
    command.usage = "imgfs run [OPTIONS] IMAGE [CMD…]"
    _container_options(command)
    command.add_argument(
        "-i", "--interactive", action="store_true", help="pass standard input on (otherwise it is empty)"
    )
    command.add_argument(
        "--name", metavar="NAME", help="its name, and its host name (default: twelve digits)"
    )
    command.add_argument("--runtime", metavar="NAME|PATH", help="the OCI runtime (default: crun, else runc)")
    command.add_argument(
        "--rm",
        action="store_true",
        help="accepted as podman has it: a container is always removed when it ends",
    )
    command.add_argument(
        "--stop-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=10,
        help="time to end after its stop signal, or after imgfs was killed, before SIGKILL (default: 10)",
    )
    _refused_options(command)
    _image_and_command(command)


def add_bundle(commands: Commands) -> None:
    """`imgfs bundle`."""
    command = add_command(
        commands,
        "bundle",
        lazily("container", "bundle"),
        "make an OCI runtime bundle of an image, for another engine",
        """\
Writes DIR/config.json and mounts IMAGE at DIR/rootfs, for an OCI runtime to run. The image's volumes are not
mounts of their own there. Unmount it with: imgfs umount DIR/rootfs

Examples:
  imgfs bundle debian:12 ./box
  runc run -b ./box name
  imgfs bundle --scratch work debian:12 ./box bash -c 'echo hello >/greeting'
""",
    )
    command.usage = "imgfs bundle [OPTIONS] IMAGE DIR [CMD…]"
    _container_options(command)
    _image_and_command(command, directory=True)


def _image_and_command(command: argparse.ArgumentParser, *, directory: bool = False) -> None:
    image_options(command)
    if directory:
        command.add_argument("directory", metavar="DIR", help="the bundle's directory; made if it is missing")
    command.add_argument(
        "command", metavar="CMD", nargs=argparse.REMAINDER, help="the command, instead of the image's own"
    )


def _container_options(command: argparse.ArgumentParser) -> None:
    """Add the options that describe the container."""
    add = command.add_argument
    add("-t", "--tty", action="store_true", help="give it a terminal")
    add(
        "-e",
        "--env",
        metavar="K[=V]",
        action="append",
        default=[],
        help="set a variable; without a value: copy it from here",
    )
    add(
        "--env-file",
        metavar="FILE",
        action="append",
        default=[],
        help="set variables from a file, one a line",
    )
    mount_options(command)
    add("-w", "--workdir", metavar="DIR", type=in_image, help="its working directory; made if it is missing")
    add("-u", "--user", metavar="USER[:GROUP]", help="run as this user, by name or number")
    add(
        "--entrypoint",
        metavar="CMD",
        help="instead of the image's; several words as a JSON array; '' for none",
    )
    add("--hostname", metavar="NAME", type=_hostname, help="its host name (default: its name)")
    add(
        "--network",
        type=Network,
        choices=list(Network),
        default=Network.HOST,
        help="share this machine's network (host, the default), or have a loopback only (none)",
    )
    limit_options(command)
    rights_options(command)
    add(
        "--init",
        action="store_true",
        help="run catatonit or tini of this machine as process 1, which reaps orphans",
    )
    add(
        "--read-only",
        action="store_true",
        help="make the root read-only; /tmp, /var/tmp, /run and volumes stay writable",
    )
    add(
        "--read-only-tmpfs",
        metavar="true|false",
        default=True,
        type=_truth,
        help="false: make /tmp, /var/tmp and /run read-only, too",
    )
    add("--scratch", metavar="NAME|DIR", help="keep what it changes (see: imgfs mount --help)")
    add(
        "--stop-signal",
        metavar="SIGNAL",
        type=_signal,
        help="the signal that ends it (default: the image's, else TERM)",
    )
    _note_options(command)
    driver_option(command)


def _note_options(command: argparse.ArgumentParser) -> None:
    """Add annotations; labels become annotations, as with podman. The image's own labels never do."""
    more: dict[str, Any] = {"dest": "annotation", "metavar": "KEY=VALUE", "action": "append", "type": _note}
    command.add_argument("--annotation", default=[], help="an annotation in config.json", **more)
    command.add_argument("-l", "--label", default=[], help="the same as --annotation", **more)


class _Refused(argparse.Action):
    """An option of podman's that imgfs does not have; its error says what to do instead."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        parser.error(f"{rest[-1]}: {self.const}")


def _refused_options(command: argparse.ArgumentParser) -> None:
    refused: dict[str, Any] = {"action": _Refused, "help": argparse.SUPPRESS}
    why = "a container ends with the imgfs run that started it: put that into the background"
    command.add_argument("-d", "--detach", nargs=0, const=why, **refused)
    why = "imgfs forwards no ports: with --network host, the default, they are this machine's"
    command.add_argument("-p", "--publish", const=why, **refused)
    why = "a container has processes of its own, so that none is left of it"
    command.add_argument("--pid", const=why, **refused)


def _note(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, value


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def _signal(text: str) -> str:
    if find_signal(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no signal, like QUIT or 3")
    return text


def _seconds(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return int(text)


def _hostname(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no host's name")
    return text


def request_of(options: argparse.Namespace) -> ContainerRequest:
    """What the command line asks for; raises UsageError."""
    return ContainerRequest(
        command=tuple(options.command),
        entrypoint=_entrypoint(options.entrypoint),
        env=_variables(options),
        user=options.user,
        workdir=options.workdir,
        hostname=options.hostname,
        terminal=options.tty,
        network=options.network,
        read_only=options.read_only,
        binds=tuple(_existing(one) for one in options.volume),
        tmpfs=tuple(options.tmpfs),
        read_only_tmpfs=options.read_only_tmpfs,
        resources=resources_of(options),
        security=security_of(options),
        hosts=tuple(options.add_host),
        annotations=dict(options.annotation),
        stop_signal=options.stop_signal,
        init=options.init,
    )


def _entrypoint(text: str | None) -> tuple[str, ...] | None:
    """One word, or those of a JSON array, as podman reads it."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        words = json.loads(text)
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return tuple(words)
    return (text,) if text else ()


def _variables(options: argparse.Namespace) -> dict[str, str]:
    """Those of the files, then those given one by one."""
    lines = [line for path in options.env_file for line in Path(path).read_text().splitlines()]
    texts = [line.lstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    here = variables()
    found = {}
    for text in (*texts, *options.env):
        name, has_value, value = text.partition("=")
        if not name:
            raise UsageError(f"{text!r} is no variable: NAME=VALUE, or NAME")
        if has_value or name in here:
            found[name] = value if has_value else here[name]
    return found


def _existing(one: Bind) -> Bind:
    source = os.path.abspath(one.source)
    if not os.path.exists(source):
        raise UsageError(f"{one.source}: there is no such file or directory to show at {one.target}")
    return one._replace(source=source, options=_options(one, source))


def _options(one: Bind, source: str) -> tuple[str, ...]:
    """How a bind is mounted: a device, or what is in /dev, is shown to be opened."""
    is_of_devices = Path("/dev") in (Path(source), *Path(source).parents)
    if is_of_devices or Path(source).is_char_device() or Path(source).is_block_device():
        return tuple(option for option in one.options if option != "nodev")
    return one.options
