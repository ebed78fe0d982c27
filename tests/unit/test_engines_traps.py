"""What engines do otherwise than one would expect of them, and the tests that hold what imgfs makes of it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG, ROWS, NODE = (
    "unit/test_containerd_config.py",
    "unit/test_snapshotter.py",
    "containers/test_containerd_snapshotter.py",
)
HERE = "unit/test_engines_traps.py"
TRAPS = {
    "a mount whose daemon is dead is listed all the same: only statfs tells": {
        ROWS: ["test_a_mount_answers_until_it_is_stopped_or_dead"],
        NODE: ["test_ten_starts_at_once_make_one_mount_in_the_place_of_a_dead_one"],
    },
    "an image comes by its digest, also where it was pulled by a tag, for which indexes count": {
        ROWS: ["test_published_indexes_count_as_they_do_for_the_reference_that_was_pulled"],
    },
    "overlayfs shows the upper directory's owner and mode as the root's": {
        ROWS: [
            "test_a_new_upper_directory_has_the_owner_and_the_mode_of_the_root_below",
            "test_a_user_namespaces_root_owns_what_it_may_write_to",
        ],
    },
    "containerd's messages, generated for Python, hide the module types": {
        HERE: ["test_the_engines_load_no_generated_messages"],
    },
    "containerd takes no relative path of a socket": {
        CONFIG: ["test_containerd_and_systemd_are_told_whole_paths"],
    },
    "unpack_config takes the place of what is usual, or was read before": {
        CONFIG: [
            "test_an_empty_configuration_has_a_version_and_both_snapshotters",
            "test_who_lists_snapshotters_has_imgfs_added",
            "test_a_list_in_a_later_file_keeps_what_is_listed_before",
        ],
    },
    "nerdctl says of which image a layer is only to snapshotters of some names": {
        ROWS: ["test_plugins_of_one_socket_see_and_name_only_their_own"],
        NODE: ["test_an_image_is_lazy_by_a_second_name_of_the_plugin_too"],
    },
    "ctr of containerd 1.x says of no image at all": {
        ROWS: ["test_without_one_of_them_containerd_fetches_it"],
        NODE: ["test_what_was_pulled_for_another_snapshotter_or_without_labels_is_unpacked_and_runs"],
    },
    "a pull without a pod's configuration is for another snapshotter than the RuntimeClass's": {
        CONFIG: ["test_containerd_reads_its_own_configuration_with_imgfs_in_it"],
        NODE: ["test_what_was_pulled_for_another_snapshotter_or_without_labels_is_unpacked_and_runs"],
    },
    "layers that another snapshotter has are not offered": {
        NODE: ["test_what_was_pulled_for_another_snapshotter_or_without_labels_is_unpacked_and_runs"],
    },
}
TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("trap", TRAPS)
def test_what_engines_do_otherwise_is_tested(trap: str) -> None:
    for file, names in TRAPS[trap].items():
        body = ast.parse((TESTS / file).read_text()).body
        assert set(names) <= {each.name for each in body if isinstance(each, ast.FunctionDef)}


def test_the_engines_load_no_generated_messages() -> None:
    code = """
import importlib, pkgutil, sys, types
import imgfs.engines
for found in pkgutil.walk_packages(imgfs.engines.__path__, "imgfs.engines."):
    importlib.import_module(found.name)
assert "types.py" in types.__file__ and not hasattr(types, "__path__"), types
print(sorted(name for name in sys.modules if name.startswith("google") or name.endswith("_pb2")))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert ran.stdout == "[]\n"
