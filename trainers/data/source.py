"""Where rows and models live: `package:` addresses, folders, globs, and the tables in them.

Paths are resolved here and nowhere else. pyarrow is imported only when a table is read.
"""

from __future__ import annotations

import glob
import importlib.util
import itertools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from trainers.job import Job

FORMATS = (".parquet", ".jsonl", ".json", ".csv")
HEAD_ROWS = 1000


def absolute(job: Job, base: Path) -> Job:
    """The job with relative paths of data and model made absolute from `base`; addresses (`package:`, hub ids) stay."""
    rooted = {name: _rooted(getattr(job.data, name), base) for name in ("train", "validation", "test")}
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


def files(specs: str | list[str]) -> list[Path]:
    """The data files behind one or more specs, each sorted by name. Raises UserError where there are none."""
    found: list[Path] = []
    for spec in [specs] if isinstance(specs, str) else specs:
        if "://" in spec:
            raise UserError(f"{spec!r}: only files of this machine can be read so far; give a path")
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
            if match.suffix not in FORMATS:
                raise UserError(f"{match}: the ending is not one of {', '.join(FORMATS)}")
        found += matches
    if not found:
        raise UserError("names no files")
    return found


def read_tables(paths: list[Path]) -> pa.Table:
    """Every row of the files as one Arrow table; columns missing from some files are null there.

    Raises:
        UserError: a file that cannot be parsed (named, with pyarrow's first line), or types that do not go together.
    """
    import pyarrow as pa

    tables = [_read(path) for path in paths]
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"{paths[0]} and {len(paths) - 1} more: the same column has types that do not go together: {_first(error)}") from None


def beginning(path: Path, whole_bytes: int = 4 << 20) -> pa.Table:
    """The file, or its first rows where it is larger than `whole_bytes`: enough to know its columns.

    Raises:
        UserError: as `read_tables`.
    """
    if path.stat().st_size <= whole_bytes or path.suffix == ".json":
        return _read(path)
    return _read(path, head=True)


def _read(path: Path, head: bool = False) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.stat().st_size == 0:
            return pa.table({})
        if path.suffix == ".parquet":
            if head:
                with parquet.ParquetFile(path) as file:
                    return pa.Table.from_batches(itertools.islice(file.iter_batches(batch_size=HEAD_ROWS), 1), schema=file.schema_arrow)
            return parquet.read_table(path)
        if path.suffix == ".csv":
            options = csv.ParseOptions(newlines_in_values=True)
            if head:
                with csv.open_csv(path, parse_options=options) as file:
                    return pa.Table.from_batches([file.read_next_batch()])
            return csv.read_csv(path, parse_options=options)
        return _read_json(path, HEAD_ROWS if head else None)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]}: {_first(error)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or _first(error)}") from None


def _read_json(path: Path, limit: int | None) -> pa.Table:
    """jsonl (an object a line; the first `limit` of them) or json (a list of objects). Python's parser: it knows the line that is wrong."""
    import pyarrow as pa

    rows = []
    try:
        with path.open(encoding="utf-8-sig") as lines:
            if path.suffix == ".json":
                rows = json.load(lines)
            else:
                for number, line in enumerate(itertools.islice(lines, limit), 1):
                    if line.strip():
                        rows.append(json.loads(line))
                        if not isinstance(rows[-1], dict):
                            raise UserError(f"{path}:{number}: is not an object: {line.strip():.60}")
    except json.JSONDecodeError as error:
        place = error.lineno if path.suffix == ".json" else number
        raise UserError(f"{path}:{place}: is not JSON: {error.msg}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: must be a list of objects, [{{…}}, {{…}}]")
    return pa.Table.from_pylist(rows, schema=_schema(rows)) if rows else pa.table({})


def _schema(rows: list[dict]) -> pa.Schema:
    """Every column that any row has, in order of first sight (pyarrow looks at the first row alone)."""
    import pyarrow as pa

    columns = dict.fromkeys(key for row in rows for key in row)
    return pa.schema([(name, pa.array([row.get(name) for row in rows]).type) for name in columns])


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


def _first(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
