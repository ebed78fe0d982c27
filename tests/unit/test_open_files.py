"""The soft limit of open files is raised for images of many layers, as far as the hard one lets it."""

from __future__ import annotations

import resource

from imgfs.store.open_files import allow_all_files, allow_open_layers
from tests.support.children import Child

FILES = resource.RLIMIT_NOFILE


def test_the_limit_is_raised_to_what_is_needed_and_never_lowered() -> None:
    def work() -> None:
        resource.setrlimit(FILES, (300, 2000))
        allow_open_layers(10)
        assert resource.getrlimit(FILES) == (300, 2000)
        allow_open_layers(100)
        assert resource.getrlimit(FILES) == (800, 2000)
        allow_open_layers(500)
        assert resource.getrlimit(FILES) == (2000, 2000)
        resource.setrlimit(FILES, (300, 2000))
        allow_all_files()
        assert resource.getrlimit(FILES) == (2000, 2000)

    with Child(work) as child:
        assert child.join() == 0
