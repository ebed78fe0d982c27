"""Times that files say, where the clock may have been wrong: set by hand, or before the network told it.

The rule: a time that is yet to come says nothing of when something was. It counts as long ago, so that what
has it is evicted, pruned and asked for again as anything else, and not only once that time has come.
"""

from __future__ import annotations

import os
import time

_SLACK = 60.0  # seconds that the clock may have been put back by: as for a leap, or by NTP


def moment_of(found: os.stat_result) -> float:
    """Return when a file was last written, in seconds since the epoch; 0.0 if that is yet to come."""
    return found.st_mtime if found.st_mtime <= time.time() + _SLACK else 0.0
