"""A cache of fetched bytes on a node's own disk, shared by the processes of the node.

Entries are files written beside and renamed whole, so a crash leaves nothing half-written under an entry's name; what is
read is checked by the caller, and a damaged entry is forgotten. The least recently used ones go first. Only files that carry
an entry's or a temporary's name, in a folder of the cache's own, are ever deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FOLDER = "muster-cache"
_ENTRY = re.compile(r"[0-9a-f]{32}")
_TEMPORARY = re.compile(r"[0-9a-f]{32}\.\d+-\d+\.tmp")
STALE_S = 3600.0
"""A temporary file this old is what a killed process left."""
LOW = 0.9
"""Eviction goes on until so much of the room is used."""


class Cache:
    """Bytes by name, at most `size` of them on disk (and what is being written). Safe to use from many threads and processes.

    Args:
        folder: where the cache's own folder is made.
        size: in bytes.
    """

    def __init__(self, folder: Path, size: float) -> None:
        self.folder, self.size = folder.expanduser() / FOLDER, size
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._used = sum(entry.stat().st_size for entry in self._entries())

    def get(self, name: str, fetch: Callable[[], memoryview], check: Callable[[memoryview], Any]) -> memoryview:
        """The bytes called `name`: from disk if they pass `check` (which raises for bytes it does not believe), else from `fetch`."""
        path = self.folder / hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        with contextlib.suppress(FileNotFoundError):
            data = memoryview(path.read_bytes())
            try:
                check(data)
            except Exception:
                path.unlink(missing_ok=True)  # a disk that forgets, or somebody wrote into it: fetched anew below
            else:
                with contextlib.suppress(FileNotFoundError):  # evicted just now
                    os.utime(path)
                return data
        data = fetch()
        if len(data) <= self.size:
            self._put(path, data)
        return data

    def _put(self, path: Path, data: memoryview) -> None:
        temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            temporary.write_bytes(data)
            temporary.rename(path)
        except OSError:
            temporary.unlink(missing_ok=True)  # a full disk: the cache is a help, never a reason to stop
            return
        with self._lock:
            self._used += len(data)
            if self._used > self.size:
                self._used = self._evict()

    def _evict(self) -> int:
        """Deletes the least recently used entries, of all processes; returns the bytes that are left."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = []
            for path in self._entries():
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    found.append((stat.st_mtime_ns, stat.st_size, path))
            left = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if left <= LOW * self.size:
                    break
                path.unlink(missing_ok=True)
                left -= size
            for path in self.folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if _TEMPORARY.fullmatch(path.name) and path.stat().st_mtime < time.time() - STALE_S:
                        path.unlink()
            return left

    def _entries(self) -> Iterator[Path]:
        return (path for path in self.folder.iterdir() if _ENTRY.fullmatch(path.name) and path.is_file() and not path.is_symlink())
