"""pull: what it may be told, and what its help teaches."""

from __future__ import annotations

from imgfs.cli.arguments.options import Commands, add_command, image_options, rate


def add_pull(commands: Commands) -> None:
    """`imgfs pull`."""
    command = add_command(
        commands,
        "pull",
        "pull",
        "fetch an image whole, to use it offline",
        """\
Fetches all of IMAGE into the store: documents, indexes, tree, and every byte of every layer, verified.
What is there is not fetched again: a pull that was interrupted goes on where it stopped. Writes IMAGE with
its digest to standard output. Afterwards no command needs the registry for it.

Examples:
  imgfs pull debian:12
  imgfs mount --offline debian:12 /mnt
  imgfs pull --quiet --platform linux/arm64 registry.example.com/team/app:v2
  imgfs pull --limit-rate 2M debian:12
  imgfs pull --index verified debian:12    and rely on no index but those its digest covers
""",
    )
    image_options(command, offline=False)
    command.set_defaults(offline=False)  # it asks the registry, but all may be here
    command.add_argument(
        "--limit-rate", metavar="RATE", type=rate, help="bytes per second: 500k, 2M (default: none)"
    )
    command.add_argument("-q", "--quiet", action="store_true", help="show no progress and no summary")
