"""One piece of the source after the other: its rows as examples, and their facts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from trainers import tasks
from trainers.data.facts import Facts
from trainers.data.files import File
from trainers.data.rows import Example, column
from trainers.data.source import Piece, blocks
from trainers.data.store import Store
from trainers.errors import UserError
from trainers.job import Job

if TYPE_CHECKING:
    import pyarrow as pa


class Part(NamedTuple):
    """A piece of a split's files, numbered over the whole source."""

    number: int
    split: int
    piece: Piece


@dataclass(frozen=True)
class Scanned:
    """What a piece holds."""

    facts: Facts
    schema: Any
    """The columns of its rows, as an Arrow schema."""
    problem: str
    """What is wrong with its first row that could not be read."""

    @classmethod
    def read(cls, work: Store, number: int) -> Scanned:
        """What `Scan` found in the part of that number."""
        import pyarrow as pa

        about = json.loads(bytes(work.whole(_name(number, "json"))))
        schema = pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(about["schema"])))
        return cls(Facts.from_bytes(bytes(work.whole(_name(number, "npz")))), schema, about["problem"])


@dataclass(frozen=True)
class Scan:
    """Reads parts of the source as a job says; the facts of each go into `work`, where those that are there are not made again."""

    job: Job
    columns: dict[int, list[str]]
    """By split (its number), every column that its files have: those that one lacks are null there."""
    work: Store

    def __call__(self, part: Part) -> None:
        """Makes the facts of a part. Raises UserError for rows that cannot be read, with `on_bad_row` "stop"."""
        import pyarrow as pa

        if self.work.has(_name(part.number, "json")):
            return
        facts, schemas, problem = [Facts.of([], self.job.data)], [], ""
        for table, examples in self._blocks(part):
            facts.append(Facts.of(examples, self.job.data))
            schemas.append(table.schema)
            problem = problem or next((e.problem.message for e in examples if e.problem), "")
        schema = unified(schemas, part.piece.file) if schemas else pa.schema([])
        self.work.put(_name(part.number, "npz"), Facts.join(facts).to_bytes())
        self.work.put(_name(part.number, "json"), json.dumps({"schema": schema.serialize().to_pybytes().hex(), "problem": problem}).encode())

    def examples(self, part: Part) -> Iterator[list[Example]]:
        """The rows of a part in the order of its facts, some at a time."""
        for _, examples in self._blocks(part):
            yield examples

    def _blocks(self, part: Part) -> Iterator[tuple[pa.Table, list[Example]]]:
        import pyarrow as pa

        data, read, first = self.job.data, tasks.get(self.job.task).read, 1
        for block in blocks(part.piece, data.on_bad_row):
            table = block.table
            for name in self.columns[part.split]:
                if name not in table.column_names:
                    table = table.append_column(name, pa.nulls(table.num_rows))
            try:
                examples = read(table, data, first)
            except UserError as error:
                raise UserError(f"{part.piece.file}: {error.message}", key=error.key) from None
            if data.group_by is not None:
                groups = column(table, "data.group_by", data.group_by).to_pylist()
                examples = [e._replace(group=None if group is None else str(group)) for e, group in zip(examples, groups, strict=True)]
            for number, what in block.problems.items():
                examples[number] = Example("", None, None, problem=UserError(what))
            first += len(examples)
            yield block.table, examples


def _name(number: int, ending: str) -> str:
    return f"scan/{number:05d}.{ending}"


def unified(schemas: list[Any], file: File) -> Any:
    """One schema for all. Raises UserError where a column's types do not go together."""
    import pyarrow as pa

    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"{file}: the same column has types that do not go together: {str(error).splitlines()[0]}") from None


def check_schemas(found: list[tuple[File, Any]], split: str) -> None:
    """Raises UserError, with the first file that does not go together with those before it."""
    whole: list[Any] = []
    for file, schema in found:
        try:
            whole = [unified([*whole, schema], file)]
        except UserError as error:
            raise UserError(f"{error.message} (before: {found[0][0]})", key=f"data.{split}") from None
