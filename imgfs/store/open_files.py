"""How many files this process may have open: the soft limit is raised where a mount, or many, need more."""

from __future__ import annotations

import resource

_OF_A_LAYER = 6  # index, flat file, presence map, and locks
_OTHERS = 200  # connections, the tree, what the program has open itself


def allow_open_layers(count: int) -> None:
    """Raise the soft limit (getrlimit(2), RLIMIT_NOFILE) to what so many open layers take, if it is lower.

    It is often 1024, which 200 layers have; the hard one bounds it.
    """
    _allow(_OTHERS + _OF_A_LAYER * count)


def allow_all_files() -> None:
    """Raise the soft limit to the hard one: for a scratch, whose open files are open here, or many mounts."""
    _allow(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _allow(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # Linux has no endless ones (fs.nr_open)
    if soft < min(wanted, hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
