"""Where the tests of this package run: places that one worker's tests share, one after the other."""

from __future__ import annotations

from tests.support import posix_places as posix

grounds, place, large = posix.grounds, posix.place, posix.large
