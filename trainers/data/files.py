"""Where rows and models live: paths, globs and folders of this machine, `package:` addresses, buckets (s3://, gs://, az://).

Addresses are resolved here and nowhere else, and a file behind one is read the same way wherever it is.
"""

from __future__ import annotations

import glob
import importlib.util
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from trainers.data.store import StorageError, Store, is_remote
from trainers.errors import UserError

if TYPE_CHECKING:
    from trainers.job import Job

FORMATS = (".parquet", ".jsonl", ".json", ".csv")
READ_BYTES = 8 << 20
"""What is asked of a bucket at a time."""


@dataclass(frozen=True)
class File:
    """A file of rows."""

    address: str
    """A path, or a URL."""
    size: int
    """In bytes."""
    stamp: str
    """Changes when the file does: its time of change, or its ETag."""

    @classmethod
    def at(cls, path: Path) -> File:
        """A file of this machine."""
        found = path.stat()
        return cls(str(path), found.st_size, str(found.st_mtime_ns))

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return Path(self.address).suffix

    def __str__(self) -> str:
        return self.address

    def open(self) -> BinaryIO:
        """Its bytes, seekable. Raises StorageError (a bucket) or OSError (this machine)."""
        if not is_remote(self.address):
            return Path(self.address).open("rb")
        root, path = split_url(self.address)
        return io.BufferedReader(_Object(Store(root), path, self.size), READ_BYTES)


def absolute(job: Job, base: Path) -> Job:
    """The job with relative paths of data and model made absolute from `base`; addresses (`package:`, hub ids) stay."""
    rooted = {name: _rooted(getattr(job.data, name), base) for name in ("train", "validation", "test", "prepared")}
    model = job.model
    if not _address(model) and (model.startswith((".", "~", "/")) or _exists(base / model)):
        model = str((base / _home(model)).resolve())
    return job.model_copy(update={"data": job.data.model_copy(update=rooted), "model": model})


def locate(spec: str) -> str:
    """A path on this machine for `package:NAME/PATH`; anything else as it is.

    Raises:
        UserError: the package is not installed.
    """
    if not spec.startswith("package:"):
        return spec
    name, _, inside = spec.removeprefix("package:").partition("/")
    try:
        found = importlib.util.find_spec(name.replace("-", "_"))
    except (ImportError, ValueError, AttributeError):
        found = None
    if not name or found is None or not found.submodule_search_locations:
        raise UserError(f"{spec!r}: no package {name!r} is installed; pip install it, or give a path")
    return str(Path(next(iter(found.submodule_search_locations))) / inside)


def files(specs: str | list[str]) -> list[File]:
    """The data files behind one or more specs, each sorted by name. Raises UserError where there are none."""
    found: list[File] = []
    for spec in [specs] if isinstance(specs, str) else specs:
        found += _in_bucket(spec) if is_remote(spec) else _here(spec)
    if not found:
        raise UserError("names no files")
    return found


def _here(spec: str) -> list[File]:
    path = Path(locate(spec))
    if not _exists(path) and len(path.name) > 255:
        raise UserError(f"{spec!r:.80}: there is no such file")
    if path.is_dir():
        matches = sorted(p for p in path.iterdir() if p.suffix in FORMATS and p.is_file())
    else:
        matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())  # noqa: PTH207  Path.glob takes no absolute pattern
    if not matches:
        raise UserError(f"{spec!r}: there is no such file" + (f" with a {', '.join(FORMATS)} ending" if path.is_dir() else ""))
    for match in matches:
        _known(match.suffix, str(match))
    return [File.at(match) for match in matches]


def _in_bucket(spec: str) -> list[File]:
    """A URL of one object, of a folder, or with wildcards: `*` and `?` inside a name, `**` over folders."""
    root, path = split_url(spec)
    wild = re.search(r"[*?\[]", path)
    prefix = path[: path.rfind("/", 0, wild.start()) + 1] if wild else path
    try:
        objects = Store(root).list(prefix)
    except StorageError as error:
        raise UserError(str(error)) from None
    if wild:
        pattern = _pattern(path)
        matches = [o for o in objects if pattern.fullmatch(o.path)]
    else:
        folder = path.rstrip("/") + "/" if path.rstrip("/") else ""
        matches = [o for o in objects if o.path == path]
        if matches:
            _known(Path(path).suffix, spec)
        else:
            matches = [o for o in objects if o.path.startswith(folder) and "/" not in o.path[len(folder) :] and Path(o.path).suffix in FORMATS]
    if not matches:
        raise UserError(f"{spec!r}: there is no such object" + ("" if wild else f", nor a folder of objects with a {', '.join(FORMATS)} ending"))
    for match in matches:
        _known(Path(match.path).suffix, f"{root}/{match.path}")
    return [File(f"{root}/{o.path}", o.size, o.stamp) for o in sorted(matches, key=lambda o: o.path)]


def split_url(url: str) -> tuple[str, str]:
    """`s3://bucket/some/path` → (`s3://bucket`, `some/path`). Raises UserError for a scheme that cannot be read."""
    scheme, _, rest = url.partition("://")
    bucket, _, path = rest.partition("/")
    if scheme not in ("s3", "gs", "az") or not bucket:
        raise UserError(f"{url!r}: takes s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH, or a path")
    return f"{scheme}://{bucket}", path


def _pattern(path: str) -> re.Pattern:
    """A glob as a regular expression: `**/` is any folders, `*` and `?` stay in one."""
    tokens = re.findall(r"\*\*/|\*|\?|\[[^\]]+\]|.", path)
    known = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(known.get(t) or (t.replace("[!", "[^") if t.startswith("[") and len(t) > 1 else re.escape(t)) for t in tokens))


def _known(suffix: str, name: str) -> None:
    if suffix not in FORMATS:
        raise UserError(f"{name}: the ending is not one of {', '.join(FORMATS)}")


class _Object(io.RawIOBase):
    """An object of a bucket, read by ranges."""

    def __init__(self, store: Store, path: str, size: int) -> None:
        self._store, self._path, self._size, self._place = store, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._place))
        if count:
            buffer[:count] = self._store.get(self._path, self._place, count)
            self._place += count
        return count


def _rooted(specs: str | list[str] | None, base: Path) -> str | list[str] | None:
    if specs is None:
        return None
    if isinstance(specs, list):
        return [str(_rooted(spec, base)) for spec in specs]
    return specs if _address(specs) else os.path.normpath(base / _home(specs))  # `resolve` would follow links


def _home(path: str) -> Path:
    """The path with `~` spelt out; as it is for a user who does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _exists(path: Path) -> bool:
    """Whether there is such a file; no for a name that is longer than names can be."""
    try:
        return path.exists()
    except OSError:
        return False


def _address(spec: str) -> bool:
    return spec.startswith("package:") or "://" in spec
