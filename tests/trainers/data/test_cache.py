"""The node-local cache: the right bytes, within its size, whatever is killed or scribbled over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import xxhash

from trainers.data.cache import FOLDER, STALE_S, Cache

pytestmark = pytest.mark.unit


def content(name: str, size: int = 1000) -> bytes:
    return (name.encode() * (size // len(name) + 1))[:size]


class Source:
    """Fetches and counts."""

    def __init__(self) -> None:
        self.fetched: list[str] = []

    def get(self, cache: Cache, name: str) -> bytes:
        def fetch() -> memoryview:
            self.fetched.append(name)
            return memoryview(content(name))

        return bytes(cache.get(name, fetch, check(name)))


def check(name: str) -> Any:
    def verify(data: memoryview) -> None:
        if xxhash.xxh3_64_intdigest(data) != xxhash.xxh3_64_intdigest(content(name)):
            raise ValueError("damaged")

    return verify


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / FOLDER).iterdir() if len(path.name) == 32)


def test_what_was_fetched_is_there_next_time_and_in_the_next_process(tmp_path: Path) -> None:
    source = Source()
    for cache in (Cache(tmp_path, 1e6), Cache(tmp_path, 1e6)):
        for name in ("a", "b", "a"):
            assert source.get(cache, name) == content(name)
    assert source.fetched == ["a", "b"]


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    source, cache = Source(), Cache(tmp_path, 5500)
    for turn, name in enumerate(["a", "b", "c", "d", "a", "e"]):
        source.get(cache, name)
        for path in (tmp_path / FOLDER).iterdir():  # the clock of a file system may be coarse: make each use a second
            if path.stat().st_mtime > 1e9:
                os.utime(path, (turn, turn))
    source.get(cache, "f")
    assert used(tmp_path) <= 5500
    source.fetched.clear()
    source.get(cache, "a")
    source.get(cache, "b")
    assert source.fetched == ["b"]


def test_damaged_entries_are_fetched_anew(tmp_path: Path) -> None:
    source, cache = Source(), Cache(tmp_path, 1e6)
    source.get(cache, "a")
    (entry,) = (path for path in (tmp_path / FOLDER).iterdir() if len(path.name) == 32)
    for damage in (b"", content("a")[:-1], b"x" * 1000):
        entry.write_bytes(damage)
        assert source.get(cache, "a") == content("a")
        assert entry.read_bytes() == content("a")
    assert source.fetched == ["a"] * 4


def test_what_it_did_not_write_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    source, cache = Source(), Cache(tmp_path, 3000)
    (tmp_path / FOLDER / "notes.md").write_text("mine")
    (tmp_path / FOLDER / ("0" * 32)).symlink_to(tmp_path / "mine.txt")
    for i in range(20):
        source.get(cache, f"name {i}")
    assert (tmp_path / "mine.txt").read_text() == (tmp_path / FOLDER / "notes.md").read_text() == "mine"
    assert (tmp_path / FOLDER / ("0" * 32)).is_symlink()


def test_threads_and_an_entry_larger_than_the_cache(tmp_path: Path) -> None:
    source, cache = Source(), Cache(tmp_path, 4000)
    with ThreadPoolExecutor(8) as pool:
        names = [f"name {i % 9}" for i in range(400)]
        assert list(pool.map(lambda name: source.get(cache, name), names)) == [content(name) for name in names]
    assert used(tmp_path) <= 4000
    tiny_cache = Cache(tmp_path / "tiny", 10)
    assert source.get(tiny_cache, "a") == content("a") and used(tmp_path / "tiny") == 0


WRITER = """
import sys
from pathlib import Path
from trainers.data.cache import Cache
cache, i = Cache(Path(sys.argv[1]), 300_000), 0
print("ready", flush=True)
while True:
    i += 1
    name = f"name {i % 1000}"
    cache.get(name, lambda: memoryview((name.encode() * 1000)[:5000]), lambda data: None)
"""


def test_killed_writers_leave_whole_entries_and_their_rubbish_goes(tmp_path: Path) -> None:
    for _ in range(3):
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(2)]
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline()
        while used_or_zero(tmp_path) < 100_000:
            pass
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
    entries = [path for path in (tmp_path / FOLDER).iterdir() if len(path.name) == 32]
    assert entries and all(path.stat().st_size == 5000 for path in entries)
    rubbish = tmp_path / FOLDER / f"{'a' * 32}.1-1.tmp"
    rubbish.write_bytes(b"half")
    os.utime(rubbish, (1, rubbish.stat().st_mtime - 2 * STALE_S))
    source, cache = Source(), Cache(tmp_path, 3000)
    source.get(cache, "a")
    assert not rubbish.exists() and used(tmp_path) <= 3000


def used_or_zero(folder: Path) -> int:
    try:
        return used(folder)
    except FileNotFoundError:  # evicted while counting
        return 0
