"""What argparse does at options of run and bundle that it has no action for; `container_options` has them."""

from __future__ import annotations

import argparse

from imgfs.runtime.request import Bind


class AppendMount(argparse.Action):
    """Append a --mount to the values of -v or --tmpfs."""

    def __call__(self, _: object, namespace: argparse.Namespace, value: object, __: object = None) -> None:
        option = "volume" if isinstance(value, Bind) else "tmpfs"
        setattr(namespace, option, [*getattr(namespace, option), value])


class Refuse(argparse.Action):
    """Refuse an option of podman's that imgfs does not have: the error says what to do instead."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        parser.error(f"{rest[-1]}: {self.const}")
