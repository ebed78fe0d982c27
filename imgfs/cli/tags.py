"""imgfs tags: the tags of a repository, a layout or an archive."""

from __future__ import annotations

import argparse
import json
from functools import partial

from imgfs.cli.options import Commands, add_command, connection_options, count, json_option, open_store
from imgfs.cli.output import say

_MOST = 10_000


def add_tags(commands: Commands) -> None:
    """`imgfs tags`."""
    command = add_command(
        commands,
        "tags",
        tags,
        "list the tags of a repository, a layout or an archive",
        """\
Lists the tags of IMAGE's repository, in the registry's order, or of an OCI layout or archive. Tags of
signatures and of lists of referrers are left out, unless --all.

Examples:
  imgfs tags debian
  imgfs tags oci:build
  imgfs tags --limit 100 registry.example.com/team/app
""",
    )
    command.add_argument("image", metavar="IMAGE", help="a repository; a tag in it does not count")
    command.add_argument(
        "--limit", metavar="N", type=count, default=_MOST, help=f"at most N (default: {_MOST})"
    )
    command.add_argument("--all", action="store_true", help="with tags that name no image")
    connection_options(command, peers=False)
    json_option(command)


def tags(options: argparse.Namespace) -> int:
    """List tags."""
    from imgfs.cli.connection import options_for, resolver_of, timeouts_of
    from imgfs.config import Environment
    from imgfs.oci.kind import is_artifact_tag
    from imgfs.oci.reference import RegistryReference
    from imgfs.registry.config.shortnames import candidates
    from imgfs.transport.tags import tags_of

    environment = Environment.read()
    reference = candidates(options.image, environment.registry_files.registries)[0]
    if isinstance(reference, RegistryReference):
        options = options_for(options, reference.registry)
    found = tags_of(
        reference,
        options.limit,
        resolver=resolver_of(options, environment),
        auth_files=environment.auth_sources,
        timeouts=timeouts_of(options.read_timeout),
        ca_bundle=environment.ca_bundle,
        open_store=partial(open_store, options, environment),
    )
    shown = [tag for tag in found if options.all or not is_artifact_tag(tag)]
    if options.json:
        say(json.dumps(shown, indent=2))
    else:
        for tag in shown:
            say(tag)
    return 0
