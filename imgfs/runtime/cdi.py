"""Devices with names, `vendor.com/class=name`, as files of this machine's describe them (CDI).

Such a file, JSON or YAML, lists the devices of one kind and what a container with each of them needs: device
files, mounts, variables, hooks. The format is the Container Device Interface's (SPEC.md, 1.0.0); where that
leaves a choice it is its Go library's, which podman, containerd and docker use: a file with a fault is passed
over whole, of two files that describe one device the one in the later directory counts, and two in the same
directory make it unusable.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imgfs.errors import ImgfsError
from imgfs.oci.yaml import parse_yaml
from imgfs.owned.opening import open_regular
from imgfs.runtime.cdi_names import is_cdi_kind, is_cdi_name
from imgfs.runtime.edits import ContainerEdits, DeviceNode, EditMount, Hook
from imgfs.runtime.rootfs import Refused

DIRECTORIES = ("/etc/cdi", "/var/run/cdi")  # SPEC.md, "Overview"; the later one goes first
_LARGEST = 16 << 20  # bytes of a file
_SHOWN = 20  # devices that an error names
_VERSION = re.compile(r"v?[01]\.[0-9]{1,3}\.[0-9]{1,3}")
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_KINDS = ("", "b", "c", "u", "p")
_LARGEST_ID = 2**32 - 1


class CdiFault(ImgfsError):
    """What is wrong with a file; the file is passed over."""


@dataclass(frozen=True, slots=True)
class CdiFile:
    """A file: what each device of its kind adds, by name, and what every one of them does."""

    path: str
    kind: str
    edits: ContainerEdits
    devices: Mapping[str, ContainerEdits]


@dataclass(slots=True)
class CdiRegistry:
    """The devices of some directories, by qualified name; `faults` are what is wrong there."""

    files: dict[str, CdiFile] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, directories: Sequence[str] = DIRECTORIES) -> CdiRegistry:
        """Read all files of the directories, of which the later ones go first."""
        found, unusable = cls(), set[str]()
        for directory in directories:
            here: dict[str, CdiFile] = {}
            for file in found._files(directory):
                for name in (f"{file.kind}={device}" for device in file.devices):
                    if name in here:
                        unusable.add(name)
                        found.faults.append(f"{here[name].path} and {file.path} both describe {name}")
                    here[name] = file
            found.files.update(here)
        for name in unusable:
            del found.files[name]
        return found

    def _files(self, directory: str) -> Iterator[CdiFile]:
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            return
        for path in (Path(directory, name) for name in names if name.endswith((".json", ".yaml"))):
            try:
                yield parse_file(str(path), _document(path))
            except CdiFault as fault:
                self.faults.append(f"{path} is passed over: {fault}")

    def edits(self, names: Sequence[str]) -> ContainerEdits:
        """Return what devices add, each file's own edits once; raises Refused if there is no such device."""
        missing = [name for name in dict.fromkeys(names) if name not in self.files]
        if missing:
            raise Refused(
                f"setting up CDI devices: unresolvable CDI devices {', '.join(missing)} ({self._known()})"
            )
        found, seen = ContainerEdits(), set[str]()
        for name in dict.fromkeys(names):
            file = self.files[name]
            if file.path not in seen:
                seen.add(file.path)
                found += file.edits
            found += file.devices[name.partition("=")[2]]
        return found

    def _known(self) -> str:
        known = sorted(self.files)
        more = f", and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        told = f"known: {', '.join(known[:_SHOWN])}{more}" if known else "none are described on this machine"
        return "; ".join((told, *self.faults[:1]))


def _document(path: Path) -> object:
    """Return the document in a file; raises CdiFault."""
    try:
        with open_regular(path) as file:
            body = file.read(_LARGEST + 1)
    except OSError as error:
        raise CdiFault(error.strerror or "it cannot be read") from error
    if len(body) > _LARGEST:
        raise CdiFault(f"it is larger than {_LARGEST >> 20} MiB")
    try:
        return json.loads(body) if path.suffix == ".json" else parse_yaml(body)
    except (ValueError, RecursionError) as error:
        raise CdiFault(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def parse_file(path: str, document: object) -> CdiFile:
    """Read a file's document (SPEC.md, "CDI JSON Specification"); raises CdiFault, with the place in it."""
    top = _Place(document, "").fields("cdiVersion kind annotations devices containerEdits")
    if not _VERSION.fullmatch(top.text("cdiVersion")):
        raise CdiFault("cdiVersion: a version is 0.x.y or 1.x.y")
    kind = top.text("kind")
    if not is_cdi_kind(kind):
        raise CdiFault(f"kind: {kind!r} is not vendor.com/class")
    devices: dict[str, ContainerEdits] = {}
    for device in top.list("devices"):
        one = device.fields("name annotations containerEdits")
        name = one.text("name")
        if not is_cdi_name(f"{kind}={name}"):
            raise CdiFault(f"{one.where}name: {name!r} is not a name for a device")
        if name in devices:
            raise CdiFault(f"{one.where}name: {name!r} is there twice")
        devices[name] = _edits(one.place("containerEdits"))
    return CdiFile(path, kind, _edits(top.place("containerEdits")), devices)


@dataclass(frozen=True, slots=True)
class _Place:
    """A value in a document; `where` begins the names of what is in it."""

    value: Any
    where: str

    def fields(self, known: str) -> _Place:
        """Return this place, if its value is an object with `known` fields alone; null counts as {}."""
        if self.value is None:
            return _Place({}, self.where)
        if not isinstance(self.value, dict):
            raise CdiFault(f"{self.where.rstrip('.') or 'the file'}: expected an object")
        others = [str(name) for name in self.value if name not in known.split()]
        if others:
            raise CdiFault(f"{self.where}{others[0]}: no such field")
        return self

    def place(self, name: str) -> _Place:
        return _Place(self.value.get(name), f"{self.where}{name}.")

    def list(self, name: str) -> list[_Place]:
        found = self.value.get(name)
        found = [] if found is None else found
        if not isinstance(found, list):
            raise CdiFault(f"{self.where}{name}: expected a list")
        return [_Place(value, f"{self.where}{name}[{number}].") for number, value in enumerate(found)]

    def text(self, name: str) -> str:
        found = self.value.get(name)
        if found is None:
            return ""
        if not isinstance(found, str) or "\0" in found:
            raise CdiFault(f"{self.where}{name}: expected text")
        return found

    def path(self, name: str) -> str:
        found = self.text(name)
        if not found.startswith("/"):
            raise CdiFault(f"{self.where}{name}: expected a path from the root")
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        for one in self.list(name):
            if not isinstance(one.value, str) or "\0" in one.value:
                raise CdiFault(f"{one.where.rstrip('.')}: expected text")
        return tuple(self.value.get(name) or ())

    def number(self, name: str, default: Any = None) -> Any:
        found = self.value.get(name)
        if found is None:
            return default
        if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= _LARGEST_ID:
            raise CdiFault(f"{self.where}{name}: expected a number")
        return found

    def all(self, name: str, parse: Callable[[_Place], Any]) -> tuple[Any, ...]:
        return tuple(parse(one) for one in self.list(name))


def _edits(place: _Place) -> ContainerEdits:
    """Read containerEdits (SPEC.md, "OCI Edits")."""
    edits = place.fields("env deviceNodes netDevices mounts hooks intelRdt additionalGids additionalGIDs")
    if edits.list("netDevices"):
        raise CdiFault(f"{edits.where}netDevices: a container has no interfaces of this machine's here")
    groups = [*edits.list("additionalGids"), *edits.list("additionalGIDs")]
    numbers = [_Place({"": one.value}, one.where.rstrip(".")).number("") for one in groups]
    return ContainerEdits(
        _variables(edits),
        edits.all("deviceNodes", _node),
        edits.all("mounts", _mount),
        edits.all("hooks", _hook),
        tuple(number for number in numbers if number),
        _rdt(edits.place("intelRdt")),
    )


def _rdt(place: _Place) -> dict[str, object]:
    """Return what resctrl is told, as config-linux.md has it ("IntelRdt")."""
    texts, switches = "closID l3CacheSchema memBwSchema", "enableCMT enableMBM"
    found = place.fields(f"{texts} {switches}")
    for name in switches.split():
        if not isinstance(found.value.get(name, False), bool):
            raise CdiFault(f"{found.where}{name}: expected true or false")
    return {**found.value, **{name: found.text(name) for name in texts.split() if name in found.value}}


def _variables(place: _Place) -> dict[str, str]:
    pairs = [text.partition("=") for text in place.texts("env")]
    if any(not name or not equals for name, equals, _ in pairs):
        raise CdiFault(f"{place.where}env: a variable is NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _node(place: _Place) -> DeviceNode:
    node = place.fields("path hostPath type major minor fileMode permissions uid gid")
    path, kind, access = node.path("path"), node.text("type"), node.text("permissions") or "rwm"
    if kind not in _KINDS:
        raise CdiFault(f"{node.where}type: {kind!r} is not b, c, u or p")
    if not set(access) <= set("rwm"):
        raise CdiFault(f"{node.where}permissions: {access!r} is not of r, w and m")
    return DeviceNode(
        path,
        node.path("hostPath") if node.text("hostPath") else path,
        "c" if kind == "u" else kind,
        node.number("major", 0),
        node.number("minor", 0),
        node.number("fileMode"),
        node.number("uid"),
        node.number("gid"),
        access,
    )


def _mount(place: _Place) -> EditMount:
    """Return a mount; without a type it is a bind, whatever its options say."""
    mount = place.fields("hostPath containerPath options type")
    source, target = mount.text("hostPath"), mount.path("containerPath")
    options, kind = mount.texts("options"), mount.text("type")
    if not source:
        raise CdiFault(f"{mount.where}hostPath: it is missing")
    if kind in ("", "bind", "none"):
        kind = "bind"
        mount.path("hostPath")
        options = options if {"bind", "rbind"} & set(options) else ("rbind", *options)
    return EditMount(target, source, kind, options)


def _hook(place: _Place) -> Hook:
    hook = place.fields("hookName path args env timeout")
    when = hook.text("hookName")
    if when not in _HOOKS:
        raise CdiFault(f"{hook.where}hookName: {when!r} is none of {', '.join(_HOOKS)}")
    _variables(hook)
    return Hook(when, hook.path("path"), hook.texts("args"), hook.texts("env"), hook.number("timeout"))
