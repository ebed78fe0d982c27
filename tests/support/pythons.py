"""What differs between the Pythons that run the tests."""

from __future__ import annotations

import sys

# Caps on len(sys.modules) are those of Python 3.11. A newer one's own modules load more of each other:
# `pathlib` is two or three modules, and loads glob, grp and pwd.
MORE_MODULES = 12 if sys.version_info >= (3, 13) else 0
