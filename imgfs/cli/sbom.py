"""imgfs sbom: show the bill of materials that is attached to an image."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from imgfs.cli.format import Column, size
from imgfs.cli.options import Commands, add_command, image_options, json_option, output_option
from imgfs.cli.output import complain, say, say_table
from imgfs.cli.output_file import output_file
from imgfs.errors import NotFound, UsageError

if TYPE_CHECKING:
    from imgfs.oci.reference import Reference
    from imgfs.signatures.sbom import Bill

_COLUMNS = (
    Column("TYPE"),
    Column("SIZE", right=True),
    Column("DIGEST"),
    Column("FOUND AS"),
    Column("MEDIA TYPE"),
)
_SHORTEST = 6  # digits of a digest


def add_sbom(commands: Commands) -> None:
    """`imgfs sbom`."""
    command = add_command(
        commands,
        "sbom",
        sbom,
        "show the bill of materials that is attached to an image",
        """\
Writes the bill of materials that is attached to IMAGE in its repository: as a referrer, under cosign's tags
(.sbom, .att), or by buildkit in the image's index. If there are several they are listed, unless one is chosen
by --type or --digest. Its bytes have their digest; that it is about this image is the word of the registry,
where all who may push may attach, and no signature is checked (see: imgfs verify --cosign). What the image
holds is another question: imgfs packages.

Examples:
  imgfs sbom app:v2 | jq .packages[].name
  imgfs sbom --type cyclonedx -o app.cdx.json app:v2
  imgfs sbom --json app:v2                             list what there is
""",
    )
    image_options(command, offline=False)
    command.add_argument("--type", choices=["spdx", "cyclonedx", "syft"], help="only of this type")
    command.add_argument("--digest", metavar="DIGEST", help="the one with this digest; some digits will do")
    output_option(command)
    json_option(command)


def sbom(options: argparse.Namespace) -> int:
    """Show a bill of materials."""
    from imgfs.cli.selection import select_image
    from imgfs.image.layer_check import fetch_documents
    from imgfs.signatures.sbom import bills_of, content_of

    selection = select_image(options)
    with closing(selection.connect()) as source:
        named = source.resolve(whole=True)
        resolved = fetch_documents(str(selection.reference), source, selection.platform, named)
        bills = [bill for bill in bills_of(source, resolved.digest, named) if _is_asked(bill, options)]
        if options.json and options.output == "-":
            say(json.dumps([_fields(bill) for bill in bills], indent=2))
            return 0
        if not bills:
            such = "such " if options.type or options.digest else ""
            raise NotFound(
                f"{selection.reference}: no {such}bill of materials is attached (see: imgfs packages)"
            )
        if len(bills) > 1:
            return _list(bills, options)
        body = content_of(source, bills[0])
    complain(_voucher(bills[0], selection.reference))
    _write(body, options.output)
    return 0


def _is_asked(bill: Bill, options: argparse.Namespace) -> bool:
    digits = (options.digest or "").removeprefix("sha256:")
    if options.digest and len(digits) < _SHORTEST:
        raise UsageError(f"{options.digest!r} is too short for a digest: {_SHORTEST} digits at least")
    return (not options.type or bill.type == options.type) and bill.digest.hex.startswith(digits)


def _list(bills: list[Bill], options: argparse.Namespace) -> int:
    """Show what there is; raises UsageError if one was to be written to a file."""
    if options.output != "-":
        raise UsageError(f"{len(bills)} bills of materials are attached: choose by --type or --digest")
    say_table(_COLUMNS, [_row(bill) for bill in bills])
    complain("several are attached: choose by --type or --digest")
    return 0


def _row(bill: Bill) -> tuple[str, ...]:
    part = bill.attached.part
    return bill.type, size(part.size), part.digest.short, _found_as(bill), part.media_type


def _found_as(bill: Bill) -> str:
    return f"{bill.attached.how}, {bill.wrapped}" if bill.wrapped else bill.attached.how


def _fields(bill: Bill) -> dict[str, object]:
    part = bill.attached.part
    return {
        "type": bill.type,
        "digest": str(part.digest),
        "size": part.size,
        "media_type": part.media_type,
        "found_as": bill.attached.how,
        "wrapped": bill.wrapped,
        "subject": str(bill.attached.subject),
    }


def _voucher(bill: Bill, reference: Reference) -> str:
    """Return who says that a bill is about the image."""
    signed = "; its signature is not checked" if bill.wrapped == "envelope" else ""
    if bill.attached.how == "index":
        return f"this is what the image's own index names, and its builder vouches for{signed}"
    return (
        f"that this is about {reference} is the word of the place it was found in, not of the image{signed}"
    )


def _write(body: bytes, name: str) -> None:
    if name == "-" and sys.stdout.isatty():
        say(body.decode(errors="replace").rstrip("\n"))
        return
    with output_file(name) as file:
        file.write(body)
