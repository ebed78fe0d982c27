"""imgfs catalog: the repositories of a registry."""

from __future__ import annotations

import argparse
import json
from functools import partial

from imgfs.cli.login import parse_scope
from imgfs.cli.options import Commands, add_command, connection_options, count, json_option
from imgfs.cli.output import say, warn
from imgfs.errors import UsageError

_MOST = 10_000


def add_catalog(commands: Commands) -> None:
    """`imgfs catalog`."""
    command = add_command(
        commands,
        "catalog",
        catalog,
        "list the repositories of a registry, if it allows that",
        """\
Lists the repositories of REGISTRY, in its order. Many registries do not allow it, or list only what the user
may see (see: imgfs login).

Examples:
  imgfs catalog registry.example.com
  imgfs catalog --limit 100 --json localhost:5000
""",
    )
    command.add_argument("registry", metavar="REGISTRY", help="HOST[:PORT]")
    command.add_argument(
        "--limit", metavar="N", type=count, default=_MOST, help=f"at most N (default: {_MOST})"
    )
    connection_options(command, peers=False)
    json_option(command)


def catalog(options: argparse.Namespace) -> int:
    """List repositories."""
    from imgfs.cli.connection import options_for, resolver_of, timeouts_of
    from imgfs.config import Environment
    from imgfs.registry.catalog import list_repositories
    from imgfs.registry.config.credentials import find_credentials

    scope = parse_scope(options.registry)
    if scope.namespace:
        raise UsageError(f"{options.registry!r} is more than a registry: HOST[:PORT]")
    environment = Environment.read()
    options = options_for(options, scope.registry)
    endpoint = resolver_of(options, environment).for_push(scope.registry, "x")
    timeouts = timeouts_of(options.read_timeout)
    found = list_repositories(
        endpoint,
        options.limit,
        credentials=partial(
            find_credentials, environment.auth_sources, endpoint.host, "", seconds=timeouts.helper
        ),
        timeouts=timeouts,
        ca_bundle=environment.ca_bundle,
    )
    if options.json:
        say(json.dumps(found.repositories, indent=2))
    else:
        for repository in found.repositories:
            say(repository)
    if not found.is_whole:
        warn(f"{scope.registry} has more repositories than these {len(found.repositories)} (see --limit)")
    return 0
