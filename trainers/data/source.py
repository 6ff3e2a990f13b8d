"""The tables in files of rows: Parquet, jsonl, json and csv, cut into pieces and read a block at a time.

A piece is what one process reads by itself: some row groups, a range of lines, a file. Its blocks fit into memory easily.
pyarrow is imported only when a table is read.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from trainers.data.files import File
from trainers.data.store import StorageError
from trainers.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

PIECE_BYTES = 64 << 20
"""Bytes of a file that are one piece; uncompressed ones for Parquet."""
BLOCK_BYTES = 8 << 20
"""Bytes of rows that are in memory at once, more if a row is larger."""
HEAD_BYTES = 4 << 20


@dataclass(frozen=True)
class Piece:
    """Rows of a file: bytes [first, stop) of jsonl (lines that begin there), row groups of Parquet, all of json and csv."""

    file: File
    first: int
    stop: int


@dataclass(frozen=True)
class Block:
    """Some rows. A row that could not be read is all null, and in `problems`, by its number in the table."""

    table: pa.Table
    problems: dict[int, str]


def pieces(file: File) -> list[Piece]:
    """The pieces of a file, none if it is empty. Raises UserError if it cannot be read."""
    if not file.size:
        return []
    if file.suffix == ".jsonl":
        return [Piece(file, at, min(at + PIECE_BYTES, file.size)) for at in range(0, file.size, PIECE_BYTES)]
    if file.suffix == ".parquet":
        with _readable(file), _parquet(file) as opened:
            sizes = [opened.metadata.row_group(i).total_byte_size for i in range(opened.num_row_groups)]
        found, first, held = [], 0, 0
        for i, size in enumerate(sizes, 1):
            held += size
            if held >= PIECE_BYTES or i == len(sizes):
                found.append(Piece(file, first, i))
                first, held = i, 0
        return found
    return [Piece(file, 0, file.size)]


def blocks(piece: Piece, on_bad_row: str = "stop", block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The rows of a piece, in order.

    Raises:
        UserError: the file cannot be read; or, with `on_bad_row` "stop", a row in it (both named).
    """
    read = {".parquet": _parquet_blocks, ".csv": _csv_blocks, ".jsonl": _jsonl_blocks, ".json": _json_blocks}[piece.file.suffix]

    def bad(line: int | None, what: str) -> str:
        text = f"{piece.file}:{line}: {what}" if line is not None else f"{piece.file}: {what}"
        if on_bad_row == "stop":
            raise UserError(text)
        return text

    with _readable(piece.file):
        yield from read(piece, bad, block_bytes)


def beginning(file: File, on_bad_row: str = "stop", head_bytes: int = HEAD_BYTES) -> pa.Table:
    """The file's first rows: enough to know its columns. Raises UserError as `blocks`."""
    import pyarrow as pa

    head = [Piece(piece.file, piece.first, min(piece.stop, head_bytes) if file.suffix == ".jsonl" else piece.stop) for piece in pieces(file)[:1]]
    return next((block.table for piece in head for block in blocks(piece, on_bad_row, head_bytes)), pa.table({}))


Bad = Callable[[int | None, str], str]


class _readable:
    """Turns what libraries raise about a file into one line."""

    def __init__(self, file: File) -> None:
        self.file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import pyarrow as pa

        if isinstance(error, StorageError):
            raise UserError(str(error)) from None
        if isinstance(error, pa.ArrowException):
            raise UserError(f"{self.file}: cannot be read as {self.file.suffix[1:]}: {_gist(error)}") from None
        if isinstance(error, OSError):
            raise UserError(f"{self.file}: cannot be read: {error.strerror or _gist(error)}") from None


def _parquet(file: File) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(file.open())


def _parquet_blocks(piece: Piece, bad: Bad, block_bytes: int) -> Iterator[Block]:
    import pyarrow as pa

    with _parquet(piece.file) as file:
        groups = range(piece.first, piece.stop)
        size = sum(file.metadata.row_group(i).total_byte_size for i in groups)
        rows = sum(file.metadata.row_group(i).num_rows for i in groups)
        for batch in file.iter_batches(batch_size=max(1, int(block_bytes * rows / max(1, size))), row_groups=groups):
            yield Block(pa.Table.from_batches([batch]), {})


def _csv_blocks(piece: Piece, bad: Bad, block_bytes: int) -> Iterator[Block]:
    """Every value is text, as it stands there; an empty one is null."""
    import pyarrow as pa
    from pyarrow import csv

    problems: list[tuple[int, str]] = []

    def wrong(row: Any) -> str:  # Arrow calls it: nothing may be raised here
        problems.append((row.number, f"has {row.actual_columns} columns, not {row.expected_columns}: {row.text:.60}"))
        return "skip"

    read = csv.ReadOptions(block_size=block_bytes, use_threads=False)
    parse = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=wrong)
    with piece.file.open() as header:
        names = csv.open_csv(header, read, parse).schema.names
    problems.clear()
    convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary()), null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True)
    with piece.file.open() as data, csv.open_csv(data, read, parse, convert) as reader:
        for batch in itertools.chain(reader, [None]):
            table = pa.table({name: _text(batch.column(name)) if batch else pa.array([], pa.string()) for name in names})
            lost = pa.table({name: pa.nulls(len(problems), pa.string()) for name in names})
            yield Block(pa.concat_tables([table, lost]), {table.num_rows + i: bad(*what) for i, what in enumerate(problems)})
            problems.clear()


def _jsonl_blocks(piece: Piece, bad: Bad, block_bytes: int) -> Iterator[Block]:
    """Python's parser: it knows the line that is wrong."""
    with piece.file.open() as data:
        if piece.first:
            data.seek(piece.first - 1)
            data.readline()  # to the first line that begins in the piece
        line = 1
        while (left := piece.stop - data.tell()) > 0:
            lines = _lines(data, min(left, block_bytes))
            if not lines:
                return
            rows: list[dict[str, Any]] = []
            numbers: list[int] = []
            problems: dict[int, str] = {}
            for number, text in enumerate(lines, line):
                if not text.strip():
                    continue
                row, wrong = _object(text.decode("utf-8-sig" if number == 1 else "utf-8", "replace"))
                if wrong:
                    problems[len(rows)] = bad(_line(piece, number), wrong)
                rows.append(row)
                numbers.append(number)
            line += len(lines)
            yield _block(rows, problems, lambda i, what, numbers=numbers: bad(_line(piece, numbers[i]), what))  # type: ignore[misc]


def _lines(data: BinaryIO, size: int) -> list[bytes]:
    """Whole lines that begin within the next `size` bytes."""
    lines: list[bytes] = []
    while size > 0 and (line := data.readline()):
        lines.append(line)
        size -= len(line)
    return lines


def _json_blocks(piece: Piece, bad: Bad, block_bytes: int) -> Iterator[Block]:
    with piece.file.open() as data:
        try:
            rows = json.loads(data.read().decode("utf-8-sig", "replace"))
        except json.JSONDecodeError as error:
            raise UserError(f"{piece.file}:{error.lineno}: is not JSON: {error.msg}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{piece.file}: must be a list of objects, [{{…}}, {{…}}]")
    yield _block(rows, {}, lambda i, what: bad(None, f"row {i + 1}: {what}"))


def _object(text: str) -> tuple[dict[str, Any], str]:
    """The object that a line holds, and what is wrong with it."""
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        return {}, f"is not JSON: {error.msg}"
    return (row, "") if isinstance(row, dict) else ({}, f"is not an object: {text.strip():.60}")


def _block(rows: list[dict[str, Any]], problems: dict[int, str], bad: Callable[[int, str], str]) -> Block:
    """Rows as a table of every column that any of them has; those that do not go together with the rest are problems."""
    import pyarrow as pa

    columns = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            for i, what in _odd(values):
                problems[i] = bad(i, f"column {name!r} {what}")
                values[i] = None
            columns[name] = pa.array(values)
    table = pa.table(columns) if columns else pa.table({"": pa.nulls(len(rows))}).select([])
    return Block(_nulled(table, problems), problems)


def _nulled(table: pa.Table, problems: dict[int, str]) -> pa.Table:
    """The table with every value of some rows null."""
    import pyarrow as pa
    from pyarrow import compute

    if not problems:
        return table
    good = pa.array([i not in problems for i in range(table.num_rows)])
    return pa.table({name: compute.if_else(good, column, pa.scalar(None, column.type)) for name, column in zip(table.column_names, table.columns, strict=True)})


def _odd(values: list[Any]) -> Iterator[tuple[int, str]]:
    """Values that do not go together with the first one of the commonest type."""
    import pyarrow as pa

    kind = Counter(type(value) for value in values if value is not None).most_common(1)[0][0]
    usual = next(value for value in values if type(value) is kind)
    for i, value in enumerate(values):
        try:
            pa.array([usual, value])
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            yield i, f"holds {type(value).__name__} here, {kind.__name__} elsewhere" if type(value) is not kind else "has other types inside than elsewhere"


def _text(column: Any) -> Any:
    """Bytes as text; replacement characters stand for what is not UTF-8."""
    import pyarrow as pa

    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([None if value is None else value.decode("utf-8", "replace") for value in column.to_pylist()], pa.string())


def _line(piece: Piece, number: int) -> int:
    """The number in the file of a piece's line."""
    if not piece.first:
        return number
    with piece.file.open() as data:
        return number + 1 + sum(part.count(b"\n") for part in _upto(data, piece.first - 1))  # and the end of the line that begins before


def _upto(data: BinaryIO, stop: int) -> Iterator[bytes]:
    while (left := stop - data.tell()) > 0:
        yield data.read(min(left, 1 << 20))


def _gist(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
