"""The cache directory: private, shared by processes, whole after any death."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from imgfs.errors import StoreError
from imgfs.layer.sqlite import create_database
from imgfs.oci.descriptor import Digest
from imgfs.store.atomic import TEMPORARY, atomic_write
from imgfs.store.store import Store
from tests.support.children import Child
from tests.support.mounted import until

BODY = b'{"schemaVersion": 2}'
DIGEST = Digest.of(BODY)
NOBODY = 65534


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def as_nobody(work: Callable[[], object]) -> int:
    """The exit code of a process without root's rights that does `work`."""

    def without_rights() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        work()

    with Child(without_rights) as child:
        return child.join()


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_the_store_is_for_its_owner_only(store: Store) -> None:
    assert store.root.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in store.root.iterdir() if path.is_dir()} == {0}


def test_a_store_is_made_with_its_parents_and_opened_again(tmp_path: Path) -> None:
    root = tmp_path / "a/b/store"
    Store(root).put_document(DIGEST, BODY)
    assert Store(root).document(DIGEST) == BODY


@pytest.mark.parametrize("version", [b"2", b"", b"\xff\xfe"])
def test_a_store_of_another_layout_is_refused(store: Store, version: bytes) -> None:
    (store.root / "version").write_bytes(version)
    with pytest.raises(StoreError, match=r"layout .* use another --store"):
        Store(store.root)


def test_a_file_in_the_stores_place_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(StoreError, match="store: Not a directory"):
        Store(tmp_path / "store")


def test_a_place_one_may_not_write_to_is_a_store_error(tmp_path: Path) -> None:
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir(mode=0o555)

    def work() -> None:
        os.chdir("/")
        with pytest.raises(StoreError, match="Permission denied"):
            Store(forbidden / "store")

    assert as_nobody(work) == 0


def test_what_cannot_be_written_is_named_and_not_the_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    (tmp_path / "taken/file").mkdir(parents=True)

    def work() -> None:
        os.chdir("/")
        with pytest.raises(StoreError) as refused, atomic_write(tmp_path / "closed/file"):
            pass
        assert str(refused.value) == f"{tmp_path}/closed: Permission denied"

    assert as_nobody(work) == 0
    with pytest.raises(StoreError) as refused, atomic_write(tmp_path / "taken/file"):
        pass
    assert str(refused.value) == f"{tmp_path}/taken/file: Is a directory"
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["file"]


def test_a_file_one_may_not_read_is_a_store_error(store: Store) -> None:
    store.put_document(DIGEST, BODY)
    (store.root / "documents/sha256" / DIGEST.hex).chmod(0)

    def work() -> None:
        with pytest.raises(StoreError, match="Permission denied"):
            store.document(DIGEST)

    assert as_nobody(work) == 0


def test_a_document_is_kept_by_its_digest(store: Store) -> None:
    assert store.document(DIGEST) is None
    store.put_document(DIGEST, BODY)
    assert store.document(DIGEST) == BODY
    assert list(store.documents()) == [DIGEST]
    store.remove_document(DIGEST)
    store.remove_document(DIGEST)
    assert list(store.documents()) == []


def test_sha512_is_a_digest_too(store: Store) -> None:
    digest = Digest.of(BODY, "sha512")
    store.put_document(digest, BODY)
    assert store.document(digest) == BODY


@pytest.mark.parametrize("damaged", [b"", BODY[:-1], BODY.replace(b"2", b"1")])
def test_a_damaged_document_is_not_handed_out(store: Store, damaged: bytes) -> None:
    store.put_document(DIGEST, BODY)
    (store.root / "documents/sha256" / DIGEST.hex).write_bytes(damaged)
    assert store.document(DIGEST) is None
    store.put_document(DIGEST, BODY)
    assert store.document(DIGEST) == BODY


def test_a_resolution_comes_back_as_it_was_put(store: Store) -> None:
    index, manifest = Digest.of(b"index"), Digest.of(b"manifest")
    store.put_resolution("registry.test/größe:1", index, manifest)
    (found,) = store.resolutions()
    assert (found.reference, found.digest, found.manifest) == ("registry.test/größe:1", index, manifest)
    assert found.resolved > 1e9


def test_a_reference_has_one_resolution_for_each_manifest(store: Store) -> None:
    index, amd64, arm64 = (Digest.of(text) for text in (b"index", b"amd64", b"arm64"))
    for manifest in (amd64, arm64, amd64):
        store.put_resolution("app:1", index, manifest)
    assert {found.manifest for found in store.resolutions()} == {amd64, arm64}
    for found in list(store.resolutions()):
        store.forget(found)
    assert list(store.resolutions()) == []


def test_what_was_resolved_last_counts_though_the_clock_was_put_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, old, new = (Digest.of(text) for text in (b"wrong", b"old", b"new"))
    for moment, manifest in ((2e9, wrong), (5.0, old), (1.9e9, new)):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        store.put_resolution("app:1", manifest, manifest)
        store.put_resolution("other:1", wrong, wrong)
        assert store.resolved("app:1")[0].manifest == manifest
    assert [found.manifest for found in store.resolved("app:1")] == [new, old, wrong]
    assert 2e9 <= store.resolved("app:1")[0].resolved < 2e9 + 1


@pytest.mark.parametrize("moment", ["Infinity", "NaN", "-1", "1e300"])
def test_what_was_resolved_at_no_time_does_not_stay_the_latest(store: Store, moment: str) -> None:
    store.put_resolution("app:1", DIGEST, DIGEST)
    (record,) = (store.root / "references").iterdir()
    fields = {**json.loads(record.read_text()), "resolved": float(moment)}
    record.with_name("0.json").write_text(json.dumps(fields))
    assert [found.resolved > 1e9 for found in store.resolved("app:1")] == [True]


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"[]",
        b"{}",
        b'{"reference": "a", "digest": "sha256:00", "manifest": "x", "resolved": 1}',
        b"\xff",
    ],
)
def test_what_is_no_record_of_a_resolution_is_passed_over(store: Store, record: bytes) -> None:
    store.put_resolution("app:1", DIGEST, DIGEST)
    (store.root / "references" / "0.json").write_bytes(record)
    assert [found.reference for found in store.resolutions()] == ["app:1"]


def test_a_tree_is_there_once_it_has_been_written_to_its_end(store: Store) -> None:
    with store.new_tree(DIGEST) as path:
        path.write_bytes(b"tree")
        assert store.tree(DIGEST) is None
        assert list(store.trees()) == []
    found = store.tree(DIGEST)
    assert found
    assert found.read_bytes() == b"tree"
    assert list(store.trees()) == [DIGEST]
    store.remove_tree(DIGEST)
    assert store.tree(DIGEST) is None


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), atomic_write(path) as aside:  # noqa: PT012
        aside.write_bytes(b"half")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"index"}


def write_large_tree(store: Store) -> None:
    with (
        store.new_tree(DIGEST) as path,
        closing(create_database(path, "CREATE TABLE large (body);")) as db,
    ):
        for _ in range(100):
            db.execute("INSERT INTO large VALUES (?)", (bytes(100_000),))


def test_what_sqlite_cannot_write_is_said_as_the_disk_says_it(store: Store) -> None:
    """SQLite itself says "disk I/O error", of a quota (EDQUOT) as of this limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StoreError, match=f"/{DIGEST.hex}: File too large$"):
            write_large_tree(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.tree(DIGEST) is None
    assert list(store.tree_file(DIGEST).parent.iterdir()) == []


def test_what_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No space left on device"), atomic_write(tmp_path / "index"):
        Path("/dev/full").write_bytes(b"x")
    assert names(tmp_path) == set()


def test_a_process_killed_while_it_writes_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "index"
    sizes = (100_000, 300_000)

    def work() -> None:
        for round in range(1000):  # noqa: A001
            with atomic_write(path) as aside:
                aside.write_bytes(bytes([round % 2]) * sizes[round % 2])

    for delay in range(8):
        with Child(work) as child:
            while not path.exists():
                pass
            threading.Event().wait(0.003 * delay)
            child.kill()
        body = path.read_bytes()
        assert body == body[:1] * sizes[body[0]]
    with atomic_write(path) as aside:
        aside.write_bytes(b"")
    assert names(tmp_path) == {"index"}, "what the dead have left behind is swept"


def test_what_living_processes_are_writing_is_not_swept(tmp_path: Path) -> None:
    told, tell = os.pipe()

    def work() -> None:
        with atomic_write(tmp_path / "a") as aside:
            aside.write_bytes(b"a")
            os.write(tell, b".")
            signal.pause()

    with Child(work) as child:
        os.read(told, 1)
        with atomic_write(tmp_path / "b") as aside:
            aside.write_bytes(b"b")
        assert [name[-2:] for name in names(tmp_path) if name.startswith(TEMPORARY)] == ["-a"]
        child.kill()
        with atomic_write(tmp_path / "b") as aside:
            aside.write_bytes(b"b")
        assert names(tmp_path) == {"b"}
    os.close(told)
    os.close(tell)


def test_a_layer_is_scanned_by_one_process_and_the_others_find_its_index(store: Store) -> None:
    """Each of the two looks again once it has the lock."""
    journal, waiting = store.root / "journal", store.root / "waiting"

    def scan_if_needed(note: str) -> None:
        layer = store.layer(DIGEST)
        waited = []

        def wait() -> None:
            waited.append(1)
            waiting.touch()

        with layer.lock(on_wait=wait):
            if layer.index is None:
                until(waiting.exists, "the other waits for the lock")
                with layer.new_index() as path:
                    path.write_text(note)
                with open(journal, "a") as file:
                    file.write("scanned ")
        with open(journal, "a") as file:
            file.write("waited " if waited else "")

    with Child(lambda: scan_if_needed("a")) as one, Child(lambda: scan_if_needed("b")) as other:
        assert (one.join(), other.join()) == (0, 0)
    assert journal.read_text() == "scanned waited "


def test_a_killed_process_gives_its_lock_back(store: Store) -> None:
    layer = store.layer(DIGEST)
    told, tell = os.pipe()

    def work() -> None:
        with layer.lock(), layer.use():
            os.write(tell, b".")
            signal.pause()

    with Child(work) as child:
        os.read(told, 1)
        assert layer.is_locked()
        assert layer.in_use()
        child.kill()
    assert not layer.is_locked()
    assert not layer.in_use()
    os.close(told)
    os.close(tell)


def test_many_may_use_a_layer_at_once(store: Store) -> None:
    layer = store.layer(DIGEST)
    assert not layer.in_use()
    with layer.use():
        with layer.use():
            assert layer.in_use()
        assert layer.in_use()
    assert not layer.in_use()


def test_a_removed_layer_leaves_nothing_but_its_locks(store: Store) -> None:
    layer = store.layer(DIGEST)
    with layer.lock(), layer.use(), layer.new_index() as path:
        path.write_bytes(b"index")
    layer.flat(size=10, spans=1).close()
    assert [found.digest for found in store.layers()] == [DIGEST]
    assert layer.disk_usage() > 0
    layer.remove()
    assert layer.index is None
    assert list(store.layers()) == []
    assert names(layer.directory) <= {"lock", "users"}


# -- whose it is ---------------------------------------------------------------------------------------------

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@root_only
@pytest.mark.parametrize("name", ["", "documents", "layers", "trees", "scratch", "containers", "erofs"])
def test_a_store_of_another_users_is_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "store"
    Store(root)
    (root / name).mkdir(exist_ok=True)
    os.chown(root / name, 1234, 1234)
    with pytest.raises(StoreError, match=f"{re.escape(str(root / name))}: belongs to uid 1234, not to you"):
        Store(root)


def test_a_store_that_all_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StoreError, match="other users may write to it"):
        Store(tmp_path)


@pytest.mark.parametrize("name", ["version", "limit", "limit.lock", "layers", "logs"])
def test_what_is_a_link_in_the_place_of_a_part_of_the_store_is_not_followed(
    tmp_path: Path, name: str
) -> None:
    root, target = tmp_path / "store", tmp_path / "target"
    Store(root).limit.put(1)
    target.write_text("kept")
    if (root / name).is_dir():
        (root / name).rmdir()
    else:
        (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(target)
    with pytest.raises(StoreError, match=f"{re.escape(str(root / name))}: "):
        Store(root).limit.keep()
    assert target.read_text() == "kept"


def test_a_link_of_ones_own_to_a_store_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    Store(tmp_path / "link")
    assert (tmp_path / "disk/version").exists()


def test_a_killed_process_s_workplace_is_removed_by_the_next(tmp_path: Path) -> None:
    store = Store(tmp_path)
    told, tell = os.pipe()

    def work() -> None:
        with Store(tmp_path).workplace(".made-") as place:
            (place / "layer").write_bytes(b"half")
            os.write(tell, b".")
            signal.pause()

    with Child(work) as child:
        os.read(told, 1)
        with store.workplace(".made-"):
            assert len(list(tmp_path.glob(".made-*"))) == 2
        child.kill()
        with store.workplace(".made-"):
            assert len(list(tmp_path.glob(".made-*"))) == 1
    assert list(tmp_path.glob(".made-*")) == []
    os.close(told)
    os.close(tell)
