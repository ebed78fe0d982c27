"""imgfs history: the steps that made an image."""

from __future__ import annotations

import argparse
import json

from imgfs.cli.format import Column, short, size
from imgfs.cli.options import Commands, add_command, image_options, json_option
from imgfs.cli.output import say, say_table

_SHOWN = 100  # characters of a command, unless all of it is asked for


def add_history(commands: Commands) -> None:
    """`imgfs history`."""
    command = add_command(
        commands,
        "history",
        history,
        "show the steps that made an image, and their layers",
        """\
Shows each step of the making of IMAGE, the oldest first, with the layer that it made, `-` if it made none.
It reads the image's documents alone: no layer is fetched. Sizes are those of the layers as they are stored.

Examples:
  imgfs history debian:12
  imgfs history --json app:v2 | jq -r 'max_by(.size).command'
""",
    )
    image_options(command)
    command.add_argument("--no-trunc", action="store_true", help="show commands in full")
    json_option(command)


def history(options: argparse.Namespace) -> int:
    """Show the steps that made an image."""
    from imgfs.cli.selection import select_image
    from imgfs.image.versions import steps_of

    steps = steps_of(select_image(options).resolve())
    if options.json:
        say(json.dumps([step._asdict() for step in steps], indent=2))
        return 0
    say_table(
        (
            Column("LAYER", right=True),
            Column("DIGEST"),
            Column("SIZE", right=True),
            Column("CREATED"),
            Column("STEP"),
        ),
        [
            (
                str(step.layer or "-"),
                short(step.digest) or "-",
                size(step.size),
                step.created[:10] or "-",
                shortened(step.command, whole=options.no_trunc),
            )
            for step in steps
        ],
    )
    return 0


def shortened(command: str, *, whole: bool = False) -> str:
    """Return a step's command, cut unless the `whole` is wanted."""
    if not command:
        return "not said"
    return command if whole or len(command) <= _SHOWN else f"{command[: _SHOWN - 1]}…"
