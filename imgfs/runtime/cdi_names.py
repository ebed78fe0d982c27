"""Names of devices that files of this machine's describe (CDI): vendor.com/class=name."""

from __future__ import annotations

import re

from imgfs.errors import UsageError

GPU = "nvidia.com/gpu"  # whose devices --gpus means, with podman
_WORD = r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"  # SPEC.md, "Kind"
_DEVICE = r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?"  # SPEC.md, "CDI Devices"
_KIND = re.compile(f"{_WORD}/{_WORD}")
_NAME = re.compile(f"{_WORD}/{_WORD}={_DEVICE}")


def is_cdi_kind(text: str) -> bool:
    """Return whether it is vendor.com/class."""
    return bool(_KIND.fullmatch(text))


def is_cdi_name(text: str) -> bool:
    """Return whether a --device is one of these names, and no path."""
    return bool(_NAME.fullmatch(text))


def gpu_names(text: str) -> list[str]:
    """Return the devices of a --gpus: `all`, or ids with commas between, perhaps after `device=`.

    A number is an id too, as with podman. Raises UsageError.
    """
    words = text.strip("\"'").removeprefix("device=").split(",")
    names = [f"{GPU}={word}" for word in words]
    if not all(map(is_cdi_name, names)):
        raise UsageError(f"{text!r} names no GPUs: all, or ids as in {GPU}=0, with commas between")
    return names
