"""imgfs waste: what the layers of an image store for nothing."""

from __future__ import annotations

import argparse
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgfs.cli.format import Column, counted, size
from imgfs.cli.options import Commands, add_command, count, image_options, json_option, scaled
from imgfs.cli.output import complain, say, say_table
from imgfs.cli.paths import named
from imgfs.quoting import printable_path

if TYPE_CHECKING:
    from imgfs.image.waste import Duplicate, Waste
    from imgfs.tree.versions import Lost, LostSum

_LISTED = 20
_TOO_MUCH = 1  # exit code


@dataclass(frozen=True, slots=True)
class Limit:
    """What may be lost: bytes, or a part of all that the layers store."""

    amount: float
    is_percent: bool

    def __str__(self) -> str:
        return f"{self.amount:g} %" if self.is_percent else size(self.amount)

    def allows(self, lost: int, stored: int) -> bool:
        """Return True if no more is lost."""
        return lost <= (self.amount * stored / 100 if self.is_percent else self.amount)


def add_waste(commands: Commands) -> None:
    """`imgfs waste`."""
    command = add_command(
        commands,
        "waste",
        waste,
        "show what the layers of an image store for nothing",
        """\
Shows the bytes of files that upper layers overwrite or delete, the largest first, and the efficiency as dive
computes it. It reads indexes alone; with --duplicates also all files of IMAGE whose size another file has,
to find those that are equal. Sizes are those of the uncompressed layers.

Examples:
  imgfs waste app:v2
  imgfs waste --fail-over 50MB app:v2            exit code 1 if more is lost: for CI
  imgfs waste --fail-over 5% --json app:v2
  imgfs waste --duplicates -n 100 app:v2
""",
    )
    image_options(command)
    command.add_argument(
        "-n", dest="most", metavar="N", type=count, default=_LISTED, help=f"list the N largest ({_LISTED})"
    )
    command.add_argument(
        "--duplicates", action="store_true", help="with equal files; reads those of the same size"
    )
    command.add_argument(
        "--fail-over", metavar="SIZE|N%", type=_limit, help="end with exit code 1 if more is lost than that"
    )
    json_option(command)


def _limit(text: str) -> Limit:
    with contextlib.suppress(ValueError, OverflowError):
        is_percent = text.endswith("%")
        amount = float(text[:-1]) if is_percent else scaled(text.lower().removesuffix("b"), "kmgt")
        if 0 <= amount < 1 << 62:
            return Limit(amount, is_percent)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a size, like 50MB, nor a part, like 5%")


def waste(options: argparse.Namespace) -> int:
    """Show what is stored for nothing; exit code 1 if it is more than --fail-over allows."""
    from imgfs.cli.layers import open_versions
    from imgfs.image.waste import duplicates, measure_waste

    with open_versions(options) as versions:
        found = measure_waste(versions.image.resolved, versions.store, versions.path, options.most)
        equal = _Equal(options.most)
        for each in duplicates(versions.image, versions.tree) if options.duplicates else ():
            equal.add(each)
    lost = found.lost + equal.size
    if options.json:
        say(json.dumps(_fields(found, lost, equal if options.duplicates else None), indent=2))
    else:
        _say(found, lost, equal if options.duplicates else None)
    if options.fail_over and not options.fail_over.allows(lost, found.stored):
        complain(f"{size(lost)} of {size(found.stored)} are lost, more than {options.fail_over}")
        return _TOO_MUCH
    return 0


@dataclass(slots=True)
class _Equal:
    """How many files equal others, their bytes, and the `most` largest of them."""

    most: int
    files: int = 0
    size: int = 0
    largest: list[Duplicate] = field(default_factory=list)

    def add(self, each: Duplicate) -> None:
        """Count a file; the largest come first."""
        self.files += 1
        self.size += each.size
        if len(self.largest) < self.most:
            self.largest.append(each)


def _fields(found: Waste, lost: int, equal: _Equal | None) -> dict[str, object]:
    overwritten, deleted = found.part(is_replaced=True), found.part(is_replaced=False)
    fields: dict[str, object] = {
        "efficiency": found.efficiency,
        "stored": found.stored,
        "lost": lost,
        "overwritten": dict(zip(("files", "size"), overwritten, strict=True)),
        "deleted": dict(zip(("files", "size"), deleted, strict=True)),
        "layers": [
            {
                "layer": each.layer,
                "hidden_by": each.hider,
                "change": _change(each),
                "files": each.files,
                "size": each.size,
            }
            for each in found.sums
        ],
        "largest": [
            {
                **named(each.path),
                "size": each.size,
                "layer": each.layer,
                "hidden_by": each.hider,
                "change": _change(each),
            }
            for each in found.largest
        ],
    }
    if equal:
        fields["duplicated"] = {"files": equal.files, "size": equal.size}
        fields["duplicates"] = [
            {
                **named(each.path),
                "size": each.size,
                "layer": each.layer,
                "same_as": named(each.same_as),
                "same_layer": each.same_layer,
            }
            for each in equal.largest
        ]
    return fields


def _change(each: Lost | LostSum) -> str:
    return "overwritten" if each.is_replaced else "deleted"


def _say(found: Waste, lost: int, equal: _Equal | None) -> None:
    percent = 100 * lost / found.stored if found.stored else 0.0
    say(f"efficiency   {100 * found.efficiency:.1f} %")
    say(f"lost         {size(lost)} of {size(found.stored)} ({percent:.1f} %)")
    parts = [("overwritten", *found.part(is_replaced=True)), ("deleted", *found.part(is_replaced=False))]
    for what, files, total in [*parts, *([("duplicated", equal.files, equal.size)] if equal else [])]:
        say(f"{what:<11}  {size(total)} in {counted(files, 'file')}")
    rows = [
        (size(each.size), str(each.layer), f"{_change(each)} by {each.hider}", printable_path(each.path))
        for each in found.largest
    ]
    for same in equal.largest if equal else ():
        what = f"as in {same.same_layer}: {printable_path(same.same_as)}"
        rows.append((size(same.size), str(same.layer), what, printable_path(same.path)))
    if rows:
        say("")
        columns = (Column("SIZE", right=True), Column("LAYER", right=True), Column("LOST"))
        say_table((*columns, Column("FILE")), rows)
