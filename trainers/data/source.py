"""The tables in files of rows: Parquet, jsonl, json and csv. pyarrow is imported only when a table is read."""

from __future__ import annotations

import io
import itertools
import json
from typing import TYPE_CHECKING

from trainers.data.files import File
from trainers.data.store import StorageError
from trainers.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

HEAD_ROWS = 1000


def read_tables(paths: list[File]) -> pa.Table:
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


def beginning(path: File, whole_bytes: int = 4 << 20) -> pa.Table:
    """The file, or its first rows where it is larger than `whole_bytes`: enough to know its columns.

    Raises:
        UserError: as `read_tables`.
    """
    if path.size <= whole_bytes or path.suffix == ".json":
        return _read(path)
    return _read(path, head=True)


def _read(path: File, head: bool = False) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.size == 0:
            return pa.table({})
        if path.suffix == ".parquet":
            if head:
                with parquet.ParquetFile(path.open()) as file:
                    return pa.Table.from_batches(itertools.islice(file.iter_batches(batch_size=HEAD_ROWS), 1), schema=file.schema_arrow)
            return parquet.read_table(path.open())
        if path.suffix == ".csv":
            options = csv.ParseOptions(newlines_in_values=True)
            if head:
                with csv.open_csv(path.open(), parse_options=options) as file:
                    return pa.Table.from_batches([file.read_next_batch()])
            return csv.read_csv(path.open(), parse_options=options)
        return _read_json(path, HEAD_ROWS if head else None)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]}: {_first(error)}") from None
    except StorageError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or _first(error)}") from None


def _read_json(path: File, limit: int | None) -> pa.Table:
    """jsonl (an object a line; the first `limit` of them) or json (a list of objects). Python's parser: it knows the line that is wrong."""
    import pyarrow as pa

    rows = []
    try:
        with io.TextIOWrapper(path.open(), encoding="utf-8-sig") as lines:
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


def _first(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
