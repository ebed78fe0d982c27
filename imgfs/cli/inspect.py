"""imgfs inspect: what an image is, from its documents alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from imgfs.cli.format import size
from imgfs.cli.options import Commands, add_command, image_options, json_option
from imgfs.cli.output import say
from imgfs.quoting import printable

if TYPE_CHECKING:
    from imgfs.image.resolve import Resolved

_RUNTIME = (
    "User",
    "WorkingDir",
    "Entrypoint",
    "Cmd",
    "Env",
    "ExposedPorts",
    "Volumes",
    "Labels",
    "StopSignal",
)
_LONGEST = 2000  # characters of a line


def add_inspect(commands: Commands) -> None:
    """`imgfs inspect`."""
    command = add_command(
        commands,
        "inspect",
        inspect,
        "show digest, platform, config, layers and history of an image",
        """\
Shows what IMAGE is, from its documents alone: no layer is fetched. `digest` is the platform's manifest,
`index` the index that names it. Layers are numbered as `imgfs mount --upto-layer` counts them; the history
has the steps that made them, `-` for steps that made none. Lines are cut at 2,000 characters, --json is not.

Examples:
  imgfs inspect debian:12
  imgfs inspect --json --platform linux/arm64 debian:12 | jq .config.Env
  imgfs inspect --format '{{index .RepoDigests 0}} {{json .Config.Cmd}}' debian:12
""",
    )
    image_options(command)
    json_option(command)
    command.add_argument(
        "-f",
        "--format",
        metavar="TEMPLATE",
        help="a Go template of the fields that docker and podman show: Id, Digest, RepoTags, RepoDigests, "
        "Created, Architecture, Os, Config, RootFS, Labels, Size; or json",
    )


def inspect(options: argparse.Namespace) -> int:
    """Show what an image is."""
    import json

    from imgfs.cli.selection import select_image
    from imgfs.cli.template import check_format, dumped, filled

    if options.format:
        check_format(options.format)
    resolved = select_image(options).resolve()
    if options.format:
        fields = _fields(resolved)
        say(dumped(fields) if options.format == "json" else filled(options.format, fields))
        return 0
    say(json.dumps(_document(resolved), indent=2) if options.json else _text(resolved))
    return 0


def _document(resolved: Resolved) -> dict[str, object]:
    layers = zip(resolved.manifest.layers, resolved.config.diff_ids, strict=True)
    return {
        "reference": resolved.reference,
        "digest": str(resolved.digest),
        "named_digest": str(resolved.named),
        "media_type": resolved.media_type,
        "platform": str(resolved.config.platform),
        "created": resolved.config.created,
        "config_digest": str(resolved.manifest.config.digest),
        "config": dict(resolved.config.config),
        "history": [dict(entry) for entry in resolved.config.history],
        "layers": [
            {
                "digest": str(layer.digest),
                "diff_id": str(diff_id),
                "size": layer.size,
                "media_type": layer.media_type,
                "annotations": dict(layer.annotations),
            }
            for layer, diff_id in layers
        ],
    }


def _fields(resolved: Resolved) -> dict[str, object]:
    """Return it by the names of `docker image inspect` and `podman image inspect`; sizes are compressed."""
    from imgfs.oci.reference import RegistryReference, parse_reference

    reference, config = parse_reference(resolved.reference), resolved.config
    name = f"{reference.registry}/{reference.repository}" if isinstance(reference, RegistryReference) else ""
    return {
        "Id": str(resolved.manifest.config.digest),
        "Digest": str(resolved.digest),
        "RepoTags": [f"{name}:{resolved.tag}"] if name and resolved.tag else [],
        "RepoDigests": [f"{name}@{resolved.named}"] if name else [],
        "Created": config.created or "",
        "Author": config.raw.get("author", ""),
        "Architecture": config.platform.architecture,
        "Variant": config.platform.variant or "",
        "Os": config.platform.os,
        "Size": sum(layer.size for layer in resolved.manifest.layers),
        "Labels": config.config.get("Labels") or {},
        "Config": dict(config.config),
        "RootFS": {"Type": "layers", "Layers": [str(diff_id) for diff_id in config.diff_ids]},
        "History": [dict(entry) for entry in config.history],
        "ManifestType": resolved.media_type,
    }


def _text(resolved: Resolved) -> str:
    config = resolved.config.config
    total = sum(layer.size for layer in resolved.manifest.layers)
    rows = [
        ("reference", resolved.reference),
        ("digest", str(resolved.digest)),
        *([("index", str(resolved.named))] if resolved.named != resolved.digest else []),
        ("platform", str(resolved.config.platform)),
        ("created", resolved.config.created or "not said"),
        *((name.lower(), _format(config[name])) for name in _RUNTIME if config.get(name)),
        ("layers", f"{len(resolved.manifest.layers)}, {size(total)}"),
    ]
    lines = [f"{name:<11} {_line(value)}" for name, value in rows]
    numbered = enumerate(resolved.manifest.layers, 1)
    lines += [f"{number:>4}  {layer.digest}  {size(layer.size):>8}" for number, layer in numbered]
    lines += ["history", *_history(resolved.config.history)] if resolved.config.history else []
    return "\n".join(lines)


def _history(entries: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Yield a line for each step of the image's making, with the number of the layer that it made, if any.

    OCI image-spec, config.md, "history": `empty_layer` is true of a step that made none.
    """
    number = 0
    for entry in entries:
        is_empty = entry.get("empty_layer") is True
        number += not is_empty
        step = " ".join(str(entry.get("created_by") or entry.get("comment") or "not said").split())
        yield f"{'-' if is_empty else number:>4}  {_line(step)}"


def _line(text: str) -> str:
    """Return a text as one line of a length that a person reads: a buildpack's labels may have megabytes."""
    end = f"… ({len(text)} characters: see --json)" if len(text) > _LONGEST else ""
    return printable(text[:_LONGEST]) + end


def _format(value: object) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)
