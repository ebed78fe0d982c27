"""login, logout: what they may be told, and what their help teaches."""

from __future__ import annotations

import argparse

from imgfs.cli.arguments.options import Commands, add_command, connection_options


def add_login(commands: Commands) -> None:
    """`imgfs login`."""
    command = add_command(
        commands,
        "login",
        "login",
        "keep a user name and password for a registry",
        """\
Checks a user name and password against a registry and keeps them where podman, skopeo and imgfs look: in
$REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json (for root without a session: in /run/containers/0),
which goes when the machine is restarted, or ~/.config/containers/auth.json. A file that names a credential
helper (credsStore, credHelpers) has that keep the password. It is read from the terminal or from standard
input, never from an argument: those are shown to everybody by ps. What docker login and podman login keep is
found as well.

Examples:
  imgfs login registry.example.com
  imgfs login -u ann --password-stdin registry.example.com < token
  imgfs login -u ann registry.example.com/team     for that namespace only
  imgfs login --docker docker.io                   where docker looks: ~/.docker/config.json
  imgfs login -u '<token>' --password-stdin reg.io an identity token, traded for access tokens
""",
    )
    command.add_argument("--username", "-u", metavar="USER", help="asked for on the terminal otherwise")
    command.add_argument(
        "--password-stdin", action="store_true", help="read the password from standard input, one line"
    )
    _place_options(command)
    connection_options(command)


def add_logout(commands: Commands) -> None:
    """`imgfs logout`."""
    command = add_command(
        commands,
        "logout",
        "login",
        "forget what is kept for a registry",
        """\
Removes what imgfs login keeps for a registry, from the same file or helper.

Examples:
  imgfs logout registry.example.com
  imgfs logout registry.example.com/team
  imgfs logout --all registry.example.com          from every file that is looked in, docker's too
""",
    )
    command.add_argument("--all", action="store_true", help="from all files that imgfs looks in")
    _place_options(command)


def _place_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("registry", metavar="REGISTRY[/NAMESPACE]")
    where = command.add_mutually_exclusive_group()
    where.add_argument("--authfile", metavar="FILE", help="the file to keep it in")
    where.add_argument(
        "--docker", action="store_true", help="in docker's file: $DOCKER_CONFIG/config.json or ~/.docker"
    )
