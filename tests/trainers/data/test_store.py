"""Objects in a folder and in memory; buckets are in test_bucket.py."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from trainers.data.store import MEMORY, StorageError, Store

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_objects_are_written_read_listed_and_removed(place: str, tmp_path: Path) -> None:
    store = Store(MEMORY if place == "memory" else str(tmp_path / "new" / "folder"))
    for name in ("a/1", "a/2", "ab"):
        store.put(name, name.encode())
    assert bytes(store.get("a/2", 1, 2)) == b"/2" and bytes(store.whole("ab")) == b"ab" and store.has("a/1") and not store.has("a")
    store.delete("a/")
    assert [o.path for o in store.list("")] == ["ab"]
    store.clear()
    assert not store.list("")


def test_a_folder_that_is_cleared_is_gone_and_its_neighbours_are_not(tmp_path: Path) -> None:
    Store(str(tmp_path / "set")).put("manifest.json", b"{}")
    work = Store(str(tmp_path / "set" / "work-1"))
    work.put("scan/1", b"1")
    work.clear()
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["manifest.json"]


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot open .*/file/folder: "):
        Store(str(tmp_path / "file" / "folder"))
    store = Store(str(tmp_path / "here"), budget_s=60)
    (tmp_path / "here" / "a").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*/here/a/b: "):
        store.put("a/b", b"1")


def test_a_store_can_be_sent_to_another_process_unless_it_is_in_memory(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put("a", b"1")
    assert bytes(pickle.loads(pickle.dumps(store)).whole("a")) == b"1"
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(Store(MEMORY))
