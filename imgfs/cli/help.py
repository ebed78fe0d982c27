"""imgfs help: the manual, by topic; rendered and paged on a terminal, plain Markdown elsewhere."""

from __future__ import annotations

import argparse
import sys

from imgfs import manual
from imgfs.cli.options import Commands, add_command
from imgfs.cli.output import say
from imgfs.cli.parser import meant
from imgfs.errors import UsageError


def add_help(commands: Commands) -> None:
    """Describe `imgfs help`."""
    command = add_command(
        commands,
        "help",
        help,
        "show the manual",
        """\
Shows a topic of the manual, or lists the topics. Each command has its own help: imgfs COMMAND --help.

Examples:
  imgfs help                           list the topics
  imgfs help scratch                   how an image is changed, and what happens to the changes
  imgfs help registries | less
""",
    )
    command.add_argument("topic", metavar="TOPIC", nargs="?", help="as `imgfs help` lists them")


def help(options: argparse.Namespace) -> int:  # noqa: A001 (the name of the command)
    """List the topics of the manual, or show one of them."""
    if options.topic is None:
        say("Topics of the manual (imgfs help TOPIC):\n")
        for topic in manual.TOPICS:
            say(f"  {topic:<14} {manual.title(topic)}")
        return 0
    try:
        text = manual.text(options.topic)
    except KeyError:
        hint = meant(options.topic, manual.TOPICS) or f"; it has: {', '.join(manual.TOPICS)}"
        raise UsageError(f"the manual has no topic {options.topic!r}{hint}") from None
    if sys.stdout.isatty():
        from imgfs.cli.terminal import show_page

        show_page(text)
    else:
        say(text.removesuffix("\n"))
    return 0
