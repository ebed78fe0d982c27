"""Options of mount(8) as attributes of a mount."""

from __future__ import annotations

import pytest

from imgfs import syscalls
from imgfs.mounts.attributes import attributes_of

BOTH = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV


@pytest.mark.parametrize(
    ("options", "attributes", "others"),
    [
        ("", BOTH, set()),
        ("ro,allow_other", BOTH | syscalls.MOUNT_ATTR_RDONLY, {"allow_other"}),
        ("dev,suid,noatime", syscalls.MOUNT_ATTR_NOATIME, set()),
        ("suid,nosuid,exec", BOTH, set()),  # what restricts counts
        ("max_read=4096,nosymfollow", BOTH | syscalls.MOUNT_ATTR_NOSYMFOLLOW, {"max_read=4096"}),
    ],
)
def test_options_are_attributes_or_are_left_for_others(
    options: str, attributes: int, others: set[str]
) -> None:
    assert attributes_of(filter(None, options.split(","))) == (attributes, others)
