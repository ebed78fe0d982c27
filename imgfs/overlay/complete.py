"""Fill in the data of every file that has only its attributes in the upper directory (metacopy).

A scratch in a directory of its own may be mounted by other programs, which expect whole files.
"""

from __future__ import annotations

import logging
import sys

from imgfs.errors import ImgfsError, describe
from imgfs.overlay.copyup import CopyUp
from imgfs.overlay.node import UpperNode
from imgfs.overlay.overlay import Overlay

log = logging.getLogger(__name__)


def complete(overlay: Overlay) -> None:
    """Fill in the data of all files; what fails is logged, and stays metacopy."""
    try:
        _complete_all(overlay)
    except (ImgfsError, OSError) as error:
        log.warning("some files have been left without their data, as metacopy: %s", describe(error))


def _complete_all(overlay: Overlay) -> None:
    union = overlay.union
    ahead = [union.root]
    while ahead:
        directory = ahead.pop()
        for name in union.upper_names(directory)[0]:
            file = union.find(directory.ino, name)
            if isinstance(file, UpperNode) and file.is_directory:
                ahead.append(file)
            elif isinstance(file, UpperNode) and file.data is not None:
                _complete(overlay.copyup, file)


def _complete(copyup: CopyUp, node: UpperNode) -> None:
    copy = copyup.fill(node, sys.maxsize)
    try:
        copy()
    except BaseException:
        copyup.not_filled(node)
        raise
    copyup.filled(node)
