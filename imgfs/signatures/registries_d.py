"""registries.d: where the signatures of a registry's images are (containers-registries.d(5)).

Of two scopes that name an image the more specific counts; what it leaves out is looked for in the next, as
containers/image does it (docker/registries_d.go), though the page says that this is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imgfs.errors import InvalidImage, UsageError, describe
from imgfs.oci.fields import object_at, text_in
from imgfs.oci.yaml import parse_yaml
from imgfs.signatures.identity import ImageName
from imgfs.signatures.policy_keys import read_small

_MOST_FILES = 1000


@dataclass(frozen=True, slots=True)
class SignatureSection:
    """What a file says for a scope. `lookaside` is a URL, "" if it says none; `path` names the file.

    `uses_attachments` says whether cosign's signatures are looked for in the registry, None if nothing does.
    """

    path: Path
    lookaside: str = ""
    uses_attachments: bool | None = None


@dataclass(frozen=True, slots=True)
class SignatureConfig:
    """The files of a directory: sections by scope, and `default` for all other images."""

    scopes: Mapping[str, SignatureSection] = field(default_factory=dict)
    default: SignatureSection | None = None

    def lookaside(self, image: ImageName) -> str:
        """Return the URL of the store with an image's signatures, "" if no file says any."""
        return next((section.lookaside for section in self._sections(image) if section.lookaside), "")

    def uses_attachments(self, image: ImageName) -> bool | None:
        """Return True if cosign's signatures are to be looked for, False if not, None if no file says it."""
        said = (section.uses_attachments for section in self._sections(image))
        return next((one for one in said if one is not None), None)

    def _sections(self, image: ImageName) -> Iterator[SignatureSection]:
        for scope in image.scopes():
            if scope in self.scopes:
                yield self.scopes[scope]
        if self.default:
            yield self.default


def load_signature_config(directories: Sequence[Path]) -> SignatureConfig:
    """Read the first of the directories that is there; raises UsageError for a file that is wrong."""
    for directory in directories:
        try:
            paths = sorted(path for path in directory.iterdir() if path.name.endswith(".yaml"))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(f"{directory}: cannot be read: {describe(error)}") from error
        if len(paths) > _MOST_FILES:
            raise UsageError(f"{directory}: more than {_MOST_FILES} files")
        return _merged([parse_sections(read_small(path), path) for path in paths])
    return SignatureConfig()


def parse_sections(body: bytes, path: Path) -> SignatureConfig:
    """Read one file; raises UsageError. What is not known in it does not count."""
    try:
        document = parse_yaml(body)
        fields = {} if document is None else object_at(document, str(path))
        scopes = object_at(fields.get("docker") or {}, f"{path}: docker")
        default = fields.get("default-docker")
        return SignatureConfig(
            {str(scope): _section(value, path, f"docker: {scope}") for scope, value in scopes.items()},
            None if default is None else _section(default, path, "default-docker"),
        )
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {str(error) or 'nested too deep'}") from error
    except InvalidImage as error:
        raise UsageError(str(error)) from error


def _section(value: object, path: Path, name: str) -> SignatureSection:
    where = f"{path}: {name}"
    fields = {} if value is None else object_at(value, where)
    lookaside = text_in(fields, "lookaside", where, default="") or text_in(
        fields, "sigstore", where, default=""
    )
    uses = fields.get("use-sigstore-attachments")
    if uses is not None and not isinstance(uses, bool):
        raise InvalidImage("expected true or false", where=f"{where}.use-sigstore-attachments")
    return SignatureSection(path, lookaside, uses)


def _merged(files: Sequence[SignatureConfig]) -> SignatureConfig:
    """Put files together; raises UsageError if two say something for one scope."""
    scopes: dict[str, SignatureSection] = {}
    default: SignatureSection | None = None
    for file in files:
        for scope, section in file.scopes.items():
            if scope in scopes:
                raise UsageError(f"{scope!r:.200} is both in {scopes[scope].path} and in {section.path}")
            scopes[scope] = section
        if default and file.default:
            raise UsageError(f"default-docker is both in {default.path} and in {file.default.path}")
        default = default or file.default
    return SignatureConfig(scopes, default)
